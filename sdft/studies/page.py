"""The page of a study: report.md and its figures beside cells.json, from which alone they are made.

    write_study(folder)         or        sdft report benchmarks/studies/2-mix-ratio
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from sdft.errors import SdftError
from sdft.files import read_json, write_text
from sdft.report.drawing import Figure, require_matplotlib
from sdft.report.tables import Table, as_markdown, nats, number
from sdft.studies.figures import axis, by_condition, condition_of, measured_on, shown, study_figures, suites_of
from sdft.studies.ranking import ranking_figures, ranking_page

Row = Mapping[str, Any]
NAME = "cells.json"
ONE = "one seed, so nothing can be told from it"
COLUMNS = ("kl", "top1", "rouge_l", "general.bleu", "length", "shift", "target_nll", "texts.rouge_l", "texts.bleu")


def write_study(folder: Path) -> Path:
    """Write report.md and one SVG for each figure of the study in `folder`; return the path of report.md.

    Raises SdftError when cells.json is no study's, or when matplotlib (extra [report]) is missing.
    """
    require_matplotlib()
    content = read_study_cells(folder)
    predicts = "ranking" in content
    figures = {figure.name: figure for figure in (ranking_figures if predicts else study_figures)(content)}
    for figure in figures.values():
        write_text(folder / f"{figure.name}.svg", figure.svg)
    path = folder / "report.md"
    write_text(path, (ranking_page if predicts else page)(content, figures))
    return path


def read_study_cells(folder: Path) -> dict[str, Any]:
    """The content of cells.json (SdftError when it is not what `sdft sweep` writes, or holds no cell)."""
    path = Path(folder) / NAME
    content = read_json(path)
    if isinstance(content, dict) and {"study", "starts", "points", "ranking", "missing"} <= content.keys():
        return content
    if not isinstance(content, dict) or not {"study", "cells", "failed", "statistics"} <= content.keys():
        raise SdftError(f"{path}: expected a study's cells and statistics; make them with `sdft sweep STUDY.toml`")
    if not content["cells"]:
        raise SdftError(f"{path}: expected at least one finished cell, found none; run the same `sdft sweep` again")
    statistics = content["statistics"]
    if not all("items" in row for row in statistics["comparisons"] + statistics.get("matched", [])) or not all(
            "r" in row for row in statistics["correlations"]):
        raise SdftError(f"{path}: its statistics are those of an earlier version; run the same `sdft sweep` again")
    return content


def page(content: Row, figures: Mapping[str, Figure]) -> str:
    """The whole page as Markdown."""
    study, statistics = content["study"], content["statistics"]
    parts = [f"# {study['name'][0].upper()}{study['name'][1:]}", study["question"], _about(content),
             "## The end point, and what was learned beside it", _list(map(sentence, statistics["comparisons"])),
             _image(figures, "end_point"), _image(figures, "trade_off")]
    if statistics.get("matched"):
        parts += ["## Where arms are equal in something else", _list(map(matched, statistics["matched"])),
                  "Between two learning rates an arm is taken to go straight, in its score on the task too."]
    pairs = [name for name in figures if name not in ("end_point", "trade_off")]
    if pairs:
        parts += ["## What goes with what", *(_image(figures, name) for name in pairs)]
    parts += ["## Every condition", as_markdown(cells_table(content))]
    if content["failed"]:
        parts += ["## Cells that failed", _list(f"{name}: {reason}" for name, reason in content["failed"].items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(content: Row) -> str:
    study, primary = content["study"], content["study"]["primary"]
    settings = ", ".join(f"{name} = {shown(value)}" for name, value in study["settings"].items())
    name, over = axis(primary["column"], suites_of(content["cells"])), measured_on(content["cells"], primary["column"])
    return (f"Named before the first run: {primary['column']} ({name}{over and ', ' + over}) of {primary['arm']} "
            f"against {_other(primary)}, paired by training seed. {len(content['cells'])} of {study['cells']} cells "
            f"are finished. In every cell: {settings or 'the defaults'}. A difference is told as detected where all "
            "seeds agree in its sign and Student's t test of the paired differences gives p < 0.05 by Holm: over the "
            "conditions of this end point, and over all other comparisons of this page together. Within a seed the "
            "interval is over test items, or for kl over answers.")


def sentence(row: Row) -> str:
    """A comparison in words: a direction only where it is detected."""
    where = f"{condition_of(row['condition'])}: " if row["condition"] else ""
    column, other = row["column"] + (f" (n = {row['items']} items)" if row["items"] else ""), _other(row)
    if row["n"] < 2:
        return f"{where}{column} of {row['arm']} against {other}: {_mean_of(row)}; {ONE}."
    about = _seeds(row)
    if row["detected"]:
        return f"{where}{column} is {_direction(row)} under {row['arm']} than under {other}: {about}."
    return f"{where}no difference detected in {column} between {row['arm']} and {other}: {about}."


def matched(row: Row) -> str:
    """A comparison at an equal value of another column in words, with what was learned there."""
    other = row["against"] + (f" ({condition_of(row['condition'])})" if row["condition"] else "")
    if not row["n"]:
        return f"At equal {row['equal']}, {row['arm']} and {other} have no point in common."
    about = (f"there its score on the task is {100 * row['score']:+.3g} points against that of {other} "
             f"({row['points']} of {row['of']} cells compared)")
    if row["n"] < 2:
        return (f"At equal {row['equal']}, {row['column']} of {row['arm']} minus that of {other}: {_mean_of(row)}; "
                f"{about}; {ONE}.")
    told = (f"{row['column']} is {_direction(row)} under {row['arm']} than under {other}" if row["detected"] else
            f"no difference detected in {row['column']} between {row['arm']} and {other}")
    return f"At equal {row['equal']}, {told}: {_seeds(row)}; {about}."


def _mean_of(row: Row) -> str:
    return f"{_scaled(row, row['mean'])}{' points' if row['items'] else ''}"


def _scaled(row: Row, value: float) -> str:
    """A difference: of scores in points of a hundred, of everything else in its own unit."""
    return f"{value * (100 if row['items'] else 1):+.3g}"


def _direction(row: Row) -> str:
    return "higher" if row["mean"] > 0 else "lower"


def _seeds(row: Row) -> str:
    """The mean over the seeds, its interval, and how many seeds agree."""
    within = row.get("within")
    return (f"{_mean_of(row)} (95 % interval {_scaled(row, row['low'])} to {_scaled(row, row['high'])}; "
            f"{_direction(row)} in {row['agree']} of {row['n']} seeds, p = {row['p_holm']:.2g}"
            + ("" if within is None else f"; item by item within a seed, zero is left out in {within}") + ")")


def cells_table(content: Row) -> Table:
    """Conditions × arms: the mean over the seeds of what was learned, what drifted and what was trained on.

    An arm that is the same in all conditions has one row.
    """
    cells = content["cells"]
    suites = suites_of(cells)
    plotted = [column for found in content["statistics"]["correlations"] for column in (found["x"], found["y"])]
    columns = [column for column in dict.fromkeys([*COLUMNS, *plotted]) if column not in suites
               and any(_mean([cell], arm, column) is not None for cell in cells for arm in cell["arms"])]
    conditions, rows = by_condition(cells), {}
    for condition, group in conditions:
        for arm in dict.fromkeys(arm for cell in group for arm in cell["arms"]):
            own = [cell for cell in group if arm in cell["arms"]]
            rows[condition, arm] = [str(len(own)), *(number(_mean(own, arm, suite), 1, 100) for suite in suites),
                                    *(_figure(column, _mean(own, arm, column)) for column in columns)]
    first = {arm: rows.get((conditions[0][0], arm)) for _, arm in rows}
    same = [arm for arm in first if len(conditions) > 1
            and all(rows.get((condition, arm)) == first[arm] for condition, _ in conditions)]
    over = {column: measured_on(cells, column) for column in [*suites, *columns]}
    return Table(["condition", "arm", "seeds", *(f"{suite}, % ({_n(over[suite])})" for suite in suites),
                  *(f"{column} ({_n(over[column])})" if over[column] else column for column in columns)],
                 [*(["all", arm, *first[arm]] for arm in same),
                  *([condition, arm, *row] for (condition, arm), row in rows.items() if arm not in same)],
                 "Means over the training seeds. " + "; ".join(
                     f"{column}: {axis(column)}{over[column] and f' ({over[column]})'}" for column in columns) + ".")


def _mean(cells: list[Row], arm: str, column: str) -> float | None:
    """Of a column of the arm; what a cell alone has (of its rewrites) is that of sdft."""
    found = [cell["arms"][arm].get(column, cell["measures"].get(column) if arm == "sdft" else None) for cell in cells]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def _n(over: str) -> str:
    """"n = 16" of "n = 16 general answers"."""
    return " ".join(over.split()[:3])


def _figure(column: str, value: float | None) -> str:
    return nats(value) if column == "kl" else number(value, 0 if column == "length" else 3)


def _other(primary: Row) -> str:
    against = primary["against"]
    return against if isinstance(against, str) else condition_of(against)


def _list(lines) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _image(figures: Mapping[str, Figure], name: str) -> str:
    return f"![{figures[name].caption}]({name}.svg)\n\n{figures[name].caption}" if name in figures else ""
