"""How long a run will take: the operations of its stages, divided by the rates of this machine (rates.py).

How long answers will be is not known before they are written. So the lengths below are typical ones, and the first
stage that writes corrects the later ones (timetable.py).

    sdft plan                   prints the timetable before a run
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from sdft.data.chat import common_prefix, encode_prompt
from sdft.data.templates import get_template
from sdft.distill.rewriting import distill_prompt
from sdft.experiment.arms import FISHER_TEXTS, ON_POLICY, TRAINED_AS, settings_of
from sdft.experiment.context import DRIFT_ANSWERS, GAP_RECORDS, NOISE_ITEMS, evenly, primary_end_points, run_suites
from sdft.experiment.plan import Plan, Shape, generation_flops, needs, read_config, shape_of, training_flops
from sdft.experiment.rates import Rates, measure_rates, read_flops
from sdft.experiment.recovery import CHECKS, DIALOGUES
from sdft.experiment.recovery import ITEMS as RECOVERY_ITEMS
from sdft.experiment.settings import Config, load_later, with_later_task
from sdft.experiment.timetable import Stage, Timetable
from sdft.experiment.trajectory import ITEMS
from sdft.model import tokenizer_at
from sdft.model.config import LlamaConfig
from sdft.model.io.fetch import resolve
from sdft.model.llama import Llama
from sdft.tasks import Suite, Task
from sdft.tokenizers.tokenizer import Tokenizer
from sdft.train.settings import TrainSettings

# Typical lengths in tokens, of the built-in model's answers:
ANSWER = 90             # where nothing limits it: 108 on `instructions`, 113 of at most 128 on `general`
SENTENCE = 25           # around a short reference: rewrites and answers of the built-in task have 26 and 24
LONGER = 1.5            # a step of an objective with a second forward pass, as a multiple of a plain one
ALL = 4.0               # measures of measure = all, as a multiple of those of main: profiled on the built-in run
SOLVED = 0.5            # share of `elaborate` that the base model solves
RECOVERED = 8           # steps after which an arm no longer forgets


def timetable_of(config: Config, task: Task, later: Sequence[Task], model: Llama, tokenizer: Tokenizer,
                 folder: Path) -> Timetable:
    """The timetable of a run in `folder`, at the rates of this machine; they are measured where work is left to do."""
    def table(rates: Rates) -> Timetable:
        return Timetable(stages_of(config, task, later, model.config, tokenizer, rates), folder)

    if (folder / "seconds.jsonl").exists() and not (finished := table(Rates(1.0, 1.0, 1.0))).to_do:
        return finished
    return table(measure_rates(model.config, tokenizer, config.train, model.dtype, model.device,
                               config.generate.generation_batch_size))


def planned_stages(config: Config, task: Task, rates: Rates) -> list[Stage]:
    """All stages of a run that has not begun, on a machine of these rates; no weight is read."""
    path = resolve(config.model.model)
    return stages_of(config, task, load_later(config, task), read_config(path), tokenizer_at(path), rates)


def stages_of(config: Config, task: Task, later: Sequence[Task], model: LlamaConfig, tokenizer: Tokenizer,
              rates: Rates) -> list[Stage]:
    """All stages of a run on `task` and then on `later`, in their order."""
    first = Work(config, task, model, tokenizer, rates)
    stages = list(first.stages())
    for number, each in enumerate(later, start=1):
        work = Work(with_later_task(config, task, each), each, model, tokenizer, rates)
        tested = [each.suites[0] for each in (task, *later[:number])]
        stages += work.later_stages(f"{number}-{each.name}", tested)
    return stages


@dataclass(frozen=True)
class Work:
    """The seconds of one task's stages."""

    config: Config
    task: Task
    model: LlamaConfig
    tokenizer: Tokenizer
    rates: Rates

    def stages(self) -> Iterator[Stage]:
        """The stages of a run, without later tasks."""
        arms = list(dict.fromkeys(self.config.arms.arms))
        suites, general = run_suites(self.config, self.task)
        items = sum(len(suite.items) for suite in (*suites, general))
        answering = self.answers([*suites, general])
        yield Stage("rewrite", self.rewriting, "rewrites.jsonl", self.records)
        plan = self.plan["tokens"]
        gap = self.read(plan["training, an epoch"] + SENTENCE * self.records,
                        2 * plan["targets, an epoch"] + SENTENCE * self.records)
        yield Stage("gap", self.part(self.records, GAP_RECORDS) * gap, "gap.json", 1)
        yield Stage("eval base", answering, "eval/base/*.jsonl", items)
        primary, generate = primary_end_points(self.config.eval.primary, suites), self.config.generate
        again = [self.solved(suite, NOISE_ITEMS) for suite in suites if f"{suite.name}.forgetting" in primary]
        if again and (generate.temperature or generate.generation_batch_size > 1):
            # How many items it solves is not known yet: the first answer counts as the whole of this short stage.
            yield Stage("eval base again", self.answers(again), "eval/base-again/*.jsonl", 1)
        for number, arm in enumerate(arms):
            yield from self.preparation(arm, arms[:number])
            trained = 0.0 if TRAINED_AS.get(arm) in arms[:number] else self.training(arm)
            yield Stage(f"train {arm}", trained + self.watching(suites), f"{TRAINED_AS.get(arm, arm)}/log.jsonl",
                        self.plan["steps"])
            yield Stage(f"eval {arm}", answering, f"eval/{arm}/*.jsonl", items)
            yield Stage(f"measure {arm}", self.measuring(general, first=number == 0), f"measured/{arm}.json", 1)
            if self.config.eval.recovery:
                yield Stage(f"recovery {arm}", self.recovering(suites, general), f"measured/{arm}.recovery.json", 1)

    def later_stages(self, name: str, tested: Sequence[Suite]) -> Iterator[Stage]:
        """The stages of a later task; tested: the first suite of every task so far (sequence.py)."""
        folder = f"then/{name}"
        suites = [*tested, *(suite for suite in run_suites(self.config, self.task)[0] if suite.name == "elaborate")]
        items, answering = sum(len(suite.items) for suite in suites), self.answers(suites)
        yield Stage(f"then {name}: eval base", self.answers(tested[-1:]), f"{folder}/eval/base/*.jsonl",
                    len(tested[-1].items))
        for arm in dict.fromkeys(self.config.arms.arms):
            rewriting = self.rewriting if arm in ("sdft", "self-output") else 0.0
            yield Stage(f"then {name}: train {arm}", rewriting + self.training(arm), f"{folder}/{arm}/log.jsonl",
                        self.plan["steps"])
            yield Stage(f"then {name}: eval {arm}", answering, f"{folder}/eval/{arm}/*.jsonl", items)

    def preparation(self, arm: str, before: Sequence[str]) -> Iterator[Stage]:
        """What the base model writes for an arm, as long as rewrites are."""
        if arm == "self-output":
            yield Stage("answer self-output", self.rewriting, "self-output/answers.jsonl", self.records)
        if arm in ("replay", "ewc") and not {"replay", "ewc"} & set(before):
            share = self.config.arms.replay_fraction
            count = FISHER_TEXTS if arm == "ewc" else max(1, round(share / (1 - share) * self.records))
            yield Stage("base text", self.write([[]] * count, [2.0 * ANSWER] * count), "base-*.jsonl", 2 * count)

    @cached_property
    def plan(self) -> Plan:
        return needs(self.config, self.task)

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.model, self.config.train)

    @property
    def records(self) -> int:
        return len(self.task.train)

    @cached_property
    def rewriting(self) -> float:
        """Seconds of rewriting all records."""
        template = get_template(self.config.distill.template or self.task.distill_template)
        limit = self.config.distill.rewrite_tokens or self.task.rewrite_tokens
        return self.write([distill_prompt(self.tokenizer, record, template, self.config.model.chat)
                           for record in self.task.train],
                          [min(limit, _words(record.response) + SENTENCE) for record in self.task.train])

    def answers(self, suites: Sequence[Suite]) -> float:
        """Seconds of answering all items of the suites."""
        items = [(item, suite.max_new_tokens) for suite in suites for item in suite.items]
        return self.write([encode_prompt(self.tokenizer, item.messages, chat=self.config.model.chat)
                           for item, _ in items],
                          [min(limit, _words(item.reference) + SENTENCE if item.reference else ANSWER)
                           for item, limit in items])

    def training(self, arm: str) -> float:
        """Seconds of training an arm; rewrites are longer than the references that `plan` counts."""
        settings = settings_of(arm, self.config.train)
        flops = self.plan["tflops"]["train, each arm"] * 1e12
        if arm in ("sdft", "self-output", "token-matched-sft"):
            passes = self.plan["steps"] * settings.batch_size
            flops += training_flops(self.shape, SENTENCE * passes, SENTENCE * passes, 0, settings.method == "full")
        written = 0.0
        if arm in ON_POLICY:                                # it answers every record again in every epoch
            written = self.rewriting * self.plan["steps"] * settings.batch_size / self.records
        return flops / self.rates.train * (LONGER if arm in ON_POLICY or arm == "kl" else 1.0) + written

    def watching(self, suites: Sequence[Suite]) -> float:
        """Seconds of the points of an arm's trajectory."""
        if not (every := self.config.eval.eval_every):
            return 0.0
        few = [replace(suites[0], items=suites[0].items[:ITEMS]),
               *(self.solved(suite, round(SOLVED * ITEMS)) for suite in suites if suite.name == "elaborate")]
        return self.plan["steps"] // every * self.answers(few)

    def recovering(self, suites: Sequence[Suite], general: Suite) -> float:
        """Seconds of measuring an arm's recovery, which comes after RECOVERED steps for every k."""
        asked = [self.solved(suite, RECOVERY_ITEMS) for suite in suites if suite.name == "elaborate"]
        ks = [k for k in DIALOGUES if k <= len(general.items)]
        checks = 1 + len(ks) * sum(step <= RECOVERED for step in CHECKS)
        dialogues = RECOVERED * sum(min(k, TrainSettings.batch_size) for k in ks)
        prompt = self.prompts(general) / len(general.items)
        flops = training_flops(self.shape, round(dialogues * (prompt + ANSWER)), dialogues * ANSWER, 0,
                               self.config.train.method == "full")
        return checks * self.answers(asked) + flops / self.rates.train

    def solved(self, suite: Suite, most: int) -> Suite:
        """As many items as the base model solves, at most `most`, evenly spread."""
        return replace(suite, items=evenly(suite.items, min(most, max(1, round(SOLVED * len(suite.items))))))

    def prompts(self, suite: Suite) -> int:
        """The tokens of a suite's prompts."""
        return sum(len(encode_prompt(self.tokenizer, item.messages, chat=self.config.model.chat))
                   for item in suite.items)

    def measuring(self, general: Suite, first: bool) -> float:
        """Seconds of measuring an arm: a pass over the general answers, with two heads; the first arm's also reads
        them with the base model."""
        prompts = self.prompts(general)
        targets = len(general.items) * min(general.max_new_tokens, ANSWER)
        once = self.read(prompts + targets, 2 * targets) + (self.read(prompts + targets, 0) if first else 0.0)
        more = ALL if self.config.eval.measure == "all" else 1.0
        return more * self.part(len(general.items), DRIFT_ANSWERS) * once

    def part(self, available: int, count: int) -> float:
        """The share of the available texts that is measured."""
        return 1.0 if self.config.eval.measure == "all" else min(1.0, count / available)

    def read(self, tokens: int, targets: int) -> float:
        """Seconds of a forward pass."""
        return read_flops(self.shape, tokens, targets) / self.rates.read

    def write(self, prompts: Sequence[Sequence[int]], lengths: Sequence[float]) -> float:
        """Seconds of answering prompts with responses of these lengths; what all prompts share is read once."""
        tokens, written = sum(map(len, prompts)), round(sum(lengths))
        shared = common_prefix([list(prompt) for prompt in prompts]) if len(prompts) > 1 else 0
        pairs = round(sum((len(prompt) + length / 2) * length for prompt, length in zip(prompts, lengths, strict=True)))
        return (self.read(tokens - shared * (len(prompts) - 1), 0)
                + generation_flops(self.shape, 0, written, pairs) / self.rates.write)


def _words(text: str) -> float:
    """About how many tokens a text has."""
    return len(text.split()) * 4 / 3
