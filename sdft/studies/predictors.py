"""What predicts forgetting: measures ranked by how much they explain, over the trained arms of several studies.

    [predict]
    measures = ["kl", "shift", "target_nll"]       columns of cells.json; `gained`, the task's score, is always added
    outcomes = ["elaborate.forgetting", "top1"]    columns whose drop from the base model is to be predicted; forgetting
                                                   is itself the outcome, since the base model has lost nothing

The ranking is by R² *within* a study and task: measure and drop are differences from their means over the arms that
start from the same base score, on the same items. Studies differ in records, items and length. Pooled over studies, a
measure therefore also explains how the studies differ, and its sign can change (Simpson 1951); the pooled r is reported
for comparison. Intervals are by bootstrap over whole studies, whose runs share the task, the training seeds and most
settings (arXiv 2509.04259 ranks pooled, without intervals). Runs whose base model scores 0 can lose nothing: they are
left out, and counted in `base_scores`. The drop of a suite's mean score is no measure of forgetting: what was gained
cancels what was lost. The page says so where one is an outcome.

    sdft sweep benchmarks/studies/6-predictors.toml
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np

from sdft.errors import SdftError
from sdft.files import read_json
from sdft.studies.columns import FORGETTING, SCORE, items_of, value
from sdft.studies.results import ArmPoint, BaseScore, ExplainedDifference, RankedMeasure, RankingResults, RunResult
from sdft.studies.specification import Study
from sdft.studies.statistics import correlation, interval, ranks

GAINED = "gained"           # the score on the run's task − the base model's, a share: what was learned


def predict(study: Study) -> RankingResults:
    """The content of cells.json of a study that reads others. A study without a cells.json next to the study file is
    reported on stderr. Raises SdftError where none has one."""
    points: list[ArmPoint] = []
    base_scores: list[BaseScore] = []
    read = []
    for name in study.reads:
        path = study.path.parent / name / "cells.json"
        if not path.is_file():
            print(f"{study.name}: without {name}, which has no {path}", file=sys.stderr)
            continue
        read.append(name)
        content = read_json(path)
        if not isinstance(content, dict) or "runs" not in content:
            raise SdftError(f"{path}: expected the results of a study with runs, found none; leave {name!r} out of "
                            "`reads`")
        points += points_of(name, content["runs"], study.predict)
        base_scores += scores_of_base(name, content["runs"], study.predict["outcomes"])
    if not read:
        raise SdftError(f"{study.path}: expected cells.json of {', '.join(study.reads)} in folders next to it, found "
                        "none; run those studies first")
    ranking, measures = rank(points, study.predict), study.predict["measures"]
    known = {measure for point in points for measure in point["measures"]}
    ranked = {each["measure"] for each in ranking}
    return {"study": {"name": study.name, "question": study.question, "reads": read, "measures": measures,
                      "outcomes": study.predict["outcomes"]},
            "base_scores": base_scores, "points": points, "ranking": ranking,
            "missing": [name for name in measures if name not in known],
            "constant": [name for name in measures if name in known - ranked]}


def points_of(study: str, results: Sequence[RunResult], asked: Mapping[str, Sequence[str]]) -> list[ArmPoint]:
    """One point for every trained arm: its measures, and its drops from the base model. Equal points count once.

    A column that only the run has is a measure of arm sdft, whose targets it describes. There is no drop where the base
    model scores 0.
    """
    points: dict[str, ArmPoint] = {}
    for run in results:
        base = run["arms"]["base"]
        for arm, columns in ((arm, columns) for arm, columns in run["arms"].items() if arm != "base"):
            measures = {column: value(run, arm, column, fall_back=arm == "sdft") for column in asked["measures"]}
            score, base_score = value(run, arm, SCORE, False), value(run, "base", SCORE, False)
            measures[GAINED] = None if score is None or base_score is None else score - base_score
            drops = {column: columns[column] if column.endswith(FORGETTING) else base[column] - columns[column]
                     for column in asked["outcomes"]
                     if column in columns and (column.endswith(FORGETTING) or base.get(column, 0) > 0)}
            point: ArmPoint = {
                "study": study, "task": run["suite"], "arm": arm, "drops": drops,
                "measures": {column: number for column, number in measures.items() if number is not None}}
            points.setdefault(repr(point), point)
    return list(points.values())


def scores_of_base(study: str, results: Sequence[RunResult], outcomes: Sequence[str]) -> list[BaseScore]:
    """The base model on every outcome, task by task, and how many of the runs are left out since it scores 0. For an
    outcome of forgetting: the share of the items that the base model solves."""
    scores: list[BaseScore] = []
    for outcome in outcomes:
        for task in dict.fromkeys(run["suite"] for run in results):
            runs = [run for run in results if run["suite"] == task]
            known = [score for run in runs if (score := _base_score(run, outcome)) is not None]
            n = items_of(runs[0], outcome.removesuffix(FORGETTING)) or runs[0]["arms"]["base"].get("general.n")
            scores.append({"study": study, "task": task, "outcome": outcome, "n": int(n or 0) if known else 0,
                           "runs": len(runs), "score": fmean(known) if known else None,
                           "left_out": sum(score <= 0 for score in known)})
    return scores


def _base_score(run: RunResult, outcome: str) -> float | None:
    if not outcome.endswith(FORGETTING):
        return run["arms"]["base"].get(outcome)
    solved, n = items_of(run, outcome), items_of(run, outcome.removesuffix(FORGETTING))
    return None if solved is None or not n else solved / n


def rank(points: Sequence[ArmPoint], asked: Mapping[str, Sequence[str]]) -> list[RankedMeasure]:
    """Return the measures for every outcome, sorted by what they explain within studies; none for the same outcome."""
    ranking: list[RankedMeasure] = []
    for outcome in asked["outcomes"]:
        measures = [name for name in dict.fromkeys([*asked["measures"], GAINED])
                    if name not in (outcome, f"general.{outcome}")]
        ranked = [each for measure in measures if (each := explain(points, outcome, measure))]
        ranked.sort(key=lambda each: -each["within"])
        for position, each in enumerate(ranked):
            each["below_first"] = (difference(points, outcome, ranked[0]["measure"], each["measure"]) if position
                                   else None)
        ranking += ranked
    return ranking


def explain(points: Sequence[ArmPoint], outcome: str, measure: str) -> RankedMeasure | None:
    """How a measure goes with the drop of an outcome; None where nothing varies, or too few points are left. Measures
    are ranked on different points where some lack a measure, or it does not vary; see n."""
    groups = _groups(_varying(points, outcome, (measure,)), outcome, measure)
    n = sum(map(len, groups.values()))
    r, draws = correlation(_centred(groups))
    if r is None or n - len(groups) < 2:
        return None
    (low, high), (within_low, within_high) = interval(draws), interval(draws**2)
    measured = [point for point in points if outcome in point["drops"]]
    return {"outcome": outcome, "measure": measure, "n": n, "studies": len({study for study, _ in groups}),
            "groups": len(groups), "within": round(r * r, 6), "r": r, "low": low, "high": high,
            "within_low": within_low, "within_high": within_high,
            "ranks": correlation(_centred(groups, lambda column: ranks(column) / len(column)))[0],
            "pooled": correlation([[pair for pairs in groups.values() for pair in pairs]])[0],
            "with_gained": None if measure == GAINED else correlation(_centred(_groups(measured, GAINED, measure)))[0]}


def difference(points: Sequence[ArmPoint], outcome: str, first: str, other: str) -> ExplainedDifference:
    """How much better `first` explains the outcome within studies than `other`: the difference of their R², on the arms
    that have both measures. low, high: its 95 % bootstrap interval; each draw of studies serves both R²."""
    both = _varying(points, outcome, (first, other))
    (r, draws), (s, other_draws) = (correlation(_centred(_groups(both, outcome, name))) for name in (first, other))
    if r is None or s is None:
        return {"difference": None, "low": None, "high": None, "n": len(both)}
    low, high = interval(draws**2 - other_draws**2)
    return {"difference": round(r * r - s * s, 6), "low": low, "high": high, "n": len(both)}


def _varying(points: Sequence[ArmPoint], outcome: str, measures: Sequence[str]) -> list[ArmPoint]:
    """The points that have the outcome and the measures, of the studies and tasks in which each measure varies. A study
    in which a measure is the same in every arm has nothing to say, and must not be drawn."""
    complete = [point for point in points if outcome in point["drops"] and point["measures"].keys() >= set(measures)]
    values: dict[tuple[str, str, str], set[float]] = {}
    for point in complete:
        for measure in measures:
            values.setdefault((point["study"], point["task"], measure), set()).add(point["measures"][measure])
    return [point for point in complete
            if all(len(values[point["study"], point["task"], measure]) > 1 for measure in measures)]


def _groups(points: Sequence[ArmPoint], outcome: str, measure: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(measure, drop of the outcome) of the points that have both, by study and task; GAINED is no drop but itself."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in points:
        y = point["measures"].get(GAINED) if outcome == GAINED else point["drops"].get(outcome)
        if y is not None and measure in point["measures"]:
            groups.setdefault((point["study"], point["task"]), []).append((point["measures"][measure], y))
    return groups


def _centred(groups: Mapping[tuple[str, str], Sequence[tuple[float, float]]],
             scale: Callable[[np.ndarray], np.ndarray] = np.asarray) -> list[list[tuple[float, float]]]:
    """By study: the pairs of its groups, each column scaled and minus its mean in the group (0 where constant)."""
    by_study: dict[str, list[tuple[float, float]]] = {}
    for (study, _), pairs in groups.items():
        columns = [scale(column) for column in np.array(pairs, dtype=np.float64).T]                     # (n,) each
        columns = [(column - column.mean()) * (np.ptp(column) > 0) for column in columns]
        by_study.setdefault(study, []).extend(zip(*(column.tolist() for column in columns), strict=True))
    return list(by_study.values())
