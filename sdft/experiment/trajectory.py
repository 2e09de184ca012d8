"""Along training: task accuracy, forgetting and KL of an arm on few items, every `eval_every` optimiser steps.

    step 0            the base model, from its answers in eval/base
    every eval_every  the arm as it is: it answers the items below, and its drift is measured
    the last step     the trained arm, from its answers in eval/<arm> and its drift: the end of the run exactly

A line of <arm>/trajectory.jsonl is a TrajectoryPoint (sdft/results.py). Training is the same with and without it. An
interrupted run does not measure a point again. The items are the same at every step:

    accuracy          the first ITEMS items of the task's suite
    F                 of the first ITEMS items of `elaborate`, those that the base model solves; only these are answered
    KL@32             the first 32 tokens of ANSWERS of the base model's general answers, evenly spread; the same with
                      measure = main and with measure = all

sdft/measure/matched.py compares two arms where their accuracy is equal (arXiv 2401.05605).

    sdft run --eval_every=20
"""
from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from statistics import fmean
from typing import cast

from sdft.data.chat import Example
from sdft.experiment.arms import Arm
from sdft.experiment.context import DRIFT_ANSWERS, Context, evenly, first_items, solved_by
from sdft.files import Journal
from sdft.measure.abilities import evaluate
from sdft.measure.forgetting import solved
from sdft.measure.matched import matched
from sdft.measure.outputs.drift import BaseView, base_view, drift
from sdft.model.llama import Llama
from sdft.results import AnswerDrift, AnswerLine, ArmMeasures, Drift, LogLine, TrainingSummary, TrajectoryPoint
from sdft.tasks import Suite, elaborate_suite

ITEMS = 48          # of each suite: one generation at a time answers them all, and an item weighs 2 points of accuracy
ANSWERS = 16
TOKENS = 32         # of each answer, as in KL@32


class Trajectory:
    """The points of one arm. An instance is the argument `watch` of `train`."""

    def __init__(self, context: Context, arm: Arm, model: Llama):
        self.context, self.arm, self.model = context, arm, model
        self.suites = [*first_items(context.task.suites[0], ITEMS), _elaborate(context)]
        self.journal = Journal(context.folder / arm.folder / "trajectory.jsonl")
        self.steps = {point["step"] for point in self.journal.read()}
        if 0 not in self.steps:
            self._append(0, context.answers["base"], [], 0.0, 0.0)

    def __call__(self, line: LogLine) -> None:
        """Measure the model as it is after the step of `line`, where its turn has come."""
        if line["step"] % self.context.eval_every or line["step"] in self.steps:
            return
        context, started = self.context, time.perf_counter()
        answers = evaluate(self.model, context.tokenizer, self.suites, None, context.sampling, context.batch_size,
                           context.chat)
        drifts = drift(self.model, self.view, f"drift, {self.arm.name}")["answers"]
        self._append(line["step"], answers, drifts, line["delta_norm"], time.perf_counter() - started)

    def finish(self, training: TrainingSummary, general: Drift) -> None:
        """Add the point of the trained arm, from its answers and its drift `general`; report the time of all points."""
        if self.arm.folder != self.arm.name:                    # wise-ft: what was watched is the training of sft
            return
        if training["steps"] not in self.steps:
            ids = {answer.id for answer in self.answers}
            drifts = [answer for answer in general["answers"] if answer["id"] in ids]
            self._append(training["steps"], self.context.answers[self.arm.name], drifts, training["delta_norm"], 0.0)
        seconds = [point["seconds"] for point in self.journal.read() if point["seconds"]]
        of_arm = sum(spent for stage, spent in self.context.seconds().items() if stage.endswith(f" {self.arm.name}"))
        print(f"trajectory, {self.arm.name}: {len(seconds)} points took {sum(seconds):.0f} s of the arm's "
              f"{of_arm:.0f} s ({sum(seconds) / max(of_arm, 0.01):.0%})", file=sys.stderr)

    @cached_property
    def answers(self) -> list[Example]:
        """The base model's general answers that KL@32 is measured on: ANSWERS of those that are measured of any arm."""
        own = self.context.own_answers("base", self.context.general)
        return evenly(evenly(own, DRIFT_ANSWERS), ANSWERS)

    @cached_property
    def view(self) -> BaseView:
        """The base model's hidden states on the beginnings of `answers`."""
        texts = [beginning(answer) for answer in self.answers]
        return self.context.of_base("view along training", texts, lambda: base_view(self.context.base, texts))

    def _append(self, step: int, answers: Mapping[str, Sequence[AnswerLine]], drifts: Sequence[AnswerDrift],
                delta_norm: float, seconds: float) -> None:
        task, elaborate = ([{line["id"]: line for line in answers.get(suite.name, [])}[item.id] for item in suite.items]
                           for suite in self.suites)
        scores, still = [line["score"] or 0.0 for line in task], solved(elaborate)
        kept = [int(line["id"] in still) for line in elaborate]
        lost = len(kept) - sum(kept)
        point: TrajectoryPoint = {
            "step": step, "accuracy": fmean(scores), "scores": scores, "solved_by_base": len(kept), "lost": lost,
            "forgetting": lost / len(kept) if kept else None, "kept": kept, "kl32": mean_kl(drifts),
            "delta_norm": delta_norm, "seconds": round(seconds, 2)}
        with self.journal as journal:
            journal.append(point)
        self.steps.add(step)


def _elaborate(context: Context) -> Suite:
    """Those of the first ITEMS items of `elaborate` that the base model solves; none where a run has no `elaborate`."""
    suite = next((suite for suite in context.suites if suite.name == "elaborate"),
                 replace(elaborate_suite(), items=[]))
    return solved_by(context.answers["base"].get(suite.name, []), replace(suite, items=suite.items[:ITEMS]))


def beginning(answer: Example) -> Example:
    """An answer up to its first TOKENS target tokens: causal attention gives them the same distributions."""
    end = next((index for index, count in enumerate(accumulate(answer.mask), 1) if count == TOKENS), len(answer.mask))
    return replace(answer, tokens=answer.tokens[:end], mask=answer.mask[:end])


def mean_kl(drifts: Sequence[AnswerDrift]) -> float:
    """KL@32: the mean over the first TOKENS tokens of all answers; 0 without answers (the base model)."""
    counts = [min(TOKENS, answer["tokens"]) for answer in drifts]
    total = math.fsum(answer["kl32"] * count for answer, count in zip(drifts, counts, strict=True))
    return total / max(1, sum(counts))


def compare_trajectories(context: Context, arms: Mapping[str, ArmMeasures]) -> None:
    """Add to every arm F − F of sft at equal task accuracy, where both have a trajectory."""
    points = {arm: cast(list[TrajectoryPoint], Journal(context.folder / arm / "trajectory.jsonl").read())
              for arm in arms}
    for arm, measures in arms.items():
        if arm != "sft" and points[arm] and points.get("sft") and (result := matched(points[arm], points["sft"])):
            measures["matched"] = result
