"""Intervals and tests. They say how certain a mean is, or a difference between two arms.

Comparisons of two arms are paired by item, since both answered the same questions. The same values and the same seed
give the same interval, bit for bit. sdft/studies/statistics.py compares several training seeds.

    counts of one arm      wilson (interval of a share)
    scores of two arms     paired_difference (interval over items), mcnemar or sign_flip (p), holm (all p together)
    means over tokens      bootstrap_ratio (interval over texts), by_position (means by position in the answer)
    ratios of two arms     bootstrap_ratios (interval of their difference over items)

    from sdft.measure.statistics import bootstrap_mean
    mean, low, high = bootstrap_mean([1, 0, 1, 1])
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist, fmean
from typing import Literal

import numpy as np

from sdft.errors import SdftError
from sdft.results import Band, Comparison

RESAMPLES = 10_000
LEVEL = 0.95
EXACT = 20                    # sign_flip tries all 2^n signs up to this n: a million sums
POSITIONS = (1, 2, 9, 33, 129)          # of a token in its answer, from 1: where each band of by_position begins
_AT_ONCE = 2_000_000          # indices drawn at a time: 16 MB


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean with its 95 % percentile bootstrap interval (Efron 1979): (mean, low, high), in the values' unit."""
    return bootstrap_ratio(values, [1.0] * len(values), seed)


def bootstrap_ratio(totals: Sequence[float], counts: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Σ totals / Σ counts with its 95 % percentile bootstrap interval over items: (ratio, low, high).

    For a mean over the tokens of several texts: whole texts are drawn, each with its sum and its number of tokens.
    Samples in which the counts do not sum to more than 0 are left out of the interval.
    """
    pairs = np.stack([np.asarray(totals, dtype=np.float64), np.asarray(counts, dtype=np.float64)])      # (2, n)
    sums, (total, count) = _resampled(pairs, seed), pairs.sum(1)
    low, high = _interval(_ratio(sums[0], sums[1]))
    return float(total / count), low, high


def bootstrap_ratios(first: tuple[Sequence[float], Sequence[float]], second: tuple[Sequence[float], Sequence[float]],
                     seed: int = 0) -> tuple[float, float, float]:
    """The difference of two ratios Σ totals / Σ counts over the same items, each given as (totals, counts), with its
    95 % percentile bootstrap interval: (difference, low, high). Items are drawn for both at once."""
    values = np.asarray([*first, *second], dtype=np.float64)                                            # (4, n)
    sums, whole = _resampled(values, seed), values.sum(1)
    low, high = _interval(_ratio(sums[0], sums[1]) - _ratio(sums[2], sums[3]))
    return float(whole[0] / whole[1] - whole[2] / whole[3]), low, high


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """The sums over items of `values` (k, n) in every bootstrap sample: (k, RESAMPLES)."""
    n = values.shape[1]
    if n == 0:
        raise SdftError("expected at least one item to take a mean of, got none")
    generator, step = np.random.default_rng(seed), max(1, _AT_ONCE // n)
    drawn = (generator.integers(n, size=(min(step, RESAMPLES - start), n)) for start in range(0, RESAMPLES, step))
    return np.concatenate([values[:, block].sum(-1) for block in drawn], axis=1)


def _ratio(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """totals / counts of every bootstrap sample; NaN where counts is not above 0."""
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of the bootstrap values that are defined."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values[~np.isnan(values)], (tail, 1 - tail))
    return float(low), float(high)


def wilson(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (1927) of the share count / n: (low, high). It has a width at 0 and at 1, too."""
    if not 0 <= count <= n or n == 0:
        raise SdftError(f"expected a count from 0 to n, with n at least 1, got {count} of {n}")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre, width = count + z * z / 2, z * math.sqrt(count * (n - count) / n + z * z / 4)
    low, high = (centre - width) / (n + z * z), (centre + width) / (n + z * z)
    return (low if count else 0.0), (high if count < n else 1.0)


def paired_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean of a − b over the same items, with its 95 % bootstrap interval: (difference, low, high)."""
    return bootstrap_mean(_paired(a, b).tolist(), seed)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided exact p-value of McNemar's test (1947) on right (1) and wrong (0) answers to the same items.

    Under the null hypothesis each of the n items on which the two disagree is a fair coin.
    """
    if not set(a) | set(b) <= {0, 1}:
        raise SdftError("McNemar's test needs scores of 0 and 1; use paired_difference for others")
    difference = _paired(a, b)
    for_a, for_b = int((difference > 0).sum()), int((difference < 0).sum())
    n = for_a + for_b
    below = sum(math.comb(n, i) for i in range(min(for_a, for_b) + 1))
    return min(1.0, 2 * below / 2**n)                       # 2·P(Binomial(n, ½) ≤ min(for_a, for_b))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """The two-sided p-value of Fisher's paired permutation test (1935): without an effect, d is as likely as −d.

    p is the share of all 2^n assignments of signs with |Σ ±d| ≥ |Σ d|, over the n differences other than zero. It is
    exact up to n = 20; beyond, 10,000 assignments are drawn, and the observed one is counted among them. p cannot fall
    below 2^(1−n), however large the differences: 0.25 for n = 3, 0.031 for 6. With scores 0 and 1 it is McNemar's p.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[d != 0]
    least = abs(d.sum()) - 1e-12 * np.abs(d).sum()              # equal up to rounding counts as equal
    if len(d) > EXACT:
        generator = np.random.default_rng(seed)
        larger = sum(abs(d @ generator.choice((-1.0, 1.0), len(d))) >= least for _ in range(RESAMPLES))
        return float((1 + larger) / (1 + RESAMPLES))
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])     # in the end (2^n,)
    return float((np.abs(sums) >= least).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: below 0.05 is significant at a family-wise 5 %."""
    adjusted, running = np.empty(len(p_values)), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted.tolist()


def add_holm(family: Sequence[Comparison]) -> None:
    """Set p_holm of every comparison of one family."""
    for comparison, adjusted in zip(family, holm([comparison["p"] for comparison in family]), strict=True):
        comparison["p_holm"] = adjusted


def by_position(answers: Sequence[Sequence[float]], name: Literal["nll", "kl"]) -> list[Band]:
    """Mean values by position in the answer, in bands that widen; `answers` has one value per token of each answer."""
    longest = max(map(len, answers))
    bands: list[Band] = []
    for first, following in pairwise((*POSITIONS, longest + 1)):
        values = [value for answer in answers for value in answer[first - 1 : following - 1]]
        if values:
            band: Band = {"first": first, "last": min(following - 1, longest), "tokens": len(values)}
            band[name] = fmean(values)
            bands.append(band)
    return bands


def _paired(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    if len(a) != len(b):
        raise SdftError(f"expected two values for every item, got {len(a)} and {len(b)}; join the lines by id first")
    return np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
