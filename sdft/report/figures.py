"""The figures of the report, drawn by matplotlib as SVG. Each is one function of a `Run`.

A figure says what it shows without its text: both axes named with their unit, n in the title. Colours belong to the
arms and are the same in every figure; nothing rests on colour alone (markers and line styles differ too).
"""
from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdft.errors import SdftError
from sdft.report.run import Row, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#5f6368", "#d1590b", "#1f6fc4", "#2e8540", "#8e44ad", "#b8860b", "#c2185b", "#00838f")
MARKERS = "osD^vPX*"
STYLE = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.grid": True, "grid.alpha": 0.25,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "sdft",
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure: its SVG text, and in words what it shows (caption and alternative text)."""

    name: str
    svg: str
    caption: str


def require_matplotlib() -> None:
    """Raise SdftError, naming the extra to install, when matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SdftError("the report's figures need matplotlib, which is not installed; "
                        "install it with: pip install -c constraints.txt -e '.[report]'") from error


def draw_figures(run: Run) -> list[Figure]:
    """Draw every figure for which the run has the numbers."""
    require_matplotlib()
    drawn = [trade_off(run), drift_by_place(run), target_nll(run), training_curves(run), shift_by_layer(run),
             response_lengths(run)]
    return [figure for figure in drawn if figure is not None]


def trade_off(run: Run) -> Figure | None:
    """What was learned (accuracy on the task) against what drifted (KL from the seed on general prompts)."""
    suite = target_suite(run)
    general = {arm: run.measures["arms"][arm].get("general") for arm in run.arms}
    if suite is None or not all(general.values()):
        return None
    counts = {"task": run.measures["arms"][run.arms[0]]["suites"][suite]["n"], "general": general[run.arms[0]]["n"]}

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm in run.arms:
            ability, drift = run.measures["arms"][arm]["suites"][suite], general[arm]
            x, y = 100 * ability["mean"], drift["kl"]
            axes.errorbar(x, y, color=_colour(run, arm), marker=_marker(run, arm), markersize=8, capsize=3,
                          xerr=_bars(x, 100 * ability["low"], 100 * ability["high"]),
                          yerr=_bars(y, drift["kl_low"], drift["kl_high"]))
            axes.annotate(arm, (x, y), xytext=(8, 6), textcoords="offset points", color=_colour(run, arm))
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.set(xlabel=f"{ability['metric']} on {suite}, %   (right: learned more)",
                 ylabel="KL from the seed, nats/token   (up: drifted more)",
                 title=f"Learned and drifted (n = {counts['task']} and {counts['general']})")

    return Figure("trade_off", _svg(draw), "Every arm by what it learned and how far its answers to "
                  f"{counts['general']} general prompts drifted from the seed. Bars: 95 % bootstrap intervals. "
                  "Lower right is better.")


def drift_by_place(run: Run) -> Figure | None:
    """KL from the seed by place in the answer, arm by arm."""
    bands = {arm: (run.measures["arms"][arm].get("general") or {}).get("by_position") for arm in run.trained}
    bands = {arm: rows for arm, rows in bands.items() if rows}
    if not bands:
        return None
    first = next(iter(bands.values()))
    n = sum(row["tokens"] for row in first)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, rows in bands.items():
            axes.plot(range(len(rows)), [row["kl"] for row in rows], color=_colour(run, arm), marker=_marker(run, arm),
                      label=arm)
        axes.set_xticks(range(len(first)), [_band(row) for row in first])
        axes.set(xlabel="place of the token in the seed's answer", ylabel="KL from the seed, nats/token",
                 ylim=(0, None), title=f"Where in an answer the drift is (n = {n} tokens)")
        axes.legend()

    return Figure("drift_by_place", _svg(draw), "The seed's own answers to the general prompts, read by every arm. "
                  "An arm that learned to answer in a word would end at once: that shows at the first tokens, and less "
                  "and less behind them, where the seed's long answer is given. The mean over all tokens hides this.")


def _band(row: Row) -> str:
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']}–{row['last']}"


def target_nll(run: Run) -> Figure | None:
    """NLL per token under the seed of every record's original target against its distilled one."""
    gap = run.measures.get("gap") or {}
    if not {"original", "distilled"} <= gap.keys():
        return None
    before = {row["id"]: row["nll"] for row in gap["original"]["records"]}
    after = {row["id"]: row["nll"] for row in gap["distilled"]["records"]}
    rewritten = {row["id"] for row in run.distilled if row["source"] == "rewrite"}
    shared = [key for key in before if key in after]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for label, chosen, colour, marker in (
            ("rewrite accepted", [key for key in shared if key in rewritten], COLOURS[2], "o"),
            ("original kept", [key for key in shared if key not in rewritten], COLOURS[1], "x"),
        ):
            if chosen:
                axes.scatter([before[key] for key in chosen], [after[key] for key in chosen], s=14, alpha=0.6,
                             color=colour, marker=marker, label=f"{label} ({len(chosen)})")
        edge = max([*before.values(), *after.values(), 1e-9]) * 1.05
        axes.plot([0, edge], [0, edge], color="#888", linewidth=1, linestyle="--", label="no change")
        axes.set(xlabel="NLL of the original target, nats/token", ylabel="NLL of the distilled target, nats/token",
                 title=f"The gap to the seed, record by record (n = {len(shared)})", xlim=(0, edge), ylim=(0, edge))
        axes.legend(loc="upper left")

    return Figure("target_nll", _svg(draw), "Each point is one training record: how surprising its target is to the "
                  f"seed before and after distillation. Per token of all targets: {gap['original']['nll']:.2f} nats "
                  f"original, {gap['distilled']['nll']:.2f} distilled. Below the line: closer to the seed.")


def training_curves(run: Run) -> Figure | None:
    """Loss and total shift of the weights at every step, arm by arm."""
    logs = {arm: [row for row in run.logs[arm] if "loss" in row] for arm in run.trained}
    logs = {arm: rows for arm, rows in logs.items() if rows}
    if not logs:
        return None
    validated = {arm: [row for row in run.logs[arm] if "validation_loss" in row] for arm in logs}

    def draw(canvas: Canvas) -> None:
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for arm, rows in logs.items():
            steps, colour = [row["step"] for row in rows], _colour(run, arm)
            loss = np.array([row["loss"] for row in rows])
            upper.plot(steps, loss, color=colour, alpha=0.25, linewidth=0.8)
            upper.plot(steps, _running_mean(loss), color=colour, label=arm)
            if validated[arm]:
                upper.plot([row["step"] for row in validated[arm]], [row["validation_loss"] for row in validated[arm]],
                           color=colour, linestyle=":", marker=_marker(run, arm), label=f"{arm}, validation")
            lower.plot(steps, [row["delta_norm"] for row in rows], color=colour)
        upper.set(ylabel="loss, nats/token", title=f"Training ({_counts(logs.values())} steps)", ylim=(0, None))
        upper.legend()
        lower.set(xlabel="optimiser step", ylabel="‖ΔW‖", ylim=(0, None))

    return Figure("training", _svg(draw), "Loss per target token (thin: each step; thick: running mean) and the "
                  "Frobenius norm of everything that training has added to the weights so far.")


def shift_by_layer(run: Run) -> Figure | None:
    """Relative shift of every adapted projection by layer, one panel per kind of projection."""
    modules = {arm: run.measures["arms"][arm]["shift"]["modules"] for arm in run.trained
               if run.measures["arms"][arm].get("shift", {}).get("modules")}
    if not modules:
        return None
    kinds = list(dict.fromkeys(module["kind"] for rows in modules.values() for module in rows))
    columns = min(len(kinds), 2)
    lines = -(-len(kinds) // columns)

    def draw(canvas: Canvas) -> None:
        grid = canvas.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, kind in zip(grid, kinds, strict=False):
            for arm, rows in modules.items():
                chosen = sorted((row["layer"], 100 * row["relative"]) for row in rows if row["kind"] == kind)
                axes.plot(*zip(*chosen, strict=True), color=_colour(run, arm), marker=_marker(run, arm), markersize=3,
                          linewidth=1, label=arm)
            axes.set_title(kind)
        for axes in canvas.axes[len(kinds):]:
            axes.set_visible(False)
        canvas.axes[0].set_ylim(bottom=0)               # once all is drawn: the panels share the axis
        canvas.axes[0].legend()
        canvas.supxlabel("layer", fontsize=9.5)
        canvas.supylabel("‖ΔW‖ / ‖W‖, %", fontsize=9.5)

    n = len(next(iter(modules.values())))
    return Figure("shift", _svg(draw, height=1.6 + 2.0 * lines), f"How far each of the {n} adapted matrices moved, "
                  "relative to its own norm, by layer (0 is nearest to the input) and kind of projection.")


def response_lengths(run: Run) -> Figure | None:
    """Distribution of the lengths of the answers to the general prompts, arm by arm."""
    lengths = {arm: (run.measures["arms"][arm].get("general") or {}).get("lengths") for arm in run.arms}
    lengths = {arm: np.sort(np.array(values)) for arm, values in lengths.items() if values}
    if not lengths:
        return None

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, values in lengths.items():
            share = 100 * np.arange(1, len(values) + 1) / len(values)
            axes.step(np.concatenate([[0], values]), np.concatenate([[0], share]), where="post",
                      color=_colour(run, arm), label=f"{arm} (mean {values.mean():.0f})")
        axes.set(xlabel="tokens in the answer", ylabel="answers not longer than this, %", ylim=(0, 101), xlim=(0, None),
                 title=f"Length of general answers (n = {_counts(lengths.values())})")
        axes.legend(loc="lower right")

    return Figure("lengths", _svg(draw), "A curve further to the left answers in fewer tokens. The jump at the right "
                  "edge is answers that reached the limit of new tokens.")


def target_suite(run: Run) -> str | None:
    """The suite that measures the task itself: the first of the run."""
    return next(iter(run.measures["arms"][run.arms[0]]["suites"]), None)


def _svg(draw: Callable[[Canvas], None], width: float = 5.4, height: float = 3.9) -> str:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        draw(canvas)
        target = io.StringIO()
        canvas.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def _colour(run: Run, arm: str) -> str:
    return COLOURS[run.arms.index(arm) % len(COLOURS)]


def _marker(run: Run, arm: str) -> str:
    return MARKERS[run.arms.index(arm) % len(MARKERS)]


def _bars(value: float, low: float, high: float) -> list[list[float]]:
    return [[max(value - low, 0)], [max(high - value, 0)]]


def _running_mean(values: np.ndarray, window: int = 9) -> np.ndarray:
    padded = np.pad(values, window // 2, mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")


def _counts(rows: Iterable[list[Row] | np.ndarray]) -> str:
    """'100' when all arms have as many, else '100 / 98'."""
    return " / ".join(map(str, dict.fromkeys(len(values) for values in rows)))
