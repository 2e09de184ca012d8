"""The figures of the report: what was learned, how far the outputs drifted, how training went. Each is one function of
a `Run`, and returns None where the run has not its numbers.

The others stand in gap_figures.py (the targets under the seed) and model_figures.py (weights, activations, loss).
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdft.report.draw import Figure, band_name, colour_of, how_many, marker_of, require_matplotlib, svg_of
from sdft.report.gap_figures import gap_by_place, gap_distribution, target_nll
from sdft.report.model_figures import activations_by_layer, fisher_by_layer, loss_along, shift_by_layer, spectrum
from sdft.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


def draw_figures(run: Run) -> list[Figure]:
    """Draw every figure for which the run has the numbers."""
    require_matplotlib()
    drawn = (draw(run) for draw in (
        trade_off, drift_by_place, response_lengths, gap_distribution, gap_by_place, target_nll, training_curves,
        shift_by_layer, spectrum, fisher_by_layer, activations_by_layer, loss_along))
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
            axes.errorbar(x, y, color=colour_of(run, arm), marker=marker_of(run, arm), markersize=8, capsize=3,
                          xerr=_bars(x, 100 * ability["low"], 100 * ability["high"]),
                          yerr=_bars(y, drift["kl_low"], drift["kl_high"]))
            axes.annotate(arm, (x, y), xytext=(8, 6), textcoords="offset points", color=colour_of(run, arm))
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.set(xlabel=f"{ability['metric']} on {suite}, %   (right: learned more)",
                 ylabel="KL from the seed, nats/token   (up: drifted more)",
                 title=f"Learned and drifted (n = {counts['task']} and {counts['general']})")

    return Figure("trade_off", svg_of(draw), "Every arm by what it learned and how far its answers to "
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
            axes.plot(range(len(rows)), [row["kl"] for row in rows], color=colour_of(run, arm),
                      marker=marker_of(run, arm), label=arm)
        axes.set_xticks(range(len(first)), [band_name(row) for row in first])
        axes.set(xlabel="place of the token in the seed's answer", ylabel="KL from the seed, nats/token",
                 ylim=(0, None), title=f"Where in an answer the drift is (n = {n} tokens)")
        axes.legend()

    return Figure("drift_by_place", svg_of(draw), "The seed's own answers to the general prompts, read by every arm. "
                  "An arm that learned to answer in a word would end at once: that shows at the first tokens, and less "
                  "and less behind them, where the seed's long answer is given. The mean over all tokens hides this.")


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
            steps, colour = [row["step"] for row in rows], colour_of(run, arm)
            loss = np.array([row["loss"] for row in rows])
            upper.plot(steps, loss, color=colour, alpha=0.25, linewidth=0.8)
            upper.plot(steps, _running_mean(loss), color=colour, label=arm)
            if validated[arm]:
                upper.plot([row["step"] for row in validated[arm]], [row["validation_loss"] for row in validated[arm]],
                           color=colour, linestyle=":", marker=marker_of(run, arm), label=f"{arm}, validation")
            lower.plot(steps, [row["delta_norm"] for row in rows], color=colour)
        upper.set(ylabel="loss, nats/token", title=f"Training ({how_many(logs.values())} steps)", ylim=(0, None))
        upper.legend()
        lower.set(xlabel="optimiser step", ylabel="‖ΔW‖", ylim=(0, None))
        lower.locator_params(axis="x", integer=True)

    return Figure("training", svg_of(draw), "What every step minimises, per target token (thin: each step; thick: "
                  "running mean), and the Frobenius norm of everything that training has added to the weights so far. "
                  "Some rivals minimise another sum than sft and sdft (a penalty comes to it, or tokens have weights): "
                  "their heights do not compare.")


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
                      color=colour_of(run, arm), label=f"{arm} (mean {values.mean():.0f})")
        axes.set(xlabel="tokens in the answer", ylabel="answers not longer than this, %", ylim=(0, 101), xlim=(0, None),
                 title=f"Length of general answers (n = {how_many(lengths.values())})")
        axes.legend()

    return Figure("lengths", svg_of(draw), "A curve further to the left answers in fewer tokens. The jump at the right "
                  "edge is answers that reached the limit of new tokens.")


def target_suite(run: Run) -> str | None:
    """The suite that measures the task itself: the first of the run."""
    return next(iter(run.measures["arms"][run.arms[0]]["suites"]), None)


def _bars(value: float, low: float, high: float) -> list[list[float]]:
    return [[max(value - low, 0)], [max(high - value, 0)]]


def _running_mean(values: np.ndarray, window: int = 9) -> np.ndarray:
    padded = np.pad(values, window // 2, mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")
