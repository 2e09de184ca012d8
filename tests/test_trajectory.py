"""Accuracy and forgetting along training, and two arms compared where their task accuracy is equal."""
from __future__ import annotations

import random

import pytest

from sdft.errors import SdftError
from sdft.measure.matched import matched


def _points(curve, n_task=10, n=10, every=10):
    """A trajectory through (task items solved, items lost), the first of them in both suites."""
    return [{"step": every * index, "scores": [1.0] * solved + [0.0] * (n_task - solved),
             "kept": [0] * lost + [1] * (n - lost)} for index, (solved, lost) in enumerate(curve)]


# ------------------------------------------------------------------------------------------------- at equal accuracy
def test_a_known_crossing_is_read_off_exactly():
    """sft: 2 → 8 of 10 solved while 0 → 6 are lost; sdft ends at 5 solved, 1 lost. At a* = .5 sft is halfway: F .3."""
    sft, sdft = _points([(2, 0), (8, 6), (9, 8)]), _points([(2, 0), (4, 0), (5, 1)])
    result = matched(sdft, sft)
    assert result["accuracy"] == 0.5 and result["n"] == result["n_task"] == 10
    assert (result["forgetting"], result["step"]) == (0.1, 20)
    assert (result["forgetting_with"], result["step_with"]) == (0.3, 5)
    assert result["difference"] == 0.1 - 0.3 and result["low"] <= -0.2 <= result["high"]
    mirrored = matched(sft, sdft)
    assert mirrored["difference"] == pytest.approx(0.2) and mirrored["low"] == pytest.approx(-result["high"])


def test_an_accuracy_that_falls_again_is_crossed_at_its_first_rise():
    sft, sdft = _points([(2, 0), (6, 4), (3, 9), (7, 9)]), _points([(2, 0), (3, 0), (2, 5), (4, 2)])
    result = matched(sdft, sft)
    assert result["accuracy"] == 0.4
    assert (result["step_with"], result["forgetting_with"]) == (5, 0.2)
    assert (result["step"], result["forgetting"]) == (30, 0.2)       # from 2 (not 3) solved to 4


def test_nothing_is_compared_where_nothing_was_learned():
    learned, same, worse = _points([(2, 0), (8, 6)]), _points([(2, 0), (2, 6)]), _points([(2, 0), (1, 6)])
    assert matched(learned, same) is matched(worse, learned) is None
    assert matched(_points([(2, 0), (8, 0)], n=0), _points([(2, 0), (8, 0)], n=0)) is None


def test_the_interval_is_a_bootstrap_over_items_of_both_suites():
    """Against plain Python that draws items one by one, and follows each draw from curves to crossing."""
    draw = random.Random(1)
    sides = [[{"step": 10 * index, "scores": [float(draw.random() < 0.2 + 0.2 * index) for _ in range(40)],
               "kept": [int(draw.random() > rate * index) for _ in range(30)]} for index in range(4)]
             for rate in (0.05, 0.2)]
    sides[1][0] = sides[0][0]                               # the base model
    result = matched(*sides)
    differences = []
    for _ in range(4000):
        task, items = draw.choices(range(40), k=40), draw.choices(range(30), k=30)
        curves = [[(sum(p["scores"][i] for i in task) / 40, sum(1 - p["kept"][i] for i in items) / 30) for p in side]
                  for side in sides]
        level = min(max(accuracy for accuracy, _ in curve) for curve in curves)
        at = []
        for curve in curves:
            after = next(index for index, (accuracy, _) in enumerate(curve) if accuracy >= level)
            (a, f), (b, g) = curve[max(0, after - 1)], curve[after]
            at.append(f + (level - a) / (b - a) * (g - f) if b > a else f)
        differences.append(at[0] - at[1])
    differences.sort()
    # Quantiles of 4000 and of 10,000 draws differ by sampling: their standard error is about .006 here.
    assert result["low"] == pytest.approx(differences[100], abs=0.02)
    assert result["high"] == pytest.approx(differences[3900], abs=0.02)
    assert matched(*sides) == result                        # the same values give the same interval


def test_trajectories_on_different_items_are_refused():
    with pytest.raises(SdftError, match="on the same items"):
        matched(_points([(2, 0), (8, 6)]), _points([(2, 0), (8, 6)], n=9))
