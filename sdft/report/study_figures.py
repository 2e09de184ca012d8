"""The figures of a study, drawn from cells.json alone; as in a run's report, axes have units and titles have n.

Every seed is a point, every mean a larger one; colours belong to arms.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sdft.report.draw import COLOURS, MARKERS, Figure, svg_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Row = Mapping[str, Any]
AXES = {
    "kl": "KL from the seed, nats/token", "top1": "top-1 agreement with the seed", "rouge_l": "ROUGE-L to the seed",
    "length": "answer, tokens", "shift": "‖ΔW‖", "relative_shift": "‖ΔW‖ / ‖W‖",
    "target_nll": "NLL of the targets under the seed, nats/token", "accepted_share": "share of rewrites accepted",
    "changed_token_share": "share of target tokens that are changed", "effective_share": "share of targets changed",
    "rouge_l_written": "ROUGE-L of rewrites to references",
    "general.reverse.kl": "reverse KL, nats/token", "general.tv": "total variation from the seed",
    "on_task.kl": "KL from the seed on the task, nats/token",
    "on_task.reverse.kl": "reverse KL on the task, nats/token",
    "activations.relative": "‖h − h₀‖ / ‖h₀‖, mean over layers", "activations.cka": "CKA with the seed, mean over layers",
    "fisher.total": "Σ F·ΔW², nats/answer", "shift.changed_bf16": "share of weights whose bf16 value changes",
    "training.target_tokens": "target tokens trained on",
}
LABELS = 12                                     # means that are named in a scatter


def study_figures(content: Row) -> list[Figure]:
    """All figures for which the study has numbers."""
    drawn = [end_point(content), trade_off(content)]
    drawn += [pair(content, index) for index in range(len(content["statistics"]["correlations"]))]
    return [figure for figure in drawn if figure is not None]


def end_point(content: Row) -> Figure | None:
    """The primary end point by condition: both sides of the comparison, or where cells are compared each condition."""
    primary = content["study"]["primary"]
    against, column = primary["against"], primary["column"]
    arms = [primary["arm"], *([against] if isinstance(against, str) else [])]
    groups = by_condition(content["cells"])
    values = {arm: [[cell["arms"][arm][column] for cell in cells if column in cell["arms"].get(arm, {})]
                    for _, cells in groups] for arm in arms}
    if not any(map(any, values.values())):
        return None
    labels = [condition for condition, _ in groups]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        shifts = [0.16 * (index - (len(values) - 1) / 2) for index in range(len(values))]
        for line in _lines(groups, arms, column, shifts):
            axes.plot(*zip(*line, strict=True), color="#bbb", linewidth=0.8, zorder=0)
        for shift, (arm, seeds) in zip(shifts, values.items(), strict=True):
            places = [place + shift for place, found in enumerate(seeds) if found]
            means = [fmean(found) for found in seeds if found]
            points = [(place + shift, value) for place, found in enumerate(seeds) for value in found]
            axes.scatter(*zip(*points, strict=True), s=16, alpha=0.6, color=_colour(content, arm))
            axes.scatter(places, means, s=130, marker="_", linewidths=2.5, color=_colour(content, arm), label=arm)
        axes.set_xticks(range(len(labels)), labels, rotation=30 if max(map(len, labels)) > 9 else 0,
                        ha="right" if max(map(len, labels)) > 9 else "center")
        axes.margins(y=0.25)
        axes.set(ylabel=axis(column), ylim=(min(0, axes.get_ylim()[0]), None), xlim=(-0.6, len(labels) - 0.4),
                 title=f"{column} by condition (training seeds: n = {_counts(values.values())})")
        axes.legend()

    return Figure("end_point", svg_of(draw, width=max(5.4, 0.75 * len(labels) + 2)),
                  f"The primary end point, {axis(column)}. Points: training seeds, a line joining what "
                  "is compared of one. Bars: their means.")


def _lines(groups: Sequence[tuple[str, Sequence[Row]]], arms: Sequence[str], column: str,
           shifts: Sequence[float]) -> list[list[tuple[float, float]]]:
    """For each seed the points that are compared: both arms of a cell, or one arm over the conditions."""
    lines: dict[Any, list[tuple[float, float]]] = {}
    for place, (_, cells) in enumerate(groups):
        for cell in cells:
            for arm, shift in zip(arms, shifts, strict=True):
                if column in cell["arms"].get(arm, {}):
                    key = cell["name"] if len(arms) > 1 else cell["values"].get("seed")
                    lines.setdefault(key, []).append((place + shift, cell["arms"][arm][column]))
    return list(lines.values())


def trade_off(content: Row) -> Figure | None:
    """What was learned (the task's score above the seed's) against the end point, for every arm of every cell."""
    column = content["study"]["primary"]["column"]
    points: dict[str, dict[str, set[tuple[float, float]]]] = {}
    for condition, cells in by_condition(content["cells"]):
        for cell in cells:
            for arm, row in cell["arms"].items():
                if column in row and arm != "seed":
                    gained = 100 * (row[cell["suite"]] - cell["arms"]["seed"][cell["suite"]])
                    points.setdefault(arm, {}).setdefault(condition, set()).add((gained, row[column]))
    if not points:
        return None
    suites = ", ".join(dict.fromkeys(f"{cell['suite']}, {cell['items'][cell['suite']]} items"
                                     for cell in content["cells"]))
    return Figure("trade_off", svg_of(lambda canvas: _scatter(
        canvas, content, points, "score on the task above the seed's, points   (right: learned more)",
        f"{axis(column)}   (up: drifted more)" if column == "kl" else axis(column),
        "Learned and drifted")),
        f"Each arm by what it learned ({suites}) and by {axis(column)}. Small: training seeds; large: their mean.")


def pair(content: Row, index: int) -> Figure | None:
    """Two columns against each other, as the study asked."""
    found = content["statistics"]["correlations"][index]
    points: dict[str, dict[str, set[tuple[float, float]]]] = {}
    for point in found["points"]:
        conditions = points.setdefault(point["arm"], {})
        conditions.setdefault(condition_of(point["values"]), set()).add((point["x"], point["y"]))
    if not points:
        return None
    name = f"{found['x']}-{found['y']}".replace(".", "_")
    return Figure(name, svg_of(lambda canvas: _scatter(canvas, content, points, axis(found["x"]), axis(found["y"]),
                                                     f"{found['y']} over {found['x']}")),
                  f"{axis(found['y'])} over {axis(found['x'])}, n = {found['n']} trained arms. {explained(found)}")


def _scatter(canvas: Canvas, content: Row, points: Mapping[str, Mapping[str, set[tuple[float, float]]]], x: str,
             y: str, title: str) -> None:
    axes = canvas.subplots()
    total = sum(len(set().union(*conditions.values())) for conditions in points.values())
    for arm, conditions in points.items():
        colour, marker = _colour(content, arm), MARKERS[_place(content, arm) % len(MARKERS)]
        means = {}
        for condition, found in conditions.items():
            axes.scatter(*zip(*sorted(found), strict=True), s=14, alpha=0.45, color=colour, marker=marker)
            means[condition] = tuple(map(fmean, zip(*found, strict=True)))
        axes.scatter(*zip(*means.values(), strict=True), s=60, color=colour, marker=marker, label=arm)
        if 1 < len(set(means.values())) <= LABELS:
            for condition, place in means.items():
                axes.annotate(condition, place, xytext=(6, 4), textcoords="offset points", fontsize=7, color=colour)
    axes.set(xlabel=x, ylabel=y, title=f"{title} (n = {total})")
    axes.legend(fontsize=8)


def explained(found: Row) -> str:
    """R² in words."""
    if found["linear"] is None:
        return "Too few different points for a correlation."
    return f"R² = {found['linear']:.2f} of a straight line, {found['ranks']:.2f} of the ranks (Spearman's ρ²)."


def by_condition(cells: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The cells that differ in their seed alone, together, in their order."""
    groups: dict[str, list[Row]] = {}
    for cell in cells:
        groups.setdefault(condition_of(cell["values"]), []).append(cell)
    return list(groups.items())


def condition_of(values: Row) -> str:
    """A cell's own settings without the seed, in few characters: "ratio 0.5", or a name as it is."""
    parts = {name: shown(value) for name, value in values.items() if name != "seed"}
    if not parts:
        return "all cells"
    return ", ".join(part if name in ("cell", "template", "task") else f"{name} {part}" for name, part in parts.items())


def shown(value: Any) -> str:
    """A setting's value in few characters."""
    return "+".join(map(shown, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else \
        str(value)


def axis(column: str) -> str:
    """What a column is, with its unit where there is one."""
    return AXES.get(column, f"{column}: score, share" if column.isidentifier() else column)


def _place(content: Row, arm: str) -> int:
    return list(dict.fromkeys(name for cell in content["cells"] for name in cell["arms"])).index(arm)


def _colour(content: Row, arm: str) -> str:
    return COLOURS[_place(content, arm) % len(COLOURS)]


def _counts(values: Iterable[Sequence[Sequence[float]]]) -> str:
    counts = {len(found) for seeds in values for found in seeds}
    return str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
