"""What predicts forgetting: measures ranked by how much they explain, over all arms of all cells of several studies.

    [predict]
    measures = ["kl", "shift", "target_nll"]       columns of cells.json; what the task taught (`gained`) is always one
    outcomes = ["instructions", "top1"]            columns whose drop from the seed of the same cell is to be predicted

The ranking is by R² *within* a study and task: measure and drop are set against their means over the arms that start
from the same seed score, on the same items. Studies differ in records, items and length, so pooled over them a measure
explains what only the studies differ in, and can change its sign (Simpson 1951); the pooled R² stands beside.
Intervals are by bootstrap over whole studies, whose cells have the task, the training seeds and most settings in common
(arXiv 2509.04259 ranks pooled, without intervals). Cells whose seed scores nothing can lose nothing: they are left out,
and counted in `starts`.

    sdft sweep benchmarks/studies/6-predictors.toml
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from sdft.errors import SdftError
from sdft.files import read_json
from sdft.studies.specification import Study
from sdft.studies.statistics import SCORE, correlation, interval, ranks, value

GAINED = "gained"           # the score on the cell's task above its seed's, a share: what was acquired
Row = dict[str, Any]


def predict(study: Study) -> dict[str, Any]:
    """The content of cells.json of a study that reads others: study, starts, points, ranking; missing: what no cell
    has; constant: what differs in no study, and so explains nothing.

    A study whose cells.json is not beside the file yet is told on stderr; SdftError where none is there.
    """
    points: list[Row] = []
    begun: list[Row] = []
    found = []
    for name in study.reads:
        path = study.path.parent / name / "cells.json"
        if not path.is_file():
            print(f"{study.name}: without {name}, which has no {path}", file=sys.stderr)
            continue
        found.append(name)
        content = read_json(path)
        if not isinstance(content, dict) or "cells" not in content:
            raise SdftError(f"{path}: expected the cells of a study that runs some, found none; leave {name!r} out of "
                            "`reads`")
        points += points_of(name, content["cells"], study.predict)
        begun += starts(name, content["cells"], study.predict["outcomes"])
    if not found:
        raise SdftError(f"{study.path}: expected cells.json of {', '.join(study.reads)} in folders beside it, found "
                        "none; run those studies first")
    ranking = rank(points, study.predict)
    known = {measure for point in points for measure in point["measures"]}
    told = {row["measure"] for row in ranking}
    return {"study": {"name": study.name, "question": study.question, "reads": found, **study.predict},
            "starts": begun, "points": points, "ranking": ranking,
            "missing": [name for name in study.predict["measures"] if name not in known],
            "constant": [name for name in study.predict["measures"] if name in known - told]}


def points_of(name: str, cells: Sequence[Row], asked: Mapping[str, Sequence[str]]) -> list[Row]:
    """A point for every trained arm of a study: its measures, and its drops from the seed. What cells share is one.

    A column of the cell alone is a measure of its arm sdft, whose data it describes. No drop where the seed has 0.
    """
    points: dict[str, Row] = {}
    for cell in cells:
        base = cell["arms"]["base"]
        for arm, row in cell["arms"].items():
            if arm == "base":
                continue
            measures = {column: value(cell, arm, column, fall_back=arm == "sdft") for column in asked["measures"]}
            scores = value(cell, arm, SCORE, False), value(cell, "base", SCORE, False)
            measures[GAINED] = None if None in scores else scores[0] - scores[1]
            drops = {column: base[column] - row[column] for column in asked["outcomes"]
                     if (base.get(column) or 0) > 0 and row.get(column) is not None}
            point = {"study": name, "task": cell["suite"], "arm": arm, "drops": drops,
                     "measures": {column: found for column, found in measures.items() if found is not None}}
            points.setdefault(repr(point), point)
    return list(points.values())


def starts(name: str, cells: Sequence[Row], outcomes: Sequence[str]) -> list[Row]:
    """Where the seed stands in every outcome, by task: study, task, outcome, score (mean over the cells, None where not
    measured), n: its test items or general answers; cells: how many, and left_out: how many of them at the floor."""
    found = []
    for outcome in outcomes:
        for task in dict.fromkeys(cell["suite"] for cell in cells):
            own = [cell for cell in cells if cell["suite"] == task]
            scores = [cell["arms"]["base"][outcome] for cell in own if outcome in cell["arms"]["base"]]
            n = own[0]["items"].get(outcome, own[0]["arms"]["base"].get("general.n"))
            found.append({"study": name, "task": task, "outcome": outcome, "n": n if scores else 0, "cells": len(own),
                          "score": fmean(scores) if scores else None, "left_out": sum(score <= 0 for score in scores)})
    return found


def rank(points: Sequence[Row], asked: Mapping[str, Sequence[str]]) -> list[Row]:
    """For every outcome the measures, the most explaining within studies first: see `explain`; of all but the first,
    behind: how much less it explains than the first, see `difference`. An outcome does not predict itself."""
    ranking = []
    for outcome in asked["outcomes"]:
        measures = [name for name in dict.fromkeys([*asked["measures"], GAINED])
                    if name not in (outcome, f"general.{outcome}")]
        rows = [row for measure in measures if (row := explain(points, outcome, measure))]
        rows.sort(key=lambda row: -row["within"])
        ranking += [row | {"behind": difference(points, outcome, rows[0]["measure"], row["measure"]) if place else None}
                    for place, row in enumerate(rows)]
    return ranking


def explain(points: Sequence[Row], outcome: str, measure: str) -> Row | None:
    """How a measure goes with the drop of an outcome; None where nothing varies, or too few points to tell.

    n, studies, groups (study × task). r: of the measure's and the drop's distances from their means in the group, with
    low and high; within: r², with within_low and within_high; ranks: as r, of the ranks in the group (from 0 to 1).
    pooled: r over all points as if they were of one study. with_gained: as r, of the measure and what was gained.
    Measures are ranked on different points where some lack one, or do not vary; n tells.
    """
    whole = _groups(_varying(points, outcome, (measure,)), outcome, measure)
    n = sum(map(len, whole.values()))
    r, draws = correlation(_centred(whole))
    if r is None or n - len(whole) < 2:
        return None
    own = {**dict(zip(("low", "high"), interval(draws), strict=True)),
           **dict(zip(("within_low", "within_high"), interval(draws**2), strict=True))}
    beside = [point for point in points if outcome in point["drops"]]
    return {"outcome": outcome, "measure": measure, "n": n, "studies": len({study for study, _ in whole}),
            "groups": len(whole), "within": round(r * r, 6), "r": r, **own,
            "ranks": correlation(_centred(whole, lambda part: ranks(part) / len(part)))[0],
            "pooled": correlation([[pair for pairs in whole.values() for pair in pairs]])[0],
            "with_gained": None if measure == GAINED else correlation(_centred(_groups(beside, GAINED, measure)))[0]}


def difference(points: Sequence[Row], outcome: str, first: str, other: str) -> Row:
    """R² within studies of one measure minus that of another, on the n points that have both; low, high: its 95 %
    interval, both being taken on the same draws of studies. None where either cannot be told there."""
    both = _varying(points, outcome, (first, other))
    (r, draws), (s, others) = (correlation(_centred(_groups(both, outcome, name))) for name in (first, other))
    low, high = (None, None) if None in (r, s) else interval(draws**2 - others**2)
    return {"difference": None if None in (r, s) else round(r * r - s * s, 6), "low": low, "high": high, "n": len(both)}


def _varying(points: Sequence[Row], outcome: str, measures: Sequence[str]) -> list[Row]:
    """The points that have the outcome and the measures, of the studies and tasks in which each measure varies: one in
    which it is the same in every arm has nothing to say, and is no study to draw."""
    own = [point for point in points if outcome in point["drops"] and point["measures"].keys() >= set(measures)]
    values: dict[tuple[str, str, str], set[float]] = {}
    for point in own:
        for measure in measures:
            values.setdefault((point["study"], point["task"], measure), set()).add(point["measures"][measure])
    return [point for point in own
            if all(len(values[point["study"], point["task"], measure]) > 1 for measure in measures)]


def _groups(points: Sequence[Row], outcome: str, measure: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(measure, drop of the outcome) of the points that have both, by study and task; GAINED stands for itself."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in points:
        y = point["measures"].get(GAINED) if outcome == GAINED else point["drops"].get(outcome)
        if y is not None and measure in point["measures"]:
            found.setdefault((point["study"], point["task"]), []).append((point["measures"][measure], y))
    return found


def _centred(groups: Mapping[tuple[str, str], Sequence[tuple[float, float]]],
             scale: Callable[[np.ndarray], np.ndarray] = np.asarray) -> list[list[tuple[float, float]]]:
    """By study: the pairs of its groups, each column scaled and less its mean in the group (0 where it is constant)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for (study, _), pairs in groups.items():
        columns = [scale(column) for column in np.array(pairs, dtype=np.float64).T]                     # (n,) each
        columns = [(column - column.mean()) * (np.ptp(column) > 0) for column in columns]
        found.setdefault(study, []).extend(zip(*(column.tolist() for column in columns), strict=True))
    return list(found.values())
