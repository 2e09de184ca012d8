"""What predicts forgetting: measures ranked by how much they explain, over all arms of all cells of several studies.

    [predict]
    measures = ["kl", "shift", "target_nll"]       columns of cells.json
    outcomes = ["instructions", "top1"]            columns whose drop from the seed of the same cell is to be predicted

R² of a straight line and of the ranks (Spearman's ρ²); intervals by bootstrap over whole studies, since the cells of
one study have the task, the seeds and most settings in common (arXiv 2509.04259 ranks in this way, without intervals).

    sdft sweep benchmarks/studies/6-predictors.toml
"""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdft.errors import SdftError
from sdft.experiment.study import Study
from sdft.experiment.study_statistics import r_squared, value
from sdft.files import read_json
from sdft.measure.statistics import LEVEL

RESAMPLES = 2_000
Row = dict[str, Any]


def predict(study: Study) -> dict[str, Any]:
    """The content of cells.json of a study that reads others: study, points, ranking, and what no cell has.

    A study whose cells.json is not beside the file yet is told on stderr; SdftError where none is there.
    """
    points: list[Row] = []
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
    if not found:
        raise SdftError(f"{study.path}: expected cells.json of {', '.join(study.reads)} in folders beside it, found "
                        "none; run those studies first")
    ranking = rank(points, study.predict)
    measures = {row["measure"] for row in ranking}
    return {"study": {"name": study.name, "question": study.question, "reads": found, **study.predict},
            "points": points, "ranking": ranking,
            "missing": [name for name in study.predict["measures"] if name not in measures]}


def points_of(name: str, cells: Sequence[Row], asked: Mapping[str, Sequence[str]]) -> list[Row]:
    """A point for every trained arm of a study: its measures, and its drops from the seed. What cells share is one.

    A column of the cell alone is a measure of its arm sdft, whose data it describes.
    """
    points: dict[str, Row] = {}
    for cell in cells:
        seed = cell["arms"]["seed"]
        for arm, row in cell["arms"].items():
            if arm == "seed":
                continue
            measures = {column: value(cell, arm, column, fall_back=arm == "sdft") for column in asked["measures"]}
            drops = {column: seed[column] - row[column] for column in asked["outcomes"]
                     if seed.get(column) is not None and row.get(column) is not None}
            point = {"study": name, "arm": arm, "drops": drops,
                     "measures": {column: found for column, found in measures.items() if found is not None}}
            points.setdefault(repr(point), point)
    return list(points.values())


def rank(points: Sequence[Row], asked: Mapping[str, Sequence[str]]) -> list[Row]:
    """For every outcome the measures, the most explaining first: n, studies, linear and ranks, each with low and high.

    Measures are compared on different points where some lack one; n tells. None instead of intervals for one study.
    """
    ranking = []
    for outcome in asked["outcomes"]:
        rows = []
        for measure in asked["measures"]:
            by_study: dict[str, list[tuple[float, float]]] = {}
            for point in points:
                if measure in point["measures"] and outcome in point["drops"]:
                    pair = point["measures"][measure], point["drops"][outcome]
                    by_study.setdefault(point["study"], []).append(pair)
            whole = r_squared([pair for pairs in by_study.values() for pair in pairs])
            if whole["linear"] is not None:
                rows.append({"outcome": outcome, "measure": measure, "n": sum(map(len, by_study.values())),
                             "studies": len(by_study), **whole, **intervals(list(by_study.values()))})
        ranking += sorted(rows, key=lambda row: -row["linear"])
    return ranking


def intervals(clusters: Sequence[Sequence[tuple[float, float]]], seed: int = 0) -> dict[str, float | None]:
    """95 % percentile intervals of both R², over draws of as many whole clusters with replacement."""
    names = ("linear_low", "linear_high", "ranks_low", "ranks_high")
    if len(clusters) < 2:
        return dict.fromkeys(names)
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(clusters), size=(RESAMPLES, len(clusters)))
    unique, counts = np.unique(np.sort(draws), axis=0, return_counts=True)      # few clusters: most draws recur
    found = [r_squared([pair for index in draw for pair in clusters[index]]) for draw in unique]
    ends: list[float | None] = []
    for name in ("linear", "ranks"):
        values = [each[name] for each, count in zip(found, counts, strict=True) for _ in range(count)
                  if each[name] is not None]                                    # None: a draw of too few points
        ends += np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist() if values else [None, None]
    return dict(zip(names, ends, strict=True))
