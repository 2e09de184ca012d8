"""The stages of a run and what each of them reads: the only place that says so.

    model, data ─┬─ rewrite ─ choose ─┬─ gap
                 │                    └─ train sdft ─ eval sdft ─ measure sdft
                 ├─ train sft ─ eval sft ─ measure sft
                 └─ eval base

The key of a stage is the SHA-256 of what it reads: settings, resolved, and the keys of the stages whose output it
reads. Two stages with the same key make the same files, so runs.py makes them once. A key needs the settings alone, so
reuse is planned before anything runs. tests/test_sweep_keys.py refuses a setting that no stage reads.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from sdft.experiment.arms import ARMS, OBJECTIVES, ON_POLICY, TRAINED_AS, settings_of
from sdft.experiment.settings import SECTION_OF, SECTIONS, Config

UNREAD = ("arms", "then")        # settings that no stage reads: `arms` says which stages there are


@dataclass(frozen=True)
class Stage:
    """The settings that a stage reads, the stages whose output it reads, and the files or folders that it leaves."""

    reads: Mapping[str, Any]
    after: tuple[Stage, ...] = ()
    paths: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """SHA-256 of all three."""
        content = [self.reads, [stage.key for stage in self.after], self.paths]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def stages(config: Config, arms: Sequence[str] | None = None) -> dict[str, Stage]:
    """The stages whose files another run may take over, by their name in seconds.jsonl; arms: None for the settings'.
    `generation_batch_size` is read by all that generates: in bf16 it can decide a near-tie."""
    arms = config.arms.arms if arms is None else arms

    def read(*names: str) -> dict[str, Any]:
        return {name: getattr(getattr(config, SECTION_OF[name]), name) for name in names}

    def section(name: str) -> dict[str, Any]:
        return read(*(setting.name for setting in fields(SECTIONS[name])))

    inputs = (Stage(section("model")), Stage(section("task")))
    writing = read("rewrite_tokens") | section("generate")
    items = read("elaborate_items", "instruction_items", "general_items") | section("generate")
    partly = 0 < config.distill.mix_ratio < 1                   # then the seed draws which records keep their answer
    choosing = read("mix_ratio", "max_repeated_ngrams", "max_length_ratio", "max_words", *(["seed"] if partly else []))
    dialogues = read("rewrite_tokens", "sampling_seed", "generation_batch_size", "general_items")   # base_text.py

    examples = Stage(read("train_template"), inputs)
    rewrite = Stage(read("template") | writing, inputs, _journal("rewrites"))
    answers = Stage(writing, (examples,), _journal("self-output/answers"))
    chosen, own_answers = Stage(choosing, (rewrite, examples)), Stage(choosing, (answers,))
    base_text = {"ewc": Stage(dialogues, inputs), "replay": Stage(dialogues | read("replay_fraction"), inputs)}
    shown = Stage(read("template", "rewrite_tokens", "generation_batch_size"), (examples,))         # onpolicy.py
    targets = {**dict.fromkeys(("sft", "wise-ft", "low-lr", "low-rank", *OBJECTIVES), (examples,)),
               "sdft": (chosen,), "token-matched-sft": (chosen,), "self-output": (own_answers,),
               **{arm: (examples, text) for arm, text in base_text.items()}, **dict.fromkeys(ON_POLICY, (shown,))}

    base = Stage(items, inputs, ("eval/base",))
    made = {"rewrite": rewrite, "gap": Stage({}, (chosen,), ("gap.json",)), "eval base": base}
    left_out = {"elaborate": config.eval.elaborate_items == 0, "instructions": config.eval.instruction_items == 0}
    ends = [end_point.partition(".") for end_point in config.eval.primary]
    if any(measure == "forgetting" and not left_out.get(suite) for suite, _, measure in ends):
        made["eval base again"] = Stage(read("primary"), (base,), ("eval/base-again",))        # the noise floor
    for arm in (arm for arm in arms if arm in ARMS):            # an unknown arm is refused when its run begins
        folder = TRAINED_AS.get(arm, arm)
        along = read("eval_every") | (items if config.eval.eval_every else {})             # trajectory.py
        training = Stage(asdict(settings_of(folder, config.train)) | along, targets[arm], (folder,))
        if folder == arm or folder not in arms:
            made[f"train {arm}"] = training
        finished = read("wise_ft_alpha") if arm == "wise-ft" else {}
        made[f"eval {arm}"] = Stage(items | finished, (training,), (f"eval/{arm}",))
        measured = (f"measured/{arm}.json", *([f"measured/{arm}.recovery.json"] if config.eval.recovery else []))
        made[f"measure {arm}"] = Stage(read("measure", "n_probe_texts", "svd_layers", "recovery"),
                                       (base, made[f"eval {arm}"]), measured)
    if "self-output" in arms:
        made["answer self-output"] = answers
    if texts := tuple(text for arm, text in base_text.items() if arm in arms):
        made["base text"] = Stage({}, texts, (*_journal("base-turns"), *_journal("base-answers")))
    return made


def _journal(name: str) -> tuple[str, str]:
    return f"{name}.jsonl", f"{name}.settings.json"
