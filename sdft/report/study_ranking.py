"""The page of a study that reads others: which measure predicts what is forgotten, ranked, with intervals."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdft.report.draw import COLOURS, MARKERS, Figure, svg_of
from sdft.report.page import as_markdown
from sdft.report.study_figures import axis
from sdft.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Row = Mapping[str, Any]


def ranking_figures(content: Row) -> list[Figure]:
    """For every outcome the ranking, and the outcome over its first measure."""
    drawn = []
    for outcome in content["study"]["outcomes"]:
        rows = [row for row in content["ranking"] if row["outcome"] == outcome]
        if rows:
            drawn += [_ranking(outcome, rows), _scatter(content, outcome, rows[0]["measure"])]
    return drawn


def ranking_page(content: Row, figures: Mapping[str, Figure]) -> str:
    """The whole page as Markdown."""
    study = content["study"]
    parts = [f"# {study['name'][0].upper()}{study['name'][1:]}", study["question"],
             f"{len(content['points'])} trained arms of {len(study['reads'])} studies: {', '.join(study['reads'])}. "
             "What is forgotten is the drop from the seed of the same cell. In brackets: 95 % bootstrap intervals over "
             "whole studies; with so few studies they are wide, and rough."]
    if content["missing"]:
        parts.append(f"Named before and measured in no cell: {', '.join(content['missing'])}.")
    for outcome in study["outcomes"]:
        rows = [row for row in content["ranking"] if row["outcome"] == outcome]
        parts += [f"## Drop of {outcome}", told(outcome, rows)]
        for name in (f"ranking-{outcome}", f"drop-{outcome}"):
            if name in figures:
                parts.append(f"![{figures[name].caption}]({name}.svg)\n\n{figures[name].caption}")
        if rows:
            parts.append(as_markdown(ranking_table(rows)))
    return "\n\n".join(parts) + "\n"


def told(outcome: str, rows: list[Row]) -> str:
    """The first of the ranking in words, and whether the second can be told from it."""
    if not rows:
        return f"No measure varies together with a drop of {outcome}: nothing to rank."
    best = rows[0]
    text = (f"{best['measure']} ranks first: R² = {_interval(best, 'linear')} with the drop of {outcome}, n = {best['n']} "
            f"arms of {best['studies']} studies.")
    if best["linear_low"] is None:
        text += " Of one study alone there is no interval, so nothing is told from anything."
    if outcome in ("top1", "rouge_l"):
        text += (f" {outcome} is drift of the same general answers that KL and total variation are taken on, not an "
                 "ability: that these go together says little.")
    if len(rows) > 1 and None not in (best["linear_low"], rows[1]["linear_high"]):
        apart = best["linear_low"] > rows[1]["linear_high"]
        text += (f" {'The interval of the next,' if apart else 'No difference detected from the next,'} "
                 f"{rows[1]['measure']}, {_interval(rows[1], 'linear')}{' lies below it' if apart else ''}.")
    return text


def ranking_table(rows: list[Row]) -> Table:
    """The measures of one outcome, the most explaining first."""
    return Table(["measure", "R², linear", "R², ranks", "arms", "studies"],
                 [[row["measure"], _interval(row, "linear"), _interval(row, "ranks"), str(row["n"]),
                   str(row["studies"])] for row in rows])


def _ranking(outcome: str, rows: list[Row]) -> Figure:
    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for shift, name, label in ((0.15, "linear", "straight line"), (-0.15, "ranks", "ranks")):
            colour = COLOURS[1 + (name == "ranks")]
            for place, row in enumerate(reversed(rows)):
                if row[f"{name}_low"] is not None:
                    axes.plot([row[f"{name}_low"], row[f"{name}_high"]], [place + shift] * 2, color=colour)
            axes.plot([row[name] for row in reversed(rows)], [place + shift for place in range(len(rows))],
                      linestyle="", marker=MARKERS[name == "ranks"], color=colour, label=label)
        axes.set_yticks(range(len(rows)), [f"{row['measure']} (n = {row['n']})" for row in reversed(rows)])
        axes.set(xlabel=f"R² with the drop of {outcome}", xlim=(-0.02, 1.02),
                 title=f"What predicts a drop of {outcome} (n: trained arms)")
        axes.legend()

    return Figure(f"ranking-{outcome}", svg_of(draw, height=1.6 + 0.35 * len(rows)),
                  f"How much each measure explains of the drop of {outcome} from the seed. Lines: 95 % bootstrap "
                  "intervals over whole studies.")


def _scatter(content: Row, outcome: str, measure: str) -> Figure:
    points = [point for point in content["points"] if measure in point["measures"] and outcome in point["drops"]]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for index, study in enumerate(dict.fromkeys(point["study"] for point in points)):
            own = [(point["measures"][measure], point["drops"][outcome]) for point in points if point["study"] == study]
            axes.scatter(*zip(*own, strict=True), s=16, alpha=0.7, color=COLOURS[index % len(COLOURS)],
                         marker=MARKERS[index % len(MARKERS)], label=study)
        axes.set(xlabel=axis(measure), ylabel=f"drop of {outcome} from the seed",
                 title=f"n = {len(points)} trained arms")
        axes.legend(fontsize=8)

    return Figure(f"drop-{outcome}", svg_of(draw), f"Every trained arm: the drop of {outcome} over {axis(measure)}, the "
                  "first of the ranking.")


def _interval(row: Row, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + ("" if low is None else f" ({low:.2f}–{high:.2f})")
