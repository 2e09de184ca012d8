"""What the cells of a study say about its end point: differences paired by seed, and what correlates with what.

Training seeds are few, so a difference is told as detected only where all of them agree in its sign *and* Student's t
test of the paired differences (two-sided) is below 0.05 by Holm over the conditions of its column: the end point is one
family, what was learned beside it another, and so on. Everything else is "no difference detected"; the seeds that agree are counted
in either case. (A permutation of the signs assumes less than Student, but of 3 seeds it has no p below 0.25.)

    statistics(about, rows) → {"comparisons": […], "correlations": […], "matched": […]}
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

import numpy as np

from sdft.experiment.study import SEED
from sdft.measure.statistics import LEVEL, holm

Row = dict[str, Any]
SCORE = "score"             # a column: the task's own score, where the cells have different tasks
ROUNDED = 1e-6              # of a number of cells.json, relative


def statistics(about: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The part "statistics" of cells.json: comparisons of the end point, correlations of the pairs in `plots`."""
    primary = about["primary"]
    return {"comparisons": [row for column in compared_columns(primary, about["plots"], rows)
                            for row in compare(rows, primary | {"column": column})],
            "correlations": [correlate(rows, primary["arm"], x, y) for x, y in about["plots"]],
            "matched": [row for column in about["matched"] for row in match(rows, primary, column)]}


def compared_columns(primary: Mapping[str, Any], plots: Sequence[Sequence[str]], rows: Sequence[Row]) -> list[str]:
    """The end point; what the task taught, without which nothing is told; every other suite; the plots' columns of the
    arm, where they differ over the seeds at all (the gap of one set of targets does not)."""
    tasks = list(dict.fromkeys(row["suite"] for row in rows))
    others = [suite for suite in (rows[0]["items"] if rows else ()) if suite not in tasks]
    plotted = [column for pair in plots for column in pair if any(
        len({value(row, primary["arm"], column, False) for row in group} - {None}) > 1 for _, group in conditions(rows))]
    return list(dict.fromkeys([primary["column"], *(tasks if len(tasks) < 2 else [SCORE]), *others, *plotted]))


def compare(rows: Sequence[Row], primary: Mapping[str, Any]) -> list[Row]:
    """One comparison for every condition (a cell's own settings without the seed): arm − against, paired by seed.

    None where every seed gives the very same two numbers, unless they are scores: then nothing was repeated.

    condition, column, arm, against; seeds: n; values, others, differences: seed by seed; mean, low, high: of the
    differences, with the 95 % interval of Student's t (None for a single seed); agree: how many seeds have the mean's
    sign; p: two-sided, p_holm: over the conditions of this column; detected. within: in how many of the seeds that
    seed's own interval, over test items or answers, leaves zero out (None where the runs have none).
    """
    found = []
    for condition, group in conditions(rows):
        pairs = [(value(row, primary["arm"], primary["column"]), _against(rows, row, primary)) for row in group]
        pairs = [pair for pair in pairs if None not in pair]
        repeated = len(pairs) > 1 and len(set(pairs)) == 1 and primary["column"] not in group[0].get("items", {})
        if pairs and not repeated and not (isinstance(primary["against"], dict) and primary["against"].items() <= condition.items()):
            found.append({"condition": condition, **primary, "values": [a for a, _ in pairs],
                          "others": [b for _, b in pairs],
                          **paired([a - b for a, b in pairs], _resolution(group[0], primary["column"], pairs)),
                          "within": _within(group, primary)})
    tested = [row for row in found if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    for row in found:
        row["detected"] = row["agree"] == row["n"] and row.get("p_holm", 1.0) < 1 - LEVEL
    return found


def conditions(rows: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    """The cells that differ in their seed alone, together, in the order of the study."""
    found: list[tuple[Row, list[Row]]] = []
    for row in rows:
        condition = {name: setting for name, setting in row["values"].items() if name != SEED}
        group = next((group for known, group in found if known == condition), None)
        if group is None:
            found.append((condition, [row]))
        else:
            group.append(row)
    return found


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
        ends = [value(row, primary["arm"], f"{where}.against_{primary['against']}.{end}", False) for end in ("low", "high")]
        apart += [ends[0] > 0 or ends[1] < 0] if None not in ends else []
    return sum(apart) if apart else None


def _resolution(row: Row, column: str, pairs: Sequence[tuple[float, float]]) -> float:
    """The least step of a column: one item of a suite; of other numbers what cells.json has rounded away."""
    suite = row["suite"] if column == SCORE else column
    items = row.get("items", {}).get(suite)
    return 1 / items if items else ROUNDED * max(abs(number) for pair in pairs for number in pair)


def paired(differences: Sequence[float], resolution: float = 0.0) -> Row:
    """Mean of paired differences with Student's t interval and test, and how many agree with its sign.

    Differences that scatter less than the values' own `resolution` are taken to scatter by that: three seeds that are
    each one item better are no certainty.
    """
    n, mean = len(differences), fmean(differences)
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
    """How well column x explains column y over all arms of all cells: R² of a line, and of the ranks (Spearman's ρ²).

    Where only the cell has a column, it belongs to its arm `arm`. What several cells share is one point.
    """
    found: dict[tuple[str, float, float], Row] = {}
    for row in rows:
        for name in row["arms"]:
            pair = [value(row, name, column, fall_back=name == arm) for column in (x, y)]
            if None not in pair and name != "seed":
                found.setdefault((name, *pair), {"arm": name, "values": row["values"], "x": pair[0], "y": pair[1]})
    points = list(found.values())
    return {"x": x, "y": y, "n": len(points), **r_squared([(point["x"], point["y"]) for point in points]),
            "points": points}


def match(rows: Sequence[Row], primary: Mapping[str, Any], equal: str) -> list[Row]:
    """The end point of the primary arm minus that of every other arm where both are equal in the column `equal`.

    An arm's cells that differ in their learning rate alone make a path, straight from one rate to the next and not
    continued beyond the last. Where it passes the value more than once, its lowest end point counts: the least drift
    that this arm has there. n: the points of the primary arm that another's path of the same seed reaches, of: all.
    condition: the other's settings beside learning rate and seed; {} where they make no difference to it.
    """
    found, known = [], paths(rows, equal, primary["column"])
    own = sorted({(seed, *point) for arm, _, seeds in known if arm == primary["arm"]
                  for seed, points in seeds.items() for point in points}, key=repr)
    for arm, condition, seeds in known:
        if arm != primary["arm"]:
            pairs = [(y, lowest_at([point[1:] for point in seeds.get(seed, [])], x)) for seed, _, x, y in own]
            differences = [mine - other for mine, other in pairs if other is not None]
            found.append({"equal": equal, **primary, "against": arm, "condition": condition, "n": len(differences),
                          "of": len(own), "differences": differences,
                          "mean": fmean(differences) if differences else None})
    return found


def paths(rows: Sequence[Row], x: str, y: str) -> list[tuple[str, Row, dict[Any, list[tuple[float, float, float]]]]]:
    """Every trained arm under every condition: arm, condition, and by seed its (learning rate, x, y) in that order.

    An arm that several conditions share, as sft is shared over ratios, is there once, with the condition {}.
    """
    found: dict[str, tuple[str, Row, dict[Any, list[tuple[float, float, float]]]]] = {}
    for row in rows:
        condition = {name: setting for name, setting in row["values"].items() if name not in (SEED, "lr")}
        for arm in row["arms"]:
            point = value(row, arm, x, False), value(row, arm, y, False)
            if None not in point and arm != "seed":
                seeds = found.setdefault(repr((arm, condition)), (arm, condition, {}))[2]
                seeds.setdefault(row["values"].get(SEED), []).append((row["values"].get("lr", 0.0), *point))
    once: dict[str, tuple[str, Row, dict[Any, list[tuple[float, float, float]]]]] = {}
    for arm, condition, seeds in found.values():
        own = {seed: sorted(points) for seed, points in seeds.items()}
        shared = (key := repr((arm, own))) in once
        once[key] = (arm, {} if shared else condition, own)
    return list(once.values())


def lowest_at(path: Sequence[tuple[float, float]], x: float) -> float | None:
    """The lowest y at which a path of straight pieces through these (x, y) passes x; None where it does not."""
    found = [y for at, y in path if at == x]
    for (x0, y0), (x1, y1) in pairwise(path):
        if min(x0, x1) < x < max(x0, x1):
            found.append(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
    return min(found, default=None)


def r_squared(pairs: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """linear: squared correlation of x and y; ranks: of their ranks. None where fewer than 3 pairs or one value."""
    if len(pairs) < 3:
        return {"linear": None, "ranks": None}
    x, y = np.array(pairs, dtype=np.float64).T                                  # (n,) each
    return {"linear": _squared(x, y), "ranks": _squared(ranks(x), ranks(y))}


def _squared(x: np.ndarray, y: np.ndarray) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    both = float((x @ x) * (y @ y))
    return float(x @ y) ** 2 / both if both > 1e-24 else None


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
