"""Intervals against direct computation, known distributions and hand counts."""
from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import sdft.measure.statistics as module
from sdft.errors import SdftError
from sdft.measure.statistics import (
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_ratios,
    holm,
    mcnemar,
    paired_difference,
    sign_flip,
)


def test_the_interval_is_that_of_the_means_of_resamples():
    values = np.random.default_rng(1).exponential(size=80)
    mean, low, high = bootstrap_mean(values)
    other = np.random.default_rng(99)
    means = [other.choice(values, 80).mean() for _ in range(20_000)]
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    # A quantile of 10,000 resampled means wanders by about 0.003 here (2 % of the standard error of 0.11 and less).
    assert (low, high) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.01)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    inside = 0
    for trial in range(100):
        _, low, high = bootstrap_mean(generator.random(60) < 0.7, seed=trial)
        inside += low <= 0.7 <= high
    assert 88 <= inside <= 99           # 95 expected, standard deviation 2; the percentile interval is a little narrow


def test_the_same_seed_gives_the_same_interval_and_chunks_do_not_show():
    values = np.random.default_rng(3).random(700)
    assert bootstrap_mean(values, 4) == bootstrap_mean(list(values), 4) != bootstrap_mean(values, 5)


def test_a_ratio_resamples_whole_texts():
    totals, counts = [1.0, 30.0, 2.0], [10, 30, 40]
    ratio, low, high = bootstrap_ratio(totals, counts)
    assert ratio == pytest.approx(33 / 80)
    assert low == pytest.approx(2 / 40) and high == pytest.approx(1.0)      # 1 in 27 draws one text only


def test_two_ratios_are_resampled_together():
    generator = np.random.default_rng(8)
    counts = generator.random(50) + 0.5
    first, second = (counts * share + generator.normal(size=50) * 0.1 for share in (0.7, 0.4))
    difference, low, high = bootstrap_ratios((first, counts), (second, counts))
    assert difference == pytest.approx(first.sum() / counts.sum() - second.sum() / counts.sum())
    other, found = np.random.default_rng(99), []
    for _ in range(20_000):
        drawn = other.integers(50, size=50)
        found.append((first[drawn].sum() - second[drawn].sum()) / counts[drawn].sum())
    # A quantile of 10,000 wanders by about 2 % of the standard error of 0.02.
    assert (low, high) == pytest.approx(np.quantile(found, (0.025, 0.975)), abs=0.002)


def test_samples_without_a_ratio_do_not_make_the_interval_undefined():
    ratio, low, high = bootstrap_ratio([1, 1, 0, 0], [1, 1, 0, 0])        # 1 in 16 draws neither of the first two
    assert (ratio, low, high) == (1, 1, 1)


def test_constant_values_have_no_width_and_nothing_is_refused():
    assert bootstrap_mean([0.5] * 9) == (0.5, 0.5, 0.5)
    with pytest.raises(SdftError, match="at least one item"):
        bootstrap_mean([])


def test_pairing_removes_what_items_have_in_common():
    items = np.random.default_rng(6).normal(size=200) * 10
    a, b = items + 0.5, items + np.random.default_rng(7).normal(size=200) * 0.1
    difference, low, high = paired_difference(a, b)
    assert difference == pytest.approx((a - b).mean())
    assert 0.45 < low < difference < high < 0.55
    with pytest.raises(SdftError, match="got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_mcnemar_by_hand():
    assert mcnemar([1, 1, 1, 1, 0], [0, 0, 0, 0, 0]) == 2 / 16              # 4 against 0
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1
    a, b = [1] * 14 + [0] * 5 + [1] * 30, [0] * 14 + [1] * 5 + [1] * 30
    assert mcnemar(a, b) == 2 * (1 + 19 + 171 + 969 + 3876 + 11628) / 2**19     # 14 against 5; ties do not count
    with pytest.raises(SdftError, match="0 and 1"):
        mcnemar([0.5], [1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_signs_are_flipped_in_every_way():
    d = [0.3, -0.1, 0.25, 0.4, 0.0, 0.05]
    sums = [abs(sum(sign * value for sign, value in zip(signs, d, strict=True)))
            for signs in product((1, -1), repeat=6)]
    assert sign_flip(d) == sum(value >= sum(d) - 1e-9 for value in sums) / 64
    assert sign_flip([-value for value in d]) == sign_flip(d)
    assert sign_flip([0.3, 0.1, -0.1]) == 6 / 8                 # 0.3 − 0.1 + 0.1 is rounded to a little less
    assert sign_flip([]) == sign_flip([0.0, 0.0]) == 1


def test_flipping_signs_of_0_and_1_is_mcnemar():
    a, b = [1] * 14 + [0] * 5 + [1] * 30, [0] * 14 + [1] * 5 + [1] * 30
    assert sign_flip(np.subtract(a, b)) == mcnemar(a, b)


def test_many_signs_are_drawn(monkeypatch):
    d = np.random.default_rng(8).normal(0.3, 1, size=18)
    exact = sign_flip(d)
    monkeypatch.setattr(module, "EXACT", 5)
    # 10,000 draws of probability p = 0.2 scatter by 0.004
    assert sign_flip(d) == pytest.approx(exact, abs=0.016) and 0.02 < exact < 0.5
    assert sign_flip([1.0] * 40) == 1 / 10_001                  # the observed one is counted, so p is never 0
