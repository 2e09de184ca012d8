"""The types of cells.json: StudyResults of a study with runs, RankingResults of a study that reads others.

Units are those of sdft/results.py; `low` and `high` bound a 95 % interval.
"""
from __future__ import annotations

from typing import Any, NotRequired, TypedDict, final

Settings = dict[str, Any]           # setting → value


class EndPoint(TypedDict):
    """The comparison that answers a study's question, named before its first run."""
    column: str
    arm: str
    against: str | Settings         # another arm of the same run; or settings: this arm in the run that has them


class StudyInfo(TypedDict):
    """The study that the runs belong to, from its file."""
    name: str
    question: str
    primary: EndPoint
    plots: list[list[str]]          # pairs of columns, x and y
    matched: list[str]
    controls: NotRequired[list[str]]                # arms that the end point is also compared with
    settings: Settings              # of every run
    runs: int                       # how many the study has


class RunResult(TypedDict):
    """One finished run of a study. Its columns are explained in sdft/studies/columns.py."""
    name: str
    values: Settings                # what distinguishes the run from the others
    key: NotRequired[str]           # hash of settings, data and FORMAT; absent in results of an earlier format
    machine: dict[str, str | None]  # processor, torch
    model_sha256: str
    suite: str                      # the task's own
    items: dict[str, int]           # suite → how many
    measures: dict[str, float]      # column → number, of the run's data: gap, audit, texts
    arms: dict[str, dict[str, float]]               # arm → column → number
    seconds: float


class SeedDifferences(TypedDict):
    """Differences of n training seeds, and Student's t test of their mean; low, high and p are None for n < 2."""
    n: int
    differences: list[float]
    mean: float | None              # None for n = 0
    low: float | None
    high: float | None
    agree: int                      # how many have the sign of the mean
    p: float | None                 # two-sided
    p_holm: NotRequired[float]      # Holm's adjustment over the family; absent where p is None
    detected: NotRequired[bool]     # all seeds agree in sign, and p_holm < 0.05


class StudyComparison(SeedDifferences, EndPoint):
    """arm − against, paired by seed, under one condition."""
    condition: Settings             # the values of its runs without the seed
    items: int | None               # that the column, a score or a share, is of
    values: list[float]             # of the arm, seed by seed
    against_values: list[float]
    within: int | None              # seeds whose own interval, over items or answers, excludes zero


class MatchedComparison(SeedDifferences, EndPoint):
    """The end point of the arm minus that of another, where both have the same value in another column."""
    equal: str                      # that column
    condition: Settings             # of the other arm, without learning rate and seed; {} where it makes no difference
    items: int | None
    points: int                     # runs of the arm that could be compared
    of: int                         # runs of the arm
    score: float | None             # how much more the arm scores on the task there


class CorrelationPoint(TypedDict):
    """One trained arm."""
    arm: str
    values: Settings                # of its run
    x: float
    y: float


class Correlation(TypedDict):
    """Two columns over all trained arms."""
    x: str
    y: str
    n: int                          # different points
    groups: int                     # arms under a condition, which the bootstrap draws as a whole
    r: float | None                 # Pearson's
    low: float | None
    high: float | None
    ranks: float | None             # Spearman's ρ
    points: list[CorrelationPoint]


class StudyStatistics(TypedDict):
    """The comparisons and correlations of a study."""
    comparisons: list[StudyComparison]
    matched: list[MatchedComparison]
    correlations: list[Correlation]


@final
class StudyResults(TypedDict):
    """cells.json of a study with runs of its own."""
    study: StudyInfo
    runs: list[RunResult]
    failed: dict[str, str]          # run → reason
    statistics: StudyStatistics
    earlier: NotRequired[list[RunResult]]           # results that no run of the study as it is now has


class RankingInfo(TypedDict):
    """The study that reads others, from its file."""
    name: str
    question: str
    reads: list[str]                # the studies that were read
    measures: list[str]
    outcomes: list[str]


class BaseScore(TypedDict):
    """The base model on one outcome, in the runs of one study and task."""
    study: str
    task: str
    outcome: str
    n: int                          # items or answers; 0 where it was not measured
    runs: int
    score: float | None             # mean over the runs
    left_out: int                   # runs in which the base model scores 0, and can lose nothing


class ArmPoint(TypedDict):
    """One trained arm of a study."""
    study: str
    task: str
    arm: str
    drops: dict[str, float]         # outcome → score of the base model − score of the arm
    measures: dict[str, float]


class ExplainedDifference(TypedDict):
    """R² within studies of the first measure − that of another, on the n points that have both."""
    difference: float | None
    low: float | None
    high: float | None
    n: int


class RankedMeasure(TypedDict):
    """How one measure goes with the drop of one outcome, over n arms."""
    outcome: str
    measure: str
    n: int
    studies: int
    groups: int                     # study × task
    within: float                   # r²
    r: float                        # of the distances from the means of the group
    low: float | None
    high: float | None
    within_low: float | None
    within_high: float | None
    ranks: float | None             # r of the ranks in the group
    pooled: float | None            # r over all arms as if they were of one study
    with_gained: float | None       # r, within groups, of the measure and what was learned
    below_first: NotRequired[ExplainedDifference | None]            # None in the first of the ranking


@final
class RankingResults(TypedDict):
    """cells.json of a study that reads others."""
    study: RankingInfo
    base_scores: list[BaseScore]
    points: list[ArmPoint]
    ranking: list[RankedMeasure]
    missing: list[str]              # measures that no run has
    constant: list[str]             # measures that vary in no study, or in too few arms
