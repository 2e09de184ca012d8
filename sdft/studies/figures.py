"""The figures of a study, drawn from cells.json alone. Axes name their units and titles give n, as in a run's report.

Every training seed is a point, every mean a larger one. A pilot has no figures.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sdft.report.drawing import COLOURS, MARKERS, Figure, svg_of
from sdft.studies.columns import FORGETTING, axis, measured_on, words
from sdft.studies.results import Correlation, RunResult, Settings, StudyResults
from sdft.studies.specification import SEED, shown
from sdft.studies.statistics import conditions, is_pilot

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Points = list[tuple[str, str, float, float]]                    # arm, condition, x, y
SERIES = 17                                     # the most conditions that a scatter shows one by one


def study_figures(content: StudyResults) -> list[Figure]:
    """All figures for which the study has numbers; none of a pilot."""
    if is_pilot(content["runs"]):
        return []
    pairs = (pair(content, correlation) for correlation in content["statistics"]["correlations"])
    drawn = [end_point(content), trade_off(content), *pairs]
    return [figure for figure in drawn if figure is not None]


def text_svg(draw: Callable[[Canvas], None], width: float = 5.4, height: float = 3.9) -> str:
    """An SVG that keeps text as text, which takes a fraction of the bytes of its outlines."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        return svg_of(draw, width, height)[0]


def end_point(content: StudyResults) -> Figure | None:
    """The primary end point by condition: of the arms that are compared, or of one arm where runs are."""
    primary, runs = content["study"]["primary"], content["runs"]
    against, column = primary["against"], primary["column"]
    compared = [primary["arm"], *([against] if isinstance(against, str) else []), *content["study"].get("controls", [])]
    arms = [arm for arm in compared if any(column in run["arms"].get(arm, {}) for run in runs)]
    groups = [(condition, group) for condition, group in by_condition(runs)
              if any(column in run["arms"].get(arm, {}) for run in group for arm in arms)]
    values = {arm: [[run["arms"][arm][column] for run in group if column in run["arms"].get(arm, {})]
                    for _, group in groups] for arm in arms}
    if not groups:
        return None
    labels = [condition for condition, _ in groups]
    name, counted = axis(column, suites_of(runs)), measured_on(runs, column)
    counts = sorted({len(group) for seeds in values.values() for group in seeds if group})
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    shifts = [0.16 * (index - (len(arms) - 1) / 2) for index in range(len(arms))]
    lines: dict[Any, list[tuple[float, float]]] = {}        # the points that are compared: arms of a run, or conditions
    for at, (_, group) in enumerate(groups):
        for run in group:
            for arm, shift in zip(arms, shifts, strict=True):
                if column in run["arms"].get(arm, {}):
                    key = run["name"] if len(arms) > 1 else run["values"].get(SEED)
                    lines.setdefault(key, []).append((at + shift, run["arms"][arm][column]))

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for line in lines.values():
            axes.plot(*zip(*line, strict=True), color="#bbb", linewidth=0.8, zorder=0)
        for shift, (arm, seeds) in zip(shifts, values.items(), strict=True):
            colour, _ = _style(content, arm)
            points = [(at + shift, value) for at, group in enumerate(seeds) for value in group]
            axes.scatter([x for x, _ in points], [y for _, y in points], s=16, alpha=0.6, color=colour)
            axes.scatter([at + shift for at, group in enumerate(seeds) if group],
                         [fmean(group) for group in seeds if group], s=130, marker="_", linewidths=2.5, color=colour,
                         label=arm)
        long = max(map(len, labels)) > 9
        axes.set_xticks(range(len(labels)), labels, rotation=30 if long else 0, ha="right" if long else "center")
        axes.margins(y=0.25)
        axes.set(ylabel=name, ylim=(min(0, axes.get_ylim()[0]), None), xlim=(-0.6, len(labels) - 0.4),
                 title=f"By condition (n = {n} training seeds{counted and '; ' + counted})")
        axes.legend()

    return Figure("end_point", text_svg(draw, width=max(5.4, 0.75 * len(labels) + 2)),
                  f"The primary end point, {name}{counted and f' ({counted})'}. Points: training seeds; a line joins "
                  "the points that are compared. Bars: means over the seeds.")


def trade_off(content: StudyResults) -> Figure | None:
    """The task's score above the base model's against the end point, for every arm of every run."""
    column, runs = content["study"]["primary"]["column"], content["runs"]
    points = [(arm, condition, 100 * (columns[run["suite"]] - run["arms"]["base"][run["suite"]]), columns[column])
              for condition, group in by_condition(runs) for run in group for arm, columns in run["arms"].items()
              if column in columns and arm != "base"]
    if not points:
        return None
    suites = ", ".join(f"{suite}, {measured_on(runs, suite)}" for suite in dict.fromkeys(run["suite"] for run in runs))
    name, counted = axis(column, suites_of(runs)), measured_on(runs, column)
    return Figure("trade_off", text_svg(lambda canvas: _scatter(
        canvas, content, points, "score on the task above the base model's, points", name,
        "Learned (right) and forgot (up)" if column.endswith(FORGETTING) else
        "Learned (right) and drifted (up)" if column == "kl" else "Learned and drifted"), width=7.2),
        f"Each arm by what it learned ({suites}) and by {name}{counted and f' ({counted})'}. Small points: training "
        "seeds; large points: their mean.")


def pair(content: StudyResults, correlation: Correlation) -> Figure | None:
    """The two columns of a correlation against each other."""
    points = [(point["arm"], condition_of(point["values"]), point["x"], point["y"]) for point in correlation["points"]]
    if not points:
        return None
    runs, columns = content["runs"], (correlation["x"], correlation["y"])
    x, y = (axis(column, suites_of(runs)) for column in columns)
    counted = "; ".join(f"{words(column, suites_of(runs))}: {on}" for column in columns[::-1]
                        if (on := measured_on(runs, column)))
    return Figure("-".join(columns).replace(".", "_"), text_svg(
        lambda canvas: _scatter(canvas, content, points, x, y, "All runs"), width=7.2),
        f"{y} over {x}, n = {correlation['n']} trained arms{counted and f' ({counted})'}. {explained(correlation)}")


def _scatter(canvas: Canvas, content: StudyResults, points: Points, x: str, y: str, title: str) -> None:
    """Every arm a colour; or every condition of it, where the arm differs over conditions and they are few."""
    axes = canvas.subplots()
    arms: dict[str, dict[str, set[tuple[float, float]]]] = {}
    for arm, condition, a, b in points:
        arms.setdefault(arm, {}).setdefault(condition, set()).add((a, b))
    few = sum(map(len, arms.values())) <= SERIES
    series: dict[str, list[set[tuple[float, float]]]] = {}
    for arm, of_arm in arms.items():
        for condition, group in of_arm.items():
            apart = few and any(group != other for other in of_arm.values())
            series.setdefault(f"{arm}, {condition}" if apart else arm, []).append(group)
    for index, (label, groups) in enumerate(series.items()):
        own, marker = _style(content, label.partition(", ")[0])
        colour = COLOURS[index % len(COLOURS)] if few else own
        seeds = sorted(set().union(*groups))
        means = sorted({(fmean(a for a, _ in group), fmean(b for _, b in group)) for group in groups})
        axes.scatter([a for a, _ in seeds], [b for _, b in seeds], s=14, alpha=0.45, color=colour, marker=marker)
        axes.scatter([a for a, _ in means], [b for _, b in means], s=60, color=colour, marker=marker, label=label)
    axes.set(xlabel=x, ylabel=y, title=f"{title} (n = {len({(arm, a, b) for arm, _, a, b in points})} trained arms)")
    axes.margins(0.09)
    canvas.legend(loc="outside right upper", fontsize=8)


def explained(correlation: Correlation) -> str:
    """A correlation in words, with its sign."""
    r, low, high, groups = (correlation[key] for key in ("r", "low", "high", "groups"))
    if r is None:
        return "Too few different points for a correlation."
    between = (f"95 % interval {low:+.2f} to {high:+.2f}, over {groups} arms and conditions" if low is not None
               else f"no interval from {groups} arms and conditions")
    return (f"r = {r:+.2f} ({between}; R² = {r**2:.2f}); Spearman's ρ of the ranks is "
            + ("not defined." if correlation["ranks"] is None else f"{correlation['ranks']:+.2f}."))


def by_condition(runs: Sequence[RunResult]) -> list[tuple[str, list[RunResult]]]:
    """The runs grouped by condition, under the condition's text."""
    return [(condition_of(condition), group) for condition, group in conditions(runs)]


def condition_of(values: Settings) -> str:
    """The values of a run without its seed, in few characters: "mix_ratio 0.5", or a name as it is."""
    return ", ".join(shown(value) if name in ("run", "template", "task") else f"{name} {shown(value)}"
                     for name, value in values.items() if name != SEED) or "all runs"


def suites_of(runs: Sequence[RunResult]) -> list[str]:
    """Every suite that a run was tested on."""
    return list(dict.fromkeys(suite for run in runs for suite in run["items"]))


def image(figures: Mapping[str, Figure], name: str) -> str:
    """A figure with its caption as Markdown; "" where it was not drawn."""
    return f"![{figures[name].caption}]({name}.svg)\n\n{figures[name].caption}" if name in figures else ""


def _style(content: StudyResults, arm: str) -> tuple[str, str]:
    index = list(dict.fromkeys(name for run in content["runs"] for name in run["arms"])).index(arm)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
