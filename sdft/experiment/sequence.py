"""Later stages of a run: train every arm on further tasks, one after the other, and measure what became of the earlier.

    base ─task A─→ sft ──task B─→ sft ──task C─→ sft         after each stage: the first suite of every task so far, and
         ─task A─→ sdft ─task B─→ sdft ─task C─→ sdft        `elaborate`, with transfer (sdft/measure/transfer.py)

A stage trains the adapter of the stage before further. In a later stage the model as it is then takes the part of the
base model: sdft trains on its own rewrites, replay and self-output on its own texts, stm and flow weight by its own
probabilities. Arms that need the base model itself are refused. Scores are always compared with the base model's.

    <run>/then/1-gsm8k/  <arm>/rewrites.jsonl  distilled.jsonl  log.jsonl  state.safetensors  adapter…
                         eval/base/gsm8k.jsonl  eval/<arm>/<suite>.jsonl

    sdft run --task=openfunctions --data=FOLDER --then=gsm8k
"""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sdft.distill import Distilled, choose, mix, rewrite, write_distilled
from sdft.errors import SdftError
from sdft.experiment.arms import TRAINED_AS, arms_of, settings_of
from sdft.experiment.context import Context
from sdft.experiment.measure_arm import Answers, compare_suites
from sdft.experiment.settings import Config, of_task, with_later_task
from sdft.measure.abilities import evaluate
from sdft.measure.forgetting import comparisons_of, suite_result
from sdft.measure.statistics import add_holm
from sdft.measure.transfer import compare_retained, transfer
from sdft.model.io.adapters import load_adapter
from sdft.objectives import NEEDS_ADAPTER
from sdft.results import AnswerLine, ArmMeasures, LaterStage, TrainingSummary
from sdft.tasks import Suite, Task
from sdft.train import train


def later_stages(config: Config, context: Context, tasks: Sequence[Task]) -> list[Context]:
    """The context of every later stage of the run of `context`. A line on stderr for each says which settings it takes
    from its task, or from the run where they differ from the first task's. Raises SdftError for arms and records that
    a later stage cannot train on."""
    if tasks:
        check_later_arms(config)
    stages = []
    for number, task in enumerate(tasks, start=1):
        own = with_later_task(config, context.task, task)
        print(f"then {task.name}: {', '.join(f'{name} {value}' for name, value in of_task(own).items())}",
              file=sys.stderr)
        stages.append(Context(own, context.folder / "then" / f"{number}-{task.name}", context.base, context.tokenizer,
                              task))
        stages[-1].check()
    return stages


def check_later_arms(config: Config) -> None:
    """Raise SdftError for an arm, or a method, that cannot be trained on a further task."""
    if config.train.method == "full":
        raise SdftError("then: a later stage trains the adapter of the stage before: expected method = lora, got full")
    for name in config.arms.arms:
        if settings_of(name, config.train).objective in NEEDS_ADAPTER or name in TRAINED_AS:
            reason = "holds the model near the base model, and a later stage does not start from that"
        elif name == "token-matched-sft":
            reason = "is as long as the training of sdft, whose rewrites are another model's in a later stage"
        else:
            continue
        raise SdftError(f"then: arm {name} {reason}; leave out the arm, or the later tasks")


def train_later(context: Context, stages: Sequence[Context], arms: Mapping[str, ArmMeasures]) -> None:
    """Train all arms of a run on the tasks of its later stages; add what each stage did to `arms`, as `then`.

    An interrupted stage resumes from its journals and its saved state of training.
    """
    elaborate = [suite for suite in context.suites if suite.name == "elaborate"]
    trained, before = [arm for arm in arms if arm != "base"], context.folder
    tested = [context.task.suites[0]]                               # the first suite of every task so far
    base, own = dict(context.answers["base"]), {arm: dict(context.answers[arm]) for arm in trained}
    for number, stage in enumerate(stages, start=1):
        name, tested = stage.folder.name, [*tested, stage.task.suites[0]]
        with context.timed(f"then {name}: eval base"):
            base |= _answer(stage, "base", [tested[-1]])
        suites, answers = [*tested, *elaborate], {"base": base}
        results = {"base": _result(stage.task, suites, base, base)}
        for arm in trained:
            load_adapter(stage.base, before / arm)
            with context.timed(f"then {name}: train {arm}"):
                training, accepted = train_stage(stage, arm)
            with context.timed(f"then {name}: eval {arm}"):
                answers[arm] = _answer(stage, arm, suites)
            stage.remove_adapter(stage.base)
            results[arm] = result = _result(stage.task, suites, answers[arm], base)
            result["transfer"] = {suite.name: transfer(*(lines[suite.name] for lines in (answers[arm], own[arm], base)))
                                  for suite in tested[:-1]}
            result["training"] = training
            if accepted is not None:
                result["accepted"] = accepted
            own[arm][tested[-1].name] = answers[arm][tested[-1].name]
        _compare(suites, results, answers, own)
        for arm, result in results.items():
            arms[arm].setdefault("then", {})[str(number)] = result
        before = stage.folder


def train_stage(stage: Context, name: str) -> tuple[TrainingSummary, int | None]:
    """Train arm `name` on the task of a later stage: the model of the stage has the adapter of the stage before.

    Returns the summary of the training, and for sdft how many rewrites it was trained on.
    """
    records = stage.task.train
    targets = originals = stage.examples(records)
    accepted = None
    if name == "sdft":
        distilled = distill(stage, stage.folder / name)
        targets, accepted = stage.examples(distilled), sum(record.source == "rewrite" for record in distilled)
    stage.arms = replace(stage.arms, arms=(name,))
    (arm,) = arms_of(stage, originals, targets)
    training = train(stage.base, arm.targets, arm.settings, stage.folder / arm.folder, base_name=stage.model_name,
                     tokenizer=stage.tokenizer, inputs=arm.inputs, continued=True)
    return training, accepted


def distill(stage: Context, folder: Path) -> list[Distilled]:
    """Steps 1 and 2 of the method: the model as it is rewrites the records, and checks choose among the rewrites."""
    records = stage.task.train
    rewrites = rewrite(stage.base, stage.tokenizer, records, stage.distill_template, stage.sampling, stage.batch_size,
                       stage.chat, folder / "rewrites.jsonl")
    chosen = mix(choose(records, rewrites, stage.task.check, stage.limits), stage.mix_ratio, stage.settings.seed)
    write_distilled(folder / "distilled.jsonl", chosen)
    return chosen


def _answer(stage: Context, arm: str, suites: Sequence[Suite]) -> dict[str, list[AnswerLine]]:
    return evaluate(stage.base, stage.tokenizer, suites, stage.folder / "eval" / arm, stage.sampling, stage.batch_size,
                    stage.chat)


def _result(task: Task, suites: Sequence[Suite], answers: Answers, base: Answers) -> LaterStage:
    return {"task": task.name, "transfer": {},
            "suites": {suite.name: suite_result(suite, answers[suite.name], base[suite.name]) for suite in suites}}


def _compare(suites: Sequence[Suite], results: Mapping[str, LaterStage], answers: Mapping[str, Answers],
             own: Mapping[str, Answers]) -> None:
    """Add each arm's differences from sft, and Holm's adjusted p-values; the comparisons of a stage are one family."""
    for arm in results.keys() - {"base", "sft"} if "sft" in results else ():
        compare_suites(suites, results[arm]["suites"], *(answers[name] for name in (arm, "sft", "base")))
        for suite, found in results[arm]["transfer"].items():
            ours, theirs = ([side[suite] for side in (answers[name], own[name], answers["base"])]
                            for name in (arm, "sft"))
            if difference := compare_retained(ours, theirs):
                found["retained_against_sft"] = difference
    family = [comparison for result in results.values() for suite, found in result["suites"].items()
              for compared in comparisons_of(suite, found).values() for comparison in compared]
    family += [found["raw"] for result in results.values() for found in result["transfer"].values()]
    add_holm(family)
