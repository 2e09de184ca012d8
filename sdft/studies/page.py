"""The page of a study: report.md and its figures, drawn from cells.json alone.

    write_study(folder)         or        sdft report benchmarks/studies/2-mix-ratio
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sdft.errors import SdftError
from sdft.files import read_json, write_text
from sdft.report.drawing import Figure, require_matplotlib
from sdft.report.tables import Table, as_markdown, nats, number
from sdft.studies.columns import FORGETTING, PARTS, TRANSFER, axis, measured_on, unit_of_n, value, words
from sdft.studies.figures import by_condition, condition_of, image, study_figures, suites_of
from sdft.studies.ranking import ranking_figures, ranking_page
from sdft.studies.results import EndPoint, MatchedComparison, RunResult, StudyComparison, StudyResults
from sdft.studies.specification import shown
from sdft.studies.statistics import is_pilot

Comparison = StudyComparison | MatchedComparison
NAME = "cells.json"
ONE = "one seed allows no conclusion"
PILOT = ("This study is a pilot: every condition has one training seed. It shows only that the comparison works. It "
         "allows no conclusion, so there are no comparisons and no figures here.")
UNCOUNTED = ("The runs of this page were made before lost and gained items were counted (dashes in the table). As a "
             "measure of forgetting, a mean score is confounded: fine-tuning can win some kinds of items, such as "
             "those that a short answer meets, and lose others, and these cancel in the mean. So nothing here says "
             "what was forgotten. What is said of KL, ‖ΔW‖, the NLL of the targets and the score on the trained task "
             "holds. KL is a mean over all tokens of an answer, so a large change of its first tokens counts little.")
COLUMNS = ("kl8", "kl32", "kl", "long_answers", "matched.difference", "recovery.steps.k10", "top1", "rouge_l",
           "general.bleu", "length", "shift", "target_nll", "texts.rouge_l", "texts.bleu")
KL = ("kl", "kl8", "kl32")


def write_study(folder: Path) -> Path:
    """Read cells.json in `folder`, write report.md and one SVG per figure there, and return the path of report.md.

    Raises SdftError if cells.json is not the result of a study, or if matplotlib (extra [report]) is missing.
    """
    require_matplotlib()
    path = folder / NAME
    content: Any = read_json(path)
    ranks = isinstance(content, dict) and {"study", "base_scores", "points", "ranking", "missing"} <= content.keys()
    if not ranks and (not isinstance(content, dict) or not {"study", "runs", "failed", "statistics"} <= content.keys()):
        raise SdftError(f"{path}: expected a study's runs and statistics; make them with `sdft sweep STUDY.toml`")
    if not ranks and not content["runs"]:
        raise SdftError(f"{path}: expected at least one finished run, found none; run the same `sdft sweep` again")
    figures = {figure.name: figure for figure in (ranking_figures(content) if ranks else study_figures(content))}
    for name, figure in figures.items():
        write_text(folder / f"{name}.svg", figure.svg)
    write_text(folder / "report.md", ranking_page(content, figures) if ranks else page(content, figures))
    return folder / "report.md"


def page(content: StudyResults, figures: Mapping[str, Figure]) -> str:
    """The whole page as Markdown."""
    study, statistics = content["study"], content["statistics"]
    parts = [f"# {study['name'][0].upper()}{study['name'][1:]}", study["question"], _about(content)]
    parts += [UNCOUNTED] if not all(map(is_counted, content["runs"])) else []
    if is_pilot(content["runs"]):
        parts.append(PILOT)
    else:
        parts += ["## End point and task score", _list(map(sentence, statistics["comparisons"])),
                  image(figures, "end_point"), image(figures, "trade_off")]
        if statistics["matched"]:
            parts += ["## At equal values of another column", _list(map(matched, statistics["matched"])),
                      "Between two learning rates, an arm's end point and score are interpolated linearly."]
        if pairs := [name for name in figures if name not in ("end_point", "trade_off")]:
            parts += ["## Correlations", *(image(figures, name) for name in pairs)]
    parts += ["## All conditions", as_markdown(conditions_table(content))]
    tables = {suite: kinds_table(content["runs"], suite) for suite in suites_of(content["runs"])}
    parts += [f"## Lost and gained by kind of item: {suite}\n\n{as_markdown(table)}"
              for suite, table in tables.items() if table.rows]
    if content["failed"]:
        parts += ["## Failed runs", _list(f"{name}: {reason}" for name, reason in content["failed"].items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(content: StudyResults) -> str:
    study, primary, runs = content["study"], content["study"]["primary"], content["runs"]
    settings = ", ".join(f"{name} = {shown(value)}" for name, value in study["settings"].items())
    name, counted = axis(primary["column"], suites_of(runs)), measured_on(runs, primary["column"])
    about = (f"Named before the first run: {name}{counted and f' ({counted})'} of {primary['arm']} against "
             f"{_other(primary)}, paired by training seed. {len(runs)} of {study['runs']} runs are finished. All runs "
             f"have: {settings or 'the defaults'}.")
    return about if is_pilot(content["runs"]) else about + (
        " A difference counts as detected where all seeds agree in its sign and Student's t test of the paired "
        "differences gives p < 0.05 after Holm's adjustment: over the conditions of this end point, over those of the "
        "task's score, and over all other comparisons of this page together. The interval of a single seed is over "
        "test items, or for KL over answers.")


def sentence(comparison: StudyComparison) -> str:
    """A comparison in words, with a direction only where it is detected."""
    where = f"{condition_of(comparison['condition'])}: " if comparison["condition"] else ""
    items, arm, other = comparison["items"], comparison["arm"], _other(comparison)
    column = _column(comparison)
    if items:
        column += f" (n = {items} {unit_of_n(comparison['column'])})"
    if comparison["n"] < 2:
        return f"{where}{column} of {arm} against {other}: {_mean_of(comparison)}; {ONE}."
    return f"{where}{_verdict(comparison, column, other, comparison['within'])}."


def matched(comparison: MatchedComparison) -> str:
    """A comparison at an equal value of another column in words, with the difference of the scores there."""
    equal, arm, column, score = words(comparison["equal"]), comparison["arm"], _column(comparison), comparison["score"]
    other = _other(comparison) + (f" ({condition_of(comparison['condition'])})" if comparison["condition"] else "")
    if not comparison["n"] or score is None:
        return f"At equal {equal}, {arm} and {other} have no point in common."
    about = (f"there its score on the task differs from that of {other} by {100 * score:+.3g} points "
             f"({comparison['points']} of {comparison['of']} runs compared)")
    if comparison["n"] < 2:
        return f"At equal {equal}, {column} of {arm} minus that of {other}: {_mean_of(comparison)}; {about}; {ONE}."
    return f"At equal {equal}, {_verdict(comparison, column, other)}; {about}."


def _verdict(comparison: Comparison, column: str, other: str, within: int | None = None) -> str:
    """Whether a difference is detected; the mean over the seeds, its interval, and how many seeds agree."""
    arm, direction = comparison["arm"], "higher" if (comparison["mean"] or 0) > 0 else "lower"
    return ((f"{column} is {direction} with {arm} than with {other}" if comparison["detected"] else
             f"no difference detected in {column} between {arm} and {other}")
            + f": {_mean_of(comparison)} (95 % interval {_scaled(comparison, comparison['low'])} to "
            f"{_scaled(comparison, comparison['high'])}; {direction} in {comparison['agree']} of {comparison['n']} "
            f"seeds, p = {comparison['p_holm']:.2g}"
            + ("" if within is None else f"; the interval of a single seed excludes zero in {within}") + ")")


def _column(comparison: Comparison) -> str:
    """The column in words."""
    column = comparison["column"]
    return words(column, [column.partition(".")[0]] if comparison["items"] else ())


def _mean_of(comparison: Comparison) -> str:
    return f"{_scaled(comparison, comparison['mean'])}{' points' if comparison['items'] else ''}"


def _scaled(comparison: Comparison, value: float | None) -> str:
    """A difference: of scores in points of a hundred, of everything else in its own unit."""
    return "–" if value is None else f"{value * (100 if comparison['items'] else 1):+.3g}"


def is_counted(run: RunResult) -> bool:
    """Whether lost and gained items were counted on every suite of the run."""
    return all(f"suites.{suite}.solved_by_base" in run["arms"]["base"] for suite in run["items"])


def conditions_table(content: StudyResults) -> Table:
    """Conditions × arms: means over the seeds; an arm that is the same under all conditions has one line."""
    runs = content["runs"]
    suites = suites_of(runs)
    plotted = [column for pair in content["statistics"]["correlations"] for column in (pair["x"], pair["y"])]
    in_scores = {*suites, *(suite + measure for suite in suites for measure in (FORGETTING, TRANSFER))}
    columns = [column for column in dict.fromkeys([*COLUMNS, content["study"]["primary"]["column"], *plotted])
               if column not in in_scores
               and any(_mean([run], arm, column) is not None for run in runs for arm in run["arms"])]
    groups, lines = by_condition(runs), {}
    for condition, group in groups:
        for arm in dict.fromkeys(arm for run in group for arm in run["arms"]):
            trained = [run for run in group if arm in run["arms"]]
            lines[condition, arm] = [str(len(trained)), *(scores(trained, arm, suite) for suite in suites),
                                     *(_cell(_mean(trained, arm, column), column) for column in columns)]
    first = {arm: line for (condition, arm), line in lines.items() if condition == groups[0][0]}
    same = [arm for arm, line in first.items() if len(groups) > 1
            and all(lines.get((condition, arm)) == line for condition, _ in groups)]
    heads = {suite: f"{suite}: mean score / lost / gained, %" for suite in suites}
    heads |= {column: axis(column, suites) for column in columns}
    counted = {column: measured_on(runs, column) for column in heads}
    return Table(["condition", "arm", "seeds", *(f"{head} ({counted[column]})" if counted[column] else head
                                                 for column, head in heads.items())],
                 [*(["all", arm, *first[arm]] for arm in same),
                  *([condition, arm, *line] for (condition, arm), line in lines.items() if arm not in same)],
                 "Means over the training seeds. Lost: of the items that the base model solves, the share that the arm "
                 "does not solve (forgetting); for base the noise floor, between two answers of the base model itself. "
                 "Gained: of the other items, the share that the arm solves (backward transfer). –: not measured.")


def kinds_table(runs: Sequence[RunResult], suite: str) -> Table:
    """Parts and kinds of item of one suite: what every arm lost and gained, as means over all its runs."""
    names = [column.removeprefix(f"{suite}.").removesuffix(".solved_by_base")
             for column in dict.fromkeys(column for run in runs for column in run["arms"]["base"])
             if column.startswith(f"{suite}.") and column.endswith(".solved_by_base")]
    arms = dict.fromkeys(arm for run in runs for arm in run["arms"] if arm != "base")
    counts = {name: [_mean(runs, "base", f"{suite}.{name}.{count}") for count in ("n", "solved_by_base")]
              for name in names}
    heads = (f"{arm}: mean score / lost / gained, %" for arm in arms)
    return Table(["kind of item", "items", "solved by base", *heads],
                 [[PARTS.get(name, name), *(number(count, 0) for count in counts[name]),
                   *(scores(runs, arm, f"{suite}.{name}") for arm in arms)] for name in names],
                 "Means over all runs of the arm. –: the base model solves none of the items, or all.")


def scores(runs: Sequence[RunResult], arm: str, suite: str) -> str:
    """Mean score, share lost, and share gained in percent: a mean score hides the other two. The base model loses
    what is only noise: its noise floor."""
    lost = f"suites.{suite}.noise_floor.share" if arm == "base" else suite + FORGETTING
    return " / ".join(number(_mean(runs, arm, column), 1, 100) for column in (suite, lost, suite + TRANSFER))


def _cell(mean: float | None, column: str) -> str:
    if column in KL:
        return nats(mean)
    return number(mean, 0 if column == "length" else 1 if column.startswith("recovery.steps") else 3)


def _mean(runs: Sequence[RunResult], arm: str, column: str) -> float | None:
    """The mean of an arm's column; a column that only the run has describes the targets of sdft."""
    known = [mean for run in runs if (mean := value(run, arm, column, fall_back=arm == "sdft")) is not None]
    return fmean(known) if known else None


def _other(primary: EndPoint) -> str:
    against = primary["against"]
    return against if isinstance(against, str) else condition_of(against)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
