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
from sdft.report.draw import Figure, require_matplotlib
from sdft.report.page import as_markdown
from sdft.report.study_figures import axis, by_condition, condition_of, shown, study_figures
from sdft.report.study_ranking import ranking_figures, ranking_page
from sdft.report.tables import Table, nats, number

Row = Mapping[str, Any]
NAME = "cells.json"
COLUMNS = ("kl", "top1", "rouge_l", "length", "shift", "target_nll")


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
    if isinstance(content, dict) and {"study", "points", "ranking", "missing"} <= content.keys():
        return content
    if not isinstance(content, dict) or not {"study", "cells", "failed", "statistics"} <= content.keys():
        raise SdftError(f"{path}: expected a study's cells and statistics; make them with `sdft sweep STUDY.toml`")
    if not content["cells"]:
        raise SdftError(f"{path}: expected at least one finished cell, found none; run the same `sdft sweep` again")
    return content


def page(content: Row, figures: Mapping[str, Figure]) -> str:
    """The whole page as Markdown."""
    study, statistics = content["study"], content["statistics"]
    parts = [f"# {study['name'][0].upper()}{study['name'][1:]}", study["question"], _about(content),
             "## The end point, and what was learned beside it", _list(map(sentence, statistics["comparisons"])),
             _image(figures, "end_point"), _image(figures, "trade_off")]
    if statistics.get("matched"):
        parts += ["## Where arms are equal in something else", _list(map(matched, statistics["matched"]))]
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
    return (f"Named before the first run: {primary['column']} ({axis(primary['column'])}) of {primary['arm']} against "
            f"{_other(primary)}, paired by training seed. {len(content['cells'])} of {study['cells']} cells are "
            f"finished. In every cell: {settings or 'the defaults'}. A difference is told as detected where all seeds "
            "agree in its sign and Student's t test of the paired differences gives p < 0.05, by Holm over the "
            "conditions of a column. Within a seed the interval is over test items, or for kl over answers.")


def sentence(row: Row) -> str:
    """A comparison in words: a direction only where it is detected."""
    scale, unit = (1, "") if row["column"] in COLUMNS or "." in row["column"] else (100, " points")
    where = f"{condition_of(row['condition'])}: " if row["condition"] else ""
    mean = f"{scale * row['mean']:+.3g}{unit}"
    direction = "higher" if row["mean"] > 0 else "lower"
    if row["n"] < 2:
        return (f"{where}{row['column']} of {row['arm']} against {_other(row)}: {mean}; one seed, so nothing can be "
                "told from it.")
    about = (f"{mean} (95 % interval {scale * row['low']:+.3g} to {scale * row['high']:+.3g}; {direction} in "
             f"{row['agree']} of {row['n']} seeds, p = {row['p_holm']:.2g}"
             + (f"; item by item within a seed, zero is left out in {row['within']}" if row.get("within") is not None
                else "") + ")")
    if row["detected"]:
        return f"{where}{row['column']} is {direction} under {row['arm']} than under {_other(row)}: {about}."
    return f"{where}no difference detected in {row['column']} between {row['arm']} and {_other(row)}: {about}."


def matched(row: Row) -> str:
    """A comparison at an equal value of another column, in words."""
    other = row["against"] + (f" ({condition_of(row['condition'])})" if row["condition"] else "")
    if not row["n"]:
        return f"At equal {row['equal']}, {row['arm']} and {other} have no point in common."
    return (f"At equal {row['equal']}, {row['column']} of {row['arm']} minus that of {other}: {row['mean']:+.3g} "
            f"(mean of n = {row['n']} of {row['of']} cells, {min(row['differences']):+.3g} to "
            f"{max(row['differences']):+.3g}).")


def cells_table(content: Row) -> Table:
    """Conditions × arms: the mean over the seeds of what was learned, what drifted and what was trained on.

    An arm that is the same in all conditions has one row.
    """
    cells = content["cells"]
    suites = list(dict.fromkeys(suite for cell in cells for suite in cell["items"]))
    plotted = [column for found in content["statistics"]["correlations"] for column in (found["x"], found["y"])]
    columns = list(dict.fromkeys([*COLUMNS, *(column for column in plotted if column not in suites)]))
    conditions, rows = by_condition(cells), {}
    for condition, group in conditions:
        for arm in dict.fromkeys(arm for cell in group for arm in cell["arms"]):
            own = [cell for cell in group if arm in cell["arms"]]
            rows[condition, arm] = [str(len(own)), *(number(_mean(own, arm, suite), 1, 100) for suite in suites),
                                    *(_figure(column, _mean(own, arm, column)) for column in columns)]
    first = {arm: rows.get((conditions[0][0], arm)) for _, arm in rows}
    same = [arm for arm in first if len(conditions) > 1
            and all(rows.get((condition, arm)) == first[arm] for condition, _ in conditions)]
    counts = {suite: next(cell["items"][suite] for cell in cells if suite in cell["items"]) for suite in suites}
    return Table(["condition", "arm", "seeds", *(f"{suite}, % (n = {counts[suite]})" for suite in suites), *columns],
                 [*(["all", arm, *first[arm]] for arm in same),
                  *([condition, arm, *row] for (condition, arm), row in rows.items() if arm not in same)],
                 "Means over the training seeds. " + "; ".join(f"{column}: {axis(column)}" for column in columns) + ".")


def _mean(cells: list[Row], arm: str, column: str) -> float | None:
    """Of a column of the arm; what a cell alone has (of its rewrites) is that of sdft."""
    found = [cell["arms"][arm].get(column, cell["measures"].get(column) if arm == "sdft" else None) for cell in cells]
    known = [value for value in found if value is not None]
    return fmean(known) if known else None


def _figure(column: str, value: float | None) -> str:
    return nats(value) if column == "kl" else number(value, 0 if column == "length" else 3)


def _other(primary: Row) -> str:
    against = primary["against"]
    return against if isinstance(against, str) else condition_of(against)


def _list(lines) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _image(figures: Mapping[str, Figure], name: str) -> str:
    return f"![{figures[name].caption}]({name}.svg)\n\n{figures[name].caption}" if name in figures else ""
