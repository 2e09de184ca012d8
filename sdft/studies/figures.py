"""The figures of a study, drawn from cells.json alone; as in a run's report, axes have units and titles have n.

Every seed is a point, every mean a larger one; colours belong to arms.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sdft.report.drawing import COLOURS, MARKERS, Figure, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

Row = Mapping[str, Any]
SHARE = "score, share"
AXES = {
    "kl": "KL from the seed, nats/token", "top1": "top-1 agreement with the seed, share of tokens",
    "rouge_l": "ROUGE-L to the seed, 0 to 1", "length": "answer, tokens", "shift": "‖ΔW‖", "lr": "learning rate",
    "target_nll": "NLL of the targets under the seed, nats/token", "accepted_share": "share of rewrites accepted",
    "changed_token_share": "share of target tokens that are changed", "effective_share": "share of targets changed",
    "rouge_l_written": "ROUGE-L of rewrites to references, 0 to 1", "relative_shift": "‖ΔW‖ / ‖W‖",
    "texts.rouge_l": "ROUGE-L of rewrites to originals, 0 to 1", "texts.bleu": "BLEU of rewrites to originals, 0 to 1",
    "texts.cosine": "embedding cosine of rewrites and originals",
    "general.tv": "total variation from the seed, 0 to 1", "general.bleu": "BLEU to the seed, 0 to 1",
    "general.cosine": "embedding cosine with the seed's answers", "general.reverse.kl": "reverse KL, nats/token",
    "general.reverse.tv": "total variation on its own answers, 0 to 1",
    "general.reverse.top1": "top-1 agreement on its own answers, share of tokens",
    "on_task.kl": "KL on the task, nats/token", "on_task.tv": "total variation on the task, 0 to 1",
    "on_task.top1": "top-1 agreement on the task, share of tokens",
    "on_task.reverse.kl": "reverse KL on the task, nats/token",
    "on_task.reverse.tv": "total variation on its own answers to the task, 0 to 1",
    "on_task.reverse.top1": "top-1 agreement on its own answers to the task, share of tokens",
    "activations.relative": "‖h − h₀‖ / ‖h₀‖, mean over layers",
    "activations.cka": "CKA with the seed, mean over layers",
    "activations.cosine": "cosine of h and h₀, mean over layers",
    "shift.changed_bf16": "share of weights whose bf16 value changes", "fisher.total": "Σ F·ΔW², nats²/answer",
    "shift.stable_rank": "stable rank of ΔW, mean over modules", "shift.effective_rank": "effective rank of ΔW, mean",
    "shift.spectral_shift": "‖σ(W₊) − σ(W₀)‖ / ‖σ(W₀)‖, mean",
    "shift.intruders": "intruder dimensions of 10, mean",
    "shift.left_cosine": "principal cosines with the seed, left, mean",
    "shift.right_cosine": "principal cosines with the seed, right, mean",
    "gap.distilled.low": "share of target tokens with p < 0.4 under the seed",
    "gap.distilled.rank_mean": "mean rank of the target tokens under the seed",
    "training.target_tokens": "target tokens trained on", "gained": "score on the task above the seed's, share",
}
ON = {"general": "general answers", "on_task": "answers to the task", "activations": "probe texts",
      "fisher": "answers of the seed", "texts": "rewrites"}                  # what is counted in general.n, …
GENERAL = ("kl", "top1", "rouge_l", "length")
LABELS = 16                                     # means that are named in a scatter


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
    name, over = axis(column, suites_of(content["cells"])), measured_on(content["cells"], column)

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
        axes.set(ylabel=name, ylim=(min(0, axes.get_ylim()[0]), None), xlim=(-0.6, len(labels) - 0.4),
                 title=f"{column} by condition (n = {_counts(values.values())} training seeds{over and '; ' + over})")
        axes.legend()

    return Figure("end_point", svg_of(draw, width=max(5.4, 0.75 * len(labels) + 2)),
                  f"The primary end point, {name}{over and f' ({over})'}. Points: training seeds, a line joining what "
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
                if column in row and arm != "base":
                    gained = 100 * (row[cell["suite"]] - cell["arms"]["base"][cell["suite"]])
                    points.setdefault(arm, {}).setdefault(condition, set()).add((gained, row[column]))
    if not points:
        return None
    cells = content["cells"]
    suites = ", ".join(f"{suite}, {measured_on(cells, suite)}" for suite in
                       dict.fromkeys(cell["suite"] for cell in cells))
    name, over = axis(column, suites_of(cells)), measured_on(cells, column)
    return Figure("trade_off", svg_of(lambda canvas: _scatter(
        canvas, content, points, "score on the task above the seed's, points   (right: learned more)",
        f"{name}   (up: drifted more)" if column == "kl" else name, "Learned and drifted")),
        f"Each arm by what it learned ({suites}) and by {name}{over and f' ({over})'}. Small: training seeds; large: "
        "their mean.")


def pair(content: Row, index: int) -> Figure | None:
    """Two columns against each other, as the study asked."""
    found = content["statistics"]["correlations"][index]
    points: dict[str, dict[str, set[tuple[float, float]]]] = {}
    for point in found["points"]:
        conditions = points.setdefault(point["arm"], {})
        conditions.setdefault(condition_of(point["values"]), set()).add((point["x"], point["y"]))
    if not points:
        return None
    x, y = (axis(found[name], suites_of(content["cells"])) for name in "xy")
    over = "; ".join(f"{found[name]}: {on}" for name in "yx" if (on := measured_on(content["cells"], found[name])))
    return Figure(f"{found['x']}-{found['y']}".replace(".", "_"), svg_of(
        lambda canvas: _scatter(canvas, content, points, x, y, f"{found['y']} over {found['x']}")),
        f"{y} over {x}, n = {found['n']} trained arms{over and f' ({over})'}. {explained(found)}")


def _scatter(canvas: Canvas, content: Row, points: Mapping[str, Mapping[str, set[tuple[float, float]]]], x: str,
             y: str, title: str) -> None:
    axes = canvas.subplots()
    total = sum(len(set().union(*conditions.values())) for conditions in points.values())
    named: list[tuple[str, tuple[float, ...], str]] = []
    for arm, conditions in points.items():
        colour, marker = _colour(content, arm), MARKERS[_place(content, arm) % len(MARKERS)]
        means = {}
        for condition, found in conditions.items():
            axes.scatter(*zip(*sorted(found), strict=True), s=14, alpha=0.45, color=colour, marker=marker)
            means[condition] = tuple(map(fmean, zip(*found, strict=True)))
        axes.scatter(*zip(*means.values(), strict=True), s=60, color=colour, marker=marker, label=arm)
        named += [(condition, place, colour) for condition, place in means.items() if 1 < len(set(means.values()))]
    axes.set(xlabel=x, ylabel=y, title=f"{title} (n = {total} trained arms)")
    axes.margins(0.09)
    if len(named) <= LABELS:
        _label(axes, named)
    axes.legend(fontsize=8)


def _label(axes: Axes, named: Sequence[tuple[str, tuple[float, ...], str]]) -> None:
    """Write (text, place, colour) right of its place, or left at the edge; moved up where it would lie over another."""
    from matplotlib.patheffects import withStroke

    texts = [axes.annotate(text, place, xytext=(6, 4), textcoords="offset points", fontsize=7, color=colour,
                           path_effects=[withStroke(linewidth=2, foreground="white")])
             for text, place, colour in named]
    for text in texts:
        text.set_in_layout(False)
    axes.figure.draw_without_rendering()                                # the layout is known only now
    for text in texts:
        if text.get_window_extent().x1 > axes.bbox.x1:
            text.set_ha("right")
            text.xyann = (-6, 4)
    for text, up in zip(texts, apart([text.get_window_extent().extents.tolist() for text in texts]), strict=True):
        if up:
            text.xyann = (text.xyann[0], 4 + up * 72 / axes.figure.dpi)
            axes.annotate("", text.xy, xytext=text.xyann, textcoords="offset points", arrowprops={
                "arrowstyle": "-", "linewidth": 0.5, "color": text.get_color(), "alpha": 0.6})


def apart(boxes: Sequence[Sequence[float]]) -> list[float]:
    """How far up each box (left, bottom, right, top) must move so that none lies over another: the lowest stays."""
    placed: list[tuple[float, float, float, float]] = []
    moves = [0.0] * len(boxes)
    for index in sorted(range(len(boxes)), key=lambda index: (boxes[index][1], index)):
        left, bottom, right, top = boxes[index]
        while above := [other[3] for other in placed if left < other[2] and other[0] < right
                        and bottom + moves[index] < other[3] and other[1] < top + moves[index]]:
            moves[index] = max(above) - bottom
        placed.append((left, bottom + moves[index], right, top + moves[index]))
    return moves


def explained(found: Row) -> str:
    """A correlation in words, with its sign."""
    if found["r"] is None:
        return "Too few different points for a correlation."
    between = (f"95 % interval {found['low']:+.2f} to {found['high']:+.2f}, over {found['groups']} arms and conditions"
               if found["low"] is not None else f"no interval from {found['groups']} arms and conditions")
    return (f"r = {found['r']:+.2f} ({between}; R² = {found['r']**2:.2f}), of the ranks "
            + ("not defined." if found["ranks"] is None else f"{found['ranks']:+.2f} (Spearman's ρ)."))


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


def axis(column: str, suites: Iterable[str] = ()) -> str:
    """What a column is, with its unit where there is one; of one of the suites it is the score."""
    return AXES.get(column, f"{column}: {SHARE}" if column in suites else column)


def suites_of(cells: Sequence[Row]) -> list[str]:
    """Every suite that a cell was tested on."""
    return list(dict.fromkeys(suite for cell in cells for suite in cell["items"]))


def measured_on(cells: Sequence[Row], column: str) -> str:
    """Over how much an arm's column is a mean: "n = 16 general answers"; "" where cells.json does not say."""
    part = "general" if column in GENERAL else column.partition(".")[0]
    counts = {cell["items"].get(column) for cell in cells}
    counts |= {row.get(f"{part}.n") for cell in cells for row in (*cell["arms"].values(), cell["measures"])}
    known = sorted(counts - {None})
    what = "items" if column in suites_of(cells) else ON.get(part)
    return f"n = {'–'.join(map(str, dict.fromkeys((known[0], known[-1]))))} {what}" if known and what else ""


def _place(content: Row, arm: str) -> int:
    return list(dict.fromkeys(name for cell in content["cells"] for name in cell["arms"])).index(arm)


def _colour(content: Row, arm: str) -> str:
    return COLOURS[_place(content, arm) % len(COLOURS)]


def _counts(values: Iterable[Sequence[Sequence[float]]]) -> str:
    counts = {len(found) for seeds in values for found in seeds}
    return str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
