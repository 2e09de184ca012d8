"""What the cells of a study say about its end point: differences paired by seed, and what correlates with what.

Training seeds are few, so a difference is told as detected only where all of them agree in its sign *and* Student's t
test of the paired differences (two-sided) is below 0.05 by Holm. The end point, over its conditions, is one family; all
else that the study compares (what was learned, other columns, arms at equal values) is a second. Everything else is "no
difference detected"; the seeds that agree are counted in either case. (A permutation of the signs assumes less than
Student, but of 3 seeds it has no p below 0.25.)

    statistics(about, rows) → {"comparisons": […], "correlations": […], "matched": […]}
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import numpy as np

from sdft.measure.statistics import LEVEL, RESAMPLES, holm
from sdft.studies.specification import SEED

Row = dict[str, Any]
Pairs = Sequence[tuple[float, float]]
Way = list[tuple[float, float, float, float]]           # learning rate, x, y, score
SCORE = "score"             # a column: the task's own score, where the cells have different tasks
ROUNDED = 1e-6              # of a number of cells.json, relative
LIKENESS = ("top1", "rouge_l", "bleu", "cosine", "cka")     # of these more is less drift


def statistics(about: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The part "statistics" of cells.json: comparisons of the end point, correlations of the pairs in `plots`."""
    primary = about["primary"]
    first, *others = compared_columns(primary, about["plots"], rows)
    named = compare(rows, primary | {"column": first})
    beside = [row for column in others for row in compare(rows, primary | {"column": column})]
    matched = [row for column in about["matched"] for row in match(rows, primary, column)]
    judge(named)
    judge([*beside, *matched])
    return {"comparisons": [*named, *beside], "matched": matched,
            "correlations": [correlate(rows, primary["arm"], x, y) for x, y in about["plots"]]}


def judge(family: Sequence[Row]) -> None:
    """Give every comparison of a family its p_holm, over those that have a p, and whether it is detected."""
    tested = [row for row in family if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    for row in family:
        row["detected"] = row["agree"] == row["n"] and row.get("p_holm", 1.0) < 1 - LEVEL


def compared_columns(primary: Mapping[str, Any], plots: Sequence[Sequence[str]], rows: Sequence[Row]) -> list[str]:
    """The end point; what the task taught, without which nothing is told; every other suite; the plots' columns of the
    arm, where they differ over the seeds at all (the gap of one set of targets does not)."""
    tasks = list(dict.fromkeys(row["suite"] for row in rows))
    others = [suite for suite in (rows[0]["items"] if rows else ()) if suite not in tasks]
    plotted = [column for pair in plots for column in pair if any(len(
        {value(row, primary["arm"], column, False) for row in group} - {None}) > 1 for _, group in conditions(rows))]
    return list(dict.fromkeys([primary["column"], *(tasks if len(tasks) < 2 else [SCORE]), *others, *plotted]))


def compare(rows: Sequence[Row], primary: Mapping[str, Any]) -> list[Row]:
    """One comparison for every condition (a cell's own settings without the seed): arm − against, paired by seed.

    None where every seed gives the very same two numbers, unless they are scores: then nothing was repeated.

    condition, column, arm, against; items: of the suite whose score it is, else None; values, others, differences: seed
    by seed; n, mean, low, high, agree, p: see `paired`; p_holm, detected: see `judge`. within: in how many of the seeds
    that seed's own interval, over test items or answers, leaves zero out (None where the runs have none).
    """
    found = []
    for condition, group in conditions(rows):
        pairs = [(value(row, primary["arm"], primary["column"]), _against(rows, row, primary)) for row in group]
        pairs = [pair for pair in pairs if None not in pair]
        repeated = len(pairs) > 1 and len(set(pairs)) == 1 and primary["column"] not in group[0].get("items", {})
        itself = isinstance(primary["against"], dict) and primary["against"].items() <= condition.items()
        if pairs and not repeated and not itself:
            found.append({"condition": condition, **primary, "items": _items(group[0], primary["column"]),
                          "values": [a for a, _ in pairs], "others": [b for _, b in pairs],
                          **paired([a - b for a, b in pairs], _resolution(group[0], primary["column"], pairs)),
                          "within": _within(group, primary)})
    return found


def conditions(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """The cells that differ in their seed alone, together, in the order of the study."""
    found: dict[str, tuple[Row, list[Row]]] = {}
    for row in rows:
        condition = {name: setting for name, setting in row["values"].items() if name != SEED}
        found.setdefault(repr(condition), (condition, []))[1].append(row)
    return list(found.values())


def value(row: Row, arm: str, column: str, fall_back: bool = True) -> float | None:
    """A column of an arm; where the arm has none of this name, that of its cell."""
    if arm not in row["arms"]:
        return None
    column = row["suite"] if column == SCORE else column
    return row["arms"][arm].get(column, row["measures"].get(column) if fall_back else None)


def _against(rows: Sequence[Row], row: Row, primary: Mapping[str, Any]) -> float | None:
    """What the cell's value is set against: another arm of it, or the same arm in the cell with other settings."""
    if isinstance(primary["against"], str):
        return value(row, primary["against"], primary["column"])
    other = next((each for each in rows if each["values"] == row["values"] | primary["against"]), None)
    return other and value(other, primary["arm"], primary["column"])


def _within(group: Sequence[Row], primary: Mapping[str, Any]) -> int | None:
    """How many cells tell arm and other arm apart by themselves, pairing what both answered."""
    apart = []
    for row in group:
        suite = row["suite"] if primary["column"] == SCORE else primary["column"]
        where = "general" if suite == "kl" else f"suites.{suite}"
        where += f".against_{primary['against']}"
        ends = [value(row, primary["arm"], f"{where}.{end}", False) for end in ("low", "high")]
        apart += [ends[0] > 0 or ends[1] < 0] if None not in ends else []
    return sum(apart) if apart else None


def _resolution(row: Row, column: str, pairs: Sequence[tuple[float, float]]) -> float:
    """The least step of a column: one item of a suite; of other numbers what cells.json has rounded away."""
    items = _items(row, column)
    return 1 / items if items else ROUNDED * max(abs(number) for pair in pairs for number in pair)


def _items(row: Row, column: str) -> int | None:
    """How many test items a score is the mean of; None where the column is no suite's score."""
    return row.get("items", {}).get(row["suite"] if column == SCORE else column)


def paired(differences: Sequence[float], resolution: float = 0.0) -> Row:
    """Mean of paired differences of n seeds, Student's 95 % interval (low, high) and two-sided p, None for fewer than
    two; agree: how many have the mean's sign.

    Differences that scatter less than the values' own `resolution` are taken to scatter by that: three seeds that are
    each one item better are no certainty.
    """
    n, mean = len(differences), fmean(differences) if differences else None
    agree = sum(difference * mean > 0 for difference in differences)
    if n < 2:
        return {"n": n, "differences": list(differences), "mean": mean, "low": None, "high": None, "agree": agree,
                "p": None}
    error = max(stdev(differences), resolution) / math.sqrt(n)
    half = t_quantile(n - 1) * error
    p = t_test(mean / error, n - 1) if error else float(mean == 0)
    return {"n": n, "differences": list(differences), "mean": mean, "low": mean - half, "high": mean + half,
            "agree": agree, "p": p}


def correlate(rows: Sequence[Row], arm: str, x: str, y: str) -> Row:
    """How column x goes with column y over all arms of all cells: r of a line, ranks: of the ranks (Spearman's ρ).

    Where only the cell has a column, it belongs to its arm `arm`. What several cells share is one point. low, high: the
    95 % interval of r where whole groups are drawn, each an arm under one condition at all of its training seeds.
    """
    found: dict[tuple[str, float, float], Row] = {}
    groups: dict[str, list[tuple[float, float]]] = {}
    for condition, cells in conditions(rows):
        for row in cells:
            for name in row["arms"]:
                pair = [value(row, name, column, fall_back=name == arm) for column in (x, y)]
                if None not in pair and name != "base" and (name, *pair) not in found:
                    found[name, *pair] = {"arm": name, "values": row["values"], "x": pair[0], "y": pair[1]}
                    groups.setdefault(repr((name, condition)), []).append((pair[0], pair[1]))
    r, draws = correlation(list(groups.values()))
    low, high = interval(draws)
    ordered = zip(*(ranks(np.array([point[axis] for point in found.values()])) for axis in "xy"), strict=True)
    return {"x": x, "y": y, "n": len(found), "groups": len(groups), "r": r, "low": low, "high": high,
            "ranks": correlation([list(ordered)])[0], "points": list(found.values())}


def match(rows: Sequence[Row], primary: Mapping[str, Any], equal: str) -> list[Row]:
    """The end point of the primary arm minus that of every other arm where both are equal in the column `equal`.

    An arm's cells that differ in their learning rate alone make a path, straight from one rate to the next and not
    continued beyond the last. Where it passes the value more than once, its best end point counts: the least drift
    that this arm has there. points: how many of the primary arm another's path of the same seed reaches, of: all.
    differences: the mean of them in each of the n seeds, and of these mean, low, high, agree, p: see `paired`.
    score: how much more the primary arm scores on the task there, a share (of the mean over the same seeds).
    condition: the other's settings beside learning rate and seed; {} where they make no difference to it.
    """
    found, known = [], paths(rows, equal, primary["column"])
    best = max if more_is_better(primary["column"], rows) else min
    own = sorted({(seed, *point) for arm, _, seeds in known if arm == primary["arm"]
                  for seed, points in seeds.items() for point in points}, key=repr)
    for arm, condition, seeds in (row for row in known if row[0] != primary["arm"]):
        apart: dict[Any, list[tuple[float, float]]] = {}                # by seed (end point, score) minus the other's
        for seed, _, x, y, score in own:
            if other := crossing([point[1:] for point in seeds.get(seed, [])], x, best):
                apart.setdefault(seed, []).append((y - other[0], score - other[1]))
        by_seed = [tuple(map(fmean, zip(*pairs, strict=True))) for pairs in apart.values()]
        size = max((abs(y) for _, _, _, y, _ in own), default=0.0)
        found.append({"equal": equal, **primary, "against": arm, "condition": condition,
                      "items": _items(rows[0], primary["column"]), "points": sum(map(len, apart.values())),
                      "of": len(own), "score": fmean(score for _, score in by_seed) if by_seed else None,
                      **paired([difference for difference, _ in by_seed], ROUNDED * size)})
    return found


def more_is_better(column: str, rows: Sequence[Row]) -> bool:
    """Whether more of an end point is less drift or more ability: scores, and likenesses to the seed."""
    return column == SCORE or column.endswith(LIKENESS) or any(column in row.get("items", {}) for row in rows)


def paths(rows: Sequence[Row], x: str, y: str) -> list[tuple[str, Row, dict[Any, Way]]]:
    """Every trained arm under every condition: arm, condition, and by seed its way from rate to rate.

    An arm that several conditions share, as sft is shared over ratios, is there once, with the condition {}.
    """
    found: dict[str, tuple[str, Row, dict[Any, Way]]] = {}
    for row in rows:
        condition = {name: setting for name, setting in row["values"].items() if name not in (SEED, "lr")}
        for arm in row["arms"]:
            point = tuple(value(row, arm, column, False) for column in (x, y, SCORE))
            if None not in point and arm != "base":
                seeds = found.setdefault(repr((arm, condition)), (arm, condition, {}))[2]
                seeds.setdefault(row["values"].get(SEED), []).append((row["values"].get("lr", 0.0), *point))
    once: dict[str, tuple[str, Row, dict[Any, Way]]] = {}
    for arm, condition, seeds in found.values():
        own = {seed: sorted(points) for seed, points in seeds.items()}
        shared = (key := repr((arm, own))) in once
        once[key] = (arm, {} if shared else condition, own)
    return list(once.values())


def crossing(path: Sequence[tuple[float, float, float]], x: float, best: Any = min) -> tuple[float, float] | None:
    """(y, score) of the best y (min or max) at which straight pieces through these (x, y, score) pass x, or None."""
    found = [(y, score) for at, y, score in path if at == x]
    for (x0, *start), (x1, *end) in pairwise(path):
        if min(x0, x1) < x < max(x0, x1):
            found.append(tuple(a + (b - a) * (x - x0) / (x1 - x0) for a, b in zip(start, end, strict=True)))
    return best(found, default=None, key=lambda passed: passed[0])


def correlation(clusters: Sequence[Pairs]) -> tuple[float | None, np.ndarray]:
    """Pearson's r of all pairs (x, y), and of every draw of as many whole clusters with replacement: (RESAMPLES,).

    None, and NaN of a draw, where x or y does not vary or there are fewer than 3 pairs; no draws of fewer than 3
    clusters. The draws depend on the number of clusters alone: those of two measures on the same clusters are paired.
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
    """The 95 % percentile interval of draws, those left out that are NaN; None where none is left."""
    if not len(known := draws[~np.isnan(draws)]):
        return None, None
    low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return round(float(low), 6), round(float(high), 6)


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest …; equal values share the mean of their ranks."""
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
