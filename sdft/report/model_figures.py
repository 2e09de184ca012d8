"""Figures of the model's inside: how far weights and activations moved, and the loss on the way."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sdft.report.draw import Figure, colour_of, how_many, marker_of, svg_of
from sdft.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


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
                axes.plot(*zip(*chosen, strict=True), color=colour_of(run, arm), marker=marker_of(run, arm),
                          markersize=3, linewidth=1, label=arm)
            axes.set_title(kind)
        for axes in canvas.axes[len(kinds):]:
            axes.set_visible(False)
        canvas.axes[0].set_ylim(bottom=0)               # once all is drawn: the panels share the axis
        canvas.axes[0].legend()
        canvas.supxlabel("layer", fontsize=9.5)
        canvas.supylabel("‖ΔW‖ / ‖W‖, %", fontsize=9.5)

    n = len(next(iter(modules.values())))
    return Figure("shift", svg_of(draw, height=1.6 + 2.0 * lines), f"How far each of the {n} adapted matrices moved, "
                  "relative to its own norm, by layer (0 is nearest to the input) and kind of projection.")


def spectrum(run: Run) -> Figure | None:
    """The singular values of the adapters' changes, in the mean over the matrices."""
    values = {arm: [module["spectrum"] for module in part["modules"] if module.get("spectrum")]
              for arm, part in _of_arms(run, "shift").items()}
    values = {arm: rows for arm, rows in values.items() if rows}
    if not values:
        return None

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, rows in values.items():
            rank = min(map(len, rows))
            means = np.mean([row[:rank] for row in rows], axis=0)
            axes.plot(range(1, rank + 1), means, color=colour_of(run, arm), marker=marker_of(run, arm), label=arm)
        axes.set(xlabel="singular value of ΔW, by size", ylabel="σ", ylim=(0, None),
                 title=f"In how many directions the weights moved (n = {how_many(values.values())} matrices)")
        axes.locator_params(axis="x", integer=True)
        axes.legend()

    return Figure("spectrum", svg_of(draw), "The singular values of each matrix's change, in the mean over the matrices. "
                  "A steep fall: few directions carry it; flat: all that the adapter's rank allows.")


def fisher_by_layer(run: Run) -> Figure | None:
    """The Fisher-weighted shift of every layer."""
    found = _of_arms(run, "fisher")
    if not found:
        return None

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, part in found.items():
            axes.plot(*zip(*((row["layer"], row["shift"]) for row in part["layers"] if row["layer"] is not None),
                           strict=True), color=colour_of(run, arm), marker=marker_of(run, arm), markersize=3,
                      linewidth=1, label=arm)
        axes.set(xlabel="layer (0 is nearest to the input)", ylabel="Σ F·ΔW², nats²", ylim=(0, None),
                 title=f"The shift as the seed feels it (F of n = {next(iter(found.values()))['n']} answers)")
        axes.legend()

    return Figure("fisher", svg_of(draw), "Each change squared and weighted by the Fisher information of its weight: how "
                  "much the seed's answers to the general prompts depend on it. To be compared between arms: as an "
                  "estimate of the KL it is far too low, for it leaves out what weights do together.")


def activations_by_layer(run: Run) -> Figure | None:
    """Relative L2 distance, cosine and linear CKA to the seed's hidden states, behind every layer."""
    found = _of_arms(run, "activations")
    if not found:
        return None
    names = {"relative": "‖h − h₀‖ / ‖h₀‖", "cosine": "cosine(h, h₀)", "cka": "linear CKA"}

    def draw(canvas: Canvas) -> None:
        panels = canvas.subplots(len(names), 1, sharex=True)
        for axes, (name, label) in zip(panels, names.items(), strict=True):
            for arm, part in found.items():
                axes.plot([row["layer"] for row in part["layers"]], [row[name] for row in part["layers"]],
                          color=colour_of(run, arm), marker=marker_of(run, arm), markersize=3, linewidth=1, label=arm)
            axes.set_ylabel(label)
        tokens = next(iter(found.values())).get("tokens")
        panels[0].set(title="Hidden states against the seed's" + (f" (n = {tokens:,} tokens)" if tokens else ""),
                      ylim=(0, None))
        panels[0].legend()
        panels[-1].set_xlabel("layer (0 is nearest to the input)")

    return Figure("activations", svg_of(draw, height=5.4), "The residual stream behind each layer, h of the arm and h₀ "
                  "of the seed, on the same text. Upper: how far it moved. Middle: 1 where it was only stretched. "
                  "Lower: 1 where the tokens still lie to each other as they did.")


def loss_along(run: Run) -> Figure | None:
    """NLL on the straight way from the seed's weights to the tuned ones."""
    found = _of_arms(run, "interpolation")
    if not found:
        return None

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, rows in found.items():
            for key, line, what in (("nll", "-", "its targets"), ("nll_general", "--", "the seed's answers")):
                if key in rows[0]:
                    n = rows[0].get(key.replace("nll", "n"))
                    axes.plot([row["t"] for row in rows], [row[key] for row in rows], line, color=colour_of(run, arm),
                              marker=marker_of(run, arm), label=f"{arm}: {what}" + (f" (n = {n})" if n else ""))
        for t in (0, 1):
            axes.axvline(t, color="#888", linewidth=1, linestyle="--")
        places = [row["t"] for row in next(iter(found.values()))]
        axes.set_xticks(places, [f"{t:g}" + {0: "\nseed", 1: "\ntuned"}.get(t, "") for t in places])
        axes.set(xlabel="t of the weights θ₀ + t·ΔW", ylabel="NLL, nats/token",
                 title="Loss from the seed to the tuned model, and beyond")
        axes.legend()

    return Figure("interpolation", svg_of(draw), "The loss with a share t of what training added: 0 is the seed, 1 the "
                  "arm, more than 1 goes further the same way. Solid: on the arm's targets; dashed: on the seed's own "
                  "answers to the general prompts.")


def _of_arms(run: Run, name: str) -> dict[str, Any]:
    """What every trained arm has under this name."""
    return {arm: run.measures["arms"][arm][name] for arm in run.trained if run.measures["arms"][arm].get(name)}
