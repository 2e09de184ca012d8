"""Statistics over the runs of a study: differences paired by seed, and correlations of columns.

Training seeds are few, so a difference counts as detected only where all of them agree in its sign *and* Student's t
test of the paired differences (two-sided) is below 0.05 after Holm's adjustment. The end point, over its conditions, is
one family of tests; all other comparisons of the study are a second. Everything else is "no difference detected". In
either case the seeds that agree are counted, and those whose own interval, over test items, excludes zero. (A
permutation of the signs assumes less than Student, but with 3 seeds its p is never below 0.25.)

A mean score of a suite is compared together with what was lost of the suite: a mean hides what cancels in it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import numpy as np

from sdft.measure.statistics import LEVEL, RESAMPLES, holm
from sdft.studies import results as types
from sdft.studies.columns import FORGETTING, SCORE, items_of, more_is_better, own_interval, value
from sdft.studies.specification import SEED

Pairs = Sequence[tuple[float, float]]
RatePath = list[tuple[float, float, float, float]]      # learning rate, x, y, score
MATCHED = "matched.forgetting"
ROUNDED = 1e-6              # relative rounding of the numbers of cells.json


def statistics(info: types.StudyInfo, results: Sequence[types.RunResult]) -> types.StudyStatistics:
    """The part "statistics" of cells.json: comparisons of the end point, correlations of the pairs in `plots`."""
    primary = info["primary"]
    first, *columns = compared_columns(primary, info["plots"], results)
    named = compare(results, {**primary, "column": first})
    secondary = [comparison for column in columns for comparison in compare(results, {**primary, "column": column})]
    secondary += [comparison for control in info.get("controls", []) for column in (first, task_score(results))
                  for comparison in compare(results, {**primary, "column": column, "against": control})]
    matched = [comparison for column in info["matched"] for comparison in match(results, primary, column)]
    judge(named)
    learned = [each for each in secondary if (each["column"], each["against"]) == (task_score(results),
                                                                                   primary["against"])]
    judge(learned)                          # a family of its own, since forgetting says little without what was learned
    judge([each for each in [*secondary, *matched] if each not in learned])
    return {"comparisons": [*named, *secondary], "matched": matched,
            "correlations": [correlate(results, primary["arm"], x, y) for x, y in info["plots"]]}


def judge(family: Sequence[types.SeedDifferences]) -> None:
    """Set p_holm of every comparison of a family that has a p, and whether a difference is detected."""
    tested = [(each, each["p"]) for each in family if each["p"] is not None]
    for (comparison, _), p_holm in zip(tested, holm([p for _, p in tested]), strict=True):
        comparison["p_holm"] = p_holm
    for comparison in family:
        comparison["detected"] = comparison["agree"] == comparison["n"] and comparison.get("p_holm", 1.0) < 1 - LEVEL


def compared_columns(primary: types.EndPoint, plots: list[list[str]], results: Sequence[types.RunResult]) -> list[str]:
    """The end point; the task's score, without which drift says little; every other suite; what was lost of each, where
    it was counted; the plots' columns of the arm, where they differ over the seeds at all (the gap of one set of
    targets does not)."""
    tasks = {run["suite"] for run in results}
    suites = [task_score(results), *(suite for suite in (results[0]["items"] if results else ()) if suite not in tasks)]
    scores = [column for suite in suites for column in (suite, suite + FORGETTING) if column == suite or any(
        value(run, primary["arm"], column, False) is not None for run in results)]
    plotted = [column for pair in plots for column in pair if any(len(
        {value(run, primary["arm"], column, False) for run in group} - {None}) > 1
        for _, group in conditions(results))]
    return list(dict.fromkeys([primary["column"], *scores, *plotted]))


def task_score(results: Sequence[types.RunResult]) -> str:
    """The column of the task's score: its suite, or SCORE where the runs have different tasks."""
    tasks = {run["suite"] for run in results}
    return tasks.pop() if len(tasks) == 1 else SCORE


def compare(results: Sequence[types.RunResult], primary: types.EndPoint) -> list[types.StudyComparison]:
    """One comparison for every condition (a run's values without the seed): arm − against, paired by seed.

    A condition has none where every seed gives the very same two numbers and they are not scores: then nothing was
    repeated. p_holm and detected are set by `judge`.
    """
    column, against = primary["column"], primary["against"]
    comparisons: list[types.StudyComparison] = []
    for condition, group in conditions(results):
        both = [(value(run, primary["arm"], column), _against(results, run, primary)) for run in group]
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        repeated = len(pairs) > 1 and len(set(pairs)) == 1 and items_of(group[0], column) is None
        itself = isinstance(against, dict) and against.items() <= condition.items()
        items = items_of(group[0], column)
        if pairs and not repeated and not itself:
            comparisons.append({
                "condition": condition, **primary, "items": items,
                "values": [a for a, _ in pairs], "against_values": [b for _, b in pairs],
                **paired([a - b for a, b in pairs], 1 / items if items else ROUNDED * float(np.abs(pairs).max())),
                "within": _within(group, primary)})
    return comparisons


def conditions(results: Sequence[types.RunResult]) -> list[tuple[types.Settings, list[types.RunResult]]]:
    """The runs grouped by condition: those of a group differ in their seed alone. In the order of the study."""
    groups: dict[str, tuple[types.Settings, list[types.RunResult]]] = {}
    for run in results:
        condition = {name: setting for name, setting in run["values"].items() if name != SEED}
        groups.setdefault(repr(condition), (condition, []))[1].append(run)
    return list(groups.values())


def is_pilot(results: Sequence[types.RunResult]) -> bool:
    """Whether no condition has a second training seed, so that nothing can be concluded."""
    return all(len(runs) < 2 for _, runs in conditions(results))


def _against(results: Sequence[types.RunResult], run: types.RunResult, primary: types.EndPoint) -> float | None:
    """The value to compare a run's with: of another arm, or of the same arm in a run of other settings. Where the run
    has no such arm, it is that of the only run of the same task and seed that has one."""
    against, column, arm = primary["against"], primary["column"], primary["arm"]
    if isinstance(against, dict):
        others = [other for other in results if other["values"] == {**run["values"], **against}]
        return value(others[0], arm, column) if others else None
    if column == MATCHED and against == "sft":
        return value(run, arm, f"{MATCHED}_with", False)            # of sft, where it reaches the arm's accuracy
    if against not in run["arms"]:
        others = [other for other in results if against in other["arms"] and other["suite"] == run["suite"]
                  and other["values"].get(SEED) == run["values"].get(SEED)]
        return value(others[0], against, column) if len(others) == 1 else None
    return value(run, against, column)


def _within(group: Sequence[types.RunResult], primary: types.EndPoint) -> int | None:
    """In how many runs the run's own interval, over items or answers, excludes zero; None where no run has one."""
    intervals = [own_interval(run, primary["arm"], primary["column"], str(primary["against"])) for run in group]
    excluded = [low > 0 or high < 0 for low, high in filter(None, intervals)]
    return sum(excluded) if excluded else None


def paired(differences: Sequence[float], resolution: float = 0.0) -> types.SeedDifferences:
    """Mean of paired differences, with Student's 95 % interval and two-sided p.

    Differences that scatter less than the values' own `resolution` count as scattered by that: three seeds that are
    each better by one item are no certainty.
    """
    n, mean = len(differences), fmean(differences) if differences else None
    summary: types.SeedDifferences = {"n": n, "differences": list(differences), "mean": mean, "low": None, "high": None,
                                "agree": sum(difference * (mean or 0) > 0 for difference in differences), "p": None}
    if n > 1 and mean is not None:
        error = max(stdev(differences), resolution) / math.sqrt(n)
        half = t_quantile(n - 1) * error
        summary["low"], summary["high"] = mean - half, mean + half
        summary["p"] = t_test(mean / error, n - 1) if error else float(mean == 0)
    return summary


def correlate(results: Sequence[types.RunResult], arm: str, x: str, y: str) -> types.Correlation:
    """Correlation of the columns x and y over all arms of all runs: r of a line, and Spearman's ρ of the ranks.

    A column that only the run has belongs to its arm `arm`. Equal points of several runs count once. low, high: the
    95 % interval of r when whole groups are drawn; a group is an arm under one condition, with all its training seeds.
    """
    points: dict[tuple[str, float, float], types.CorrelationPoint] = {}
    groups: dict[str, list[tuple[float, float]]] = {}
    for condition, group in conditions(results):
        for run in group:
            for name in run["arms"]:
                at_x, at_y = (value(run, name, column, fall_back=name == arm) for column in (x, y))
                if at_x is not None and at_y is not None and name != "base" and (name, at_x, at_y) not in points:
                    points[name, at_x, at_y] = {"arm": name, "values": run["values"], "x": at_x, "y": at_y}
                    groups.setdefault(repr((name, condition)), []).append((at_x, at_y))
    r, draws = correlation(list(groups.values()))
    low, high = interval(draws)
    ordered = zip(ranks(np.array([x for _, x, _ in points])), ranks(np.array([y for _, _, y in points])), strict=True)
    return {"x": x, "y": y, "n": len(points), "groups": len(groups), "r": r, "low": low, "high": high,
            "ranks": correlation([list(ordered)])[0], "points": list(points.values())}


def match(results: Sequence[types.RunResult], primary: types.EndPoint, equal: str) -> list[types.MatchedComparison]:
    """The end point of the primary arm minus that of every other arm, where both have the same value of `equal`.

    The runs of an arm that differ in their learning rate alone make a path: straight from one rate to the next, and not
    continued beyond the last. Where a path passes the value more than once, its best end point counts. differences:
    for each seed the mean over the points of the primary arm that the other's path of this seed reaches.
    """
    arm_paths = paths(results, equal, primary["column"])
    best = max if more_is_better(primary["column"], results) else min
    points = sorted({(seed, *point) for arm, _, seeds in arm_paths if arm == primary["arm"]
                     for seed, path in seeds.items() for point in path}, key=repr)
    size = max((abs(y) for _, _, _, y, _ in points), default=0.0)
    comparisons: list[types.MatchedComparison] = []
    for arm, condition, seeds in (path for path in arm_paths if path[0] != primary["arm"]):
        apart: dict[Any, list[tuple[float, float]]] = {}        # by seed: differences of end point and score
        for seed, _, x, y, score in points:
            if other := crossing([point[1:] for point in seeds.get(seed, [])], x, best):
                apart.setdefault(seed, []).append((y - other[0], score - other[1]))
        by_seed = [tuple(map(fmean, zip(*pairs, strict=True))) for pairs in apart.values()]
        comparisons.append({
            "equal": equal, **primary, "against": arm, "condition": condition,
            "items": items_of(results[0], primary["column"]), "points": sum(map(len, apart.values())),
            "of": len(points),
            "score": fmean(score for _, score in by_seed) if by_seed else None,
            **paired([difference for difference, _ in by_seed], ROUNDED * size)})
    return comparisons


def paths(results: Sequence[types.RunResult], x: str, y: str) -> list[tuple[str, types.Settings, dict[Any, RatePath]]]:
    """Every trained arm under every condition: arm, condition, and for each seed its path over the learning rates. An
    arm that is the same under several conditions, as sft is for all mix ratios, occurs once, with condition {}."""
    by_condition: dict[str, tuple[str, types.Settings, dict[Any, RatePath]]] = {}
    for run in results:
        condition = {name: setting for name, setting in run["values"].items() if name not in (SEED, "lr")}
        for arm in run["arms"]:
            at_x, at_y, score = (value(run, arm, column, False) for column in (x, y, SCORE))
            if at_x is not None and at_y is not None and score is not None and arm != "base":
                seeds = by_condition.setdefault(repr((arm, condition)), (arm, condition, {}))[2]
                seeds.setdefault(run["values"].get(SEED), []).append((run["values"].get("lr", 0.0), at_x, at_y, score))
    once: dict[str, tuple[str, types.Settings, dict[Any, RatePath]]] = {}
    for arm, condition, seeds in by_condition.values():
        path = {seed: sorted(points) for seed, points in seeds.items()}
        shared = (key := repr((arm, path))) in once
        once[key] = (arm, {} if shared else condition, path)
    return list(once.values())


def crossing(path: Sequence[tuple[float, float, float]], x: float,
             best: Callable[..., Any] = min) -> tuple[float, float] | None:
    """(y, score) of the best y (min or max) where the straight lines through these (x, y, score) pass x, or None."""
    passed = [(y, score) for at, y, score in path if at == x]
    for (x0, y0, score0), (x1, y1, score1) in pairwise(path):
        if min(x0, x1) < x < max(x0, x1):
            passed.append((y0 + (y1 - y0) * (x - x0) / (x1 - x0), score0 + (score1 - score0) * (x - x0) / (x1 - x0)))
    return best(passed, default=None, key=lambda point: point[0])


def correlation(clusters: Sequence[Pairs]) -> tuple[float | None, np.ndarray]:
    """Pearson's r of all pairs (x, y), and of every draw of as many whole clusters with replacement: (RESAMPLES,).

    r is None, and of a draw NaN, where x or y does not vary or there are fewer than 3 pairs. Fewer than 3 clusters give
    no draws. The draws depend on the number of clusters alone, so two measures on the same clusters have paired draws.
    """
    pairs = np.array([pair for cluster in clusters for pair in cluster], dtype=np.float64).reshape(-1, 2)
    if len(pairs) < 3:
        return None, np.empty(0)
    spread = pairs.std(0)
    pairs = (pairs - pairs.mean(0)) / np.where(spread > 0, spread, 1)
    parts = np.split(pairs, np.cumsum([len(cluster) for cluster in clusters])[:-1])
    sums = np.array([[len(part), *part.sum(0), *(part**2).sum(0), part.prod(1).sum()] for part in parts])     # (k, 6)
    r = None if np.isnan(whole := _r(sums.sum(0))) else round(float(whole), 6)
    if (k := len(clusters)) < 3:
        return r, np.empty(0)
    times = np.random.default_rng(0).multinomial(k, np.full(k, 1 / k), RESAMPLES)                   # (RESAMPLES, k)
    return r, np.where((times > 0) @ sums[:, 0] < 3, np.nan, _r(times @ sums))


def _r(sums: np.ndarray) -> np.ndarray:
    """Pearson's r from n, Σx, Σy, Σx², Σy², Σxy on the last axis; NaN where x or y does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread_x, spread_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
    known = (spread_x > 1e-12) & (spread_y > 1e-12)
    return np.where(known, (xy / n - x * y / n**2) / np.sqrt(np.where(known, spread_x * spread_y, 1)), np.nan)


def interval(draws: np.ndarray) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of the draws that are not NaN; None where there is none."""
    if not len(known := draws[~np.isnan(draws)]):
        return None, None
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return round(float(low), 6), round(float(high), 6)


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((last - counts + 1 + last) / 2)[inverse]


def t_test(t: float, degrees: int) -> float:
    """P(|T| ≥ |t|) of Student's t: with T = √ν·tan u, the density of u is proportional to cos^(ν−1) u."""
    angles, below = _t_distribution(degrees)
    return float(1 - np.interp(math.atan(abs(t) / math.sqrt(degrees)), angles, below))


def t_quantile(degrees: int) -> float:
    """The t with P(|T| ≤ t) = 95 %."""
    angles, below = _t_distribution(degrees)
    return math.sqrt(degrees) * math.tan(float(np.interp(LEVEL, below, angles)))


def _t_distribution(degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """u from 0 to π/2 and P(|U| ≤ u), by the trapezoidal rule on 20,000 steps: exact to 1e-8."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return angles, below / below[-1]
