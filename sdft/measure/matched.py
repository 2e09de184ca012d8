"""Two arms where their task accuracy is equal, read off their trajectories: never at a fixed number of steps alone.

After equally many steps one arm has usually learned more, and forgetting grows with learning. So both are compared at
the level a*, the highest task accuracy that both reach:

    accuracy                      F of an arm     linear between two points, where its accuracy first reaches a*
       │      ╭──── sft           difference      F of one arm − F of the other
    a* ┼────•╱────•── sdft        interval        items are drawn with replacement, the same for both arms; curves,
       │   ╱   ╱                                  level and crossings follow from each draw (bootstrap)
       └──┴─────┴──── steps

An accuracy that falls again does not matter: the first crossing is that of its running maximum. Where an arm never
exceeds the base model's accuracy, nothing was learned, and nothing is compared. Acquisition-matched comparisons of
fine-tuning: arXiv 2401.05605.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdft.errors import SdftError
from sdft.measure.statistics import LEVEL, RESAMPLES
from sdft.results import Matched, TrajectoryPoint


def matched(points: Sequence[TrajectoryPoint], others: Sequence[TrajectoryPoint], seed: int = 0) -> Matched | None:
    """F of one arm − F of another at the highest task accuracy that both reach, with a 95 % bootstrap interval.

    Each trajectory begins with the base model. None where an arm never exceeds the base model's accuracy, and where the
    base model solves none of the items that F is of. A draw of items in which an arm never exceeds it counts as no
    difference. Raises SdftError for trajectories on different items.
    """
    sides = [_Curves(side) for side in (points, others)]
    n_task, n = (len(items[0]) for items in (sides[0].scores, sides[0].lost))
    if {(len(side.scores[0]), len(side.lost[0])) for side in sides} != {(n_task, n)}:
        raise SdftError("expected two trajectories on the same items, got different ones; measure both in one run")
    if not n:
        return None
    once = [np.ones((1, count)) for count in (n_task, n)]
    level, crossings = _at_equal_accuracy(sides, *once)
    if level[0] <= max(side.scores[0].sum() for side in sides):
        return None
    (forgetting, step), (forgetting_with, step_with) = ((float(f[0]), float(at[0])) for f, at in crossings)
    generator = np.random.default_rng(seed)
    drawn = (generator.multinomial(count, [1 / count] * count, RESAMPLES).astype(float) for count in (n_task, n))
    _, ((ours, _), (theirs, _)) = _at_equal_accuracy(sides, *drawn)
    low, high = np.quantile(ours - theirs, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {"difference": forgetting - forgetting_with, "low": float(low), "high": float(high), "n": n,
            "accuracy": float(level[0]) / n_task, "forgetting": forgetting, "forgetting_with": forgetting_with,
            "step": step, "step_with": step_with, "n_task": n_task}


class _Curves:
    """A trajectory of P points as arrays: steps (P,), scores (P, task items), lost items (P, solved by the base)."""

    def __init__(self, points: Sequence[TrajectoryPoint]):
        self.steps = np.array([point["step"] for point in points], dtype=float)
        self.scores = np.array([point["scores"] for point in points], dtype=float)
        self.lost = 1 - np.array([point["kept"] for point in points], dtype=float)


def _at_equal_accuracy(sides: Sequence[_Curves], task_weights: np.ndarray, weights: np.ndarray
                       ) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """For R draws of items, given how often each was drawn, (R, items): the level (R,) as a sum of scores, and for each
    side F and step (R,) where its score first reaches it."""
    accuracies = [task_weights @ side.scores.T for side in sides]                                   # (R, P) each
    level = np.minimum(*(accuracy.max(1) for accuracy in accuracies))                               # a*
    crossings = []
    for side, accuracy in zip(sides, accuracies, strict=True):
        lost = weights @ side.lost.T                                                                # (R, P)
        draws, after = np.arange(len(level)), (accuracy >= level[:, None]).argmax(1)                # first point at a*
        before = np.maximum(after - 1, 0)
        rise = accuracy[draws, after] - accuracy[draws, before]
        # t in 0 … 1 between the two points; at the first point, where both are the base model, t = 0.
        t = np.divide(level - accuracy[draws, before], rise, out=np.zeros_like(level), where=rise > 0)
        crossings.append((((1 - t) * lost[draws, before] + t * lost[draws, after]) / weights.shape[1],
                          (1 - t) * side.steps[before] + t * side.steps[after]))
    return level, crossings
