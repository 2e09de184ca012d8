"""The page of a study that reads others: which measure predicts what is forgotten, ranked within studies.

Every measure has its sign, intervals and n, and beside them how it goes with what was learned.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sdft.report.drawing import COLOURS, MARKERS, Figure, svg_of
from sdft.report.tables import Table, as_markdown
from sdft.studies.figures import AXES, GENERAL, axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Row = Mapping[str, Any]
ALIKE = ("top1", "rouge_l")         # outcomes that are drift of the general answers, no abilities


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
             "What is forgotten is the drop from the seed of the same cell. Measures are ranked by R² within studies: "
             "measure and drop are set against their means over the arms of the same study and task, so that what only "
             "the studies differ in (records, items, length) explains nothing; pooled, as if all arms were of one "
             "study, stands beside. r tells the direction: + where more of the measure goes with a larger drop. In "
             "brackets: 95 % bootstrap intervals over whole studies; with so few studies they are wide, and rough, and "
             "the first of so many measures looks better than it is. r with gained: of the measure with what was "
             "learned, the score on the task above the seed's, which is itself ranked as `gained`."]
    for found, text in ((content["missing"], "Named before and measured in no cell"),
                        (content["constant"], "The same in every arm of a study, or in too few arms to tell")):
        parts += [f"{text}: {', '.join(found)}."] if found else []
    for outcome in study["outcomes"]:
        rows = [row for row in content["ranking"] if row["outcome"] == outcome]
        parts += [f"## Drop of {outcome}", begun([row for row in content["starts"] if row["outcome"] == outcome]),
                  told(outcome, rows)]
        for name in (f"ranking-{outcome}", f"drop-{outcome}"):
            if name in figures:
                parts.append(f"![{figures[name].caption}]({name}.svg)\n\n{figures[name].caption}")
        if rows:
            parts.append(as_markdown(ranking_table(rows)))
    return "\n\n".join(parts) + "\n"


def begun(starts: list[Row]) -> str:
    """Where the seed stands, study by study, over how many items; and how many cells are left out at the floor."""
    places: dict[str, list[str]] = {}
    for row in starts:
        if row["score"] is not None:
            left_out = f", {row['left_out']} of {row['cells']} cells left out" if row["left_out"] else ""
            score = f"{row['score']:.3g} of 1, n = {row['n']} {'answers' if row['outcome'] in GENERAL else 'items'}"
            places.setdefault(row["study"], []).append(f"{row['task']}: {score}{left_out}")
    unmeasured = dict.fromkeys(row["study"] for row in starts if row["study"] not in places)
    floor = sum(row["left_out"] for row in starts)
    return ("The seed's own: " + "; ".join(f"{study} ({', '.join(dict.fromkeys(found))})"
                                           for study, found in places.items()) + "."
            + (f" Not measured in {', '.join(unmeasured)}." if unmeasured else "")
            + (f" {floor} cells whose seed scores 0 are left out: nothing can be lost there." if floor else ""))


def told(outcome: str, rows: list[Row]) -> str:
    """The first of the ranking in words, with its sign, and whether the second can be told from it."""
    if not rows:
        return f"No measure varies together with a drop of {outcome}: nothing to rank."
    best = rows[0]
    text = (f"{best['measure']} ranks first: R² = {_within(best)} within studies with the drop of {outcome}, r = "
            f"{_signed(best)}, n = {best['n']} arms of {best['studies']} studies: {direction(best)}. Pooled over the "
            f"studies r = {best['pooled']:+.2f}.")
    if best["with_gained"] is not None:
        text += f" With what was learned it goes by r = {best['with_gained']:+.2f}."
    if best["low"] is None:
        text += f" Of {best['studies']} studies there is no interval, so nothing is told from anything."
    elif best["studies"] == 3:
        text += (" (An interval over 3 studies leaves zero out about where all of them agree in sign, as by chance one "
                 "time in 4.)")
    if outcome in ALIKE:
        text += (f" {outcome} is drift of the same general answers that KL, total variation and likenesses are taken "
                 "on, not an ability: that these go together says little.")
    if len(rows) > 1 and rows[1]["behind"]["low"] is not None:
        name, behind = rows[1]["measure"], rows[1]["behind"]
        apart = (f"The next, {name}, lies below it" if behind["low"] > 0 else
                 f"No difference detected from the next, {name}")
        below = sum((row["behind"]["low"] or 0) > 0 for row in rows[1:])
        text += (f" {apart}: R² = {_within(rows[1])}, the difference on the same {behind['n']} arms "
                 f"{behind['difference']:+.2f} ({behind['low']:+.2f} to {behind['high']:+.2f}). By such an interval "
                 f"{below} of the other {len(rows) - 1} measures lie below it.")
    return text


def direction(row: Row) -> str:
    """The sign of r in words, where its interval leaves zero out."""
    if row["low"] is None or row["low"] <= 0 <= row["high"]:
        return "not clear"
    return f"the more, the {'more' if row['r'] > 0 else 'less'} is lost"


def ranking_table(rows: list[Row]) -> Table:
    """The measures of one outcome, the most explaining first."""
    return Table(["measure", "what it is", "R² within", "r within", "direction", "ρ of ranks", "R² pooled",
                  "r pooled", "r with gained", "arms", "studies"],
                 [[row["measure"], axis(row["measure"]) if row["measure"] in AXES else "", _within(row), _signed(row),
                   direction(row), _number(row["ranks"], "+"), _number(row["pooled"] and row["pooled"]**2),
                   _number(row["pooled"], "+"), _number(row["with_gained"], "+"), str(row["n"]), str(row["studies"])]
                  for row in rows])


def _ranking(outcome: str, rows: list[Row]) -> Figure:
    places = range(len(rows) - 1, -1, -1)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for place, row in zip(places, rows, strict=True):
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place] * 2, color=COLOURS[1])
        axes.plot([row["r"] for row in rows], places, linestyle="", marker=MARKERS[0], color=COLOURS[1],
                  label="within studies")
        axes.plot([row["pooled"] for row in rows], places, linestyle="", marker=MARKERS[2], markerfacecolor="none",
                  color=COLOURS[2], label="pooled over them")
        axes.axvline(0, color="#888", linewidth=0.8, zorder=0)
        axes.set_yticks(places, [f"{axis(row['measure'])} (n = {row['n']})" for row in rows], fontsize=8)
        axes.set(xlabel="r with the drop   (right: the more, the more is lost)", xlim=(-1.04, 1.04),
                 ylim=(-0.8, len(rows) - 0.2), xticks=(-1, -0.5, 0, 0.5, 1),
                 title=f"What predicts a drop of {outcome} (n: trained arms)")
        axes.figure.legend(loc="outside lower right", ncols=2, fontsize=8)

    return Figure(f"ranking-{outcome}", svg_of(draw, width=8.2, height=1.6 + 0.23 * len(rows)),
                  f"How each measure goes with the drop of {outcome} from the seed; the highest explains most within "
                  "studies. Lines: 95 % bootstrap intervals over whole studies.")


def _scatter(content: Row, outcome: str, measure: str) -> Figure:
    points = [point for point in content["points"] if measure in point["measures"] and outcome in point["drops"]]
    what = axis(outcome) if outcome in AXES else f"{outcome}, share"

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for index, study in enumerate(dict.fromkeys(point["study"] for point in points)):
            own = [(point["measures"][measure], point["drops"][outcome]) for point in points if point["study"] == study]
            axes.scatter(*zip(*own, strict=True), s=16, alpha=0.7, color=COLOURS[index % len(COLOURS)],
                         marker=MARKERS[index % len(MARKERS)], label=f"{study} (n = {len(own)})")
        axes.set(xlabel=axis(measure), ylabel=f"drop from the seed of\n{what}", title=f"n = {len(points)} trained arms")
        axes.legend(fontsize=8)

    return Figure(f"drop-{outcome}", svg_of(draw), f"Every trained arm: the drop of {outcome} over {axis(measure)}, "
                  "the first of the ranking.")


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}"


def _within(row: Row) -> str:
    low, high = row["within_low"], row["within_high"]
    return f"{row['within']:.2f}" + ("" if low is None else f" ({low:.2f}–{high:.2f})")


def _signed(row: Row) -> str:
    low, high = row["low"], row["high"]
    return f"{row['r']:+.2f}" + ("" if low is None else f" ({low:+.2f} to {high:+.2f})")
