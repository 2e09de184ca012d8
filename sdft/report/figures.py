"""The figures of a run's report: outputs, gap of the targets, training, weights, activations, and single tokens.

Each function takes a `Run` and draws one figure, or returns None where the run lacks the measures. Only `heat_map`
returns HTML.
"""
from __future__ import annotations

import math
from html import escape
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from sdft.report.drawing import COLOURS, MARKERS, Figure, colour_of, line_style, require_matplotlib, sizes_of, svg_of
from sdft.report.run import Run
from sdft.results import Band, TokenMapText

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

LINES = ("-", "--", ":", "-.")
LAYER = "layer (0 is nearest to the input)"
SMALL: dict[str, Any] = {"markersize": 3, "linewidth": 1}


def draw_figures(run: Run) -> list[Figure]:
    """Draw every figure for which the run has the measures."""
    require_matplotlib()
    drawn = (draw(run) for draw in (
        trade_off, drift_by_position, response_lengths, gap_distribution, gap_by_position, target_nll, training_curves,
        shift_by_layer, spectrum, fisher_by_layer, activations_by_layer, loss_along))
    return [figure for figure in drawn if figure is not None]


# -------------------------------------------------------------------------------------------------------------- outputs
def trade_off(run: Run) -> Figure | None:
    """Score on the task against drift on the general prompts, one point per arm."""
    if not all("kl" in result["general"] for result in run.results.values()):
        return None
    n, n_general = run.results["base"]["suites"][run.task]["n"], run.results["base"]["general"]["n"]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, result in run.results.items():
            score, drift = result["suites"][run.task], result["general"]
            x, y = 100 * score["mean"], drift["kl"]
            axes.errorbar(x, y, **line_style(run, arm), markersize=8, capsize=3,
                          xerr=_bars(x, 100 * score["low"], 100 * score["high"]),
                          yerr=_bars(y, drift["kl_low"], drift["kl_high"]))
        axes.legend()
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.set(xlabel=f"{run.results['base']['suites'][run.task]['metric']} on {run.task}, %   (right: learned more)",
                 ylabel="KL(base ‖ arm), nats/token   (up: drifted more)",
                 title=f"Learning and drift (n = {n} items, {n_general} prompts)")

    return Figure("trade_off", svg_of(draw), f"Score of each arm on {n} items of the task, against its drift from the "
                  f"base model on {n_general} general prompts. Lower right is better. Bars: 95 % bootstrap intervals.")


def drift_by_position(run: Run) -> Figure | None:
    """KL(base ‖ arm) by position of the token in the base model's answers."""
    bands = {arm: by_position for arm, result in run.trained.items()
             if (by_position := result["general"].get("by_position"))}
    if not bands:
        return None
    first = next(iter(bands.values()))
    n = sum(band["tokens"] for band in first)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, by_position in bands.items():
            axes.plot(range(len(by_position)), [band["kl"] for band in by_position], **line_style(run, arm))
        axes.set_xticks(range(len(first)), [_positions(band) for band in first])
        axes.set(xlabel="position of the token in the base model's answer", ylabel="KL(base ‖ arm), nats/token",
                 ylim=(0, None), title=f"Drift by position in the answer (n = {n:,} tokens)")
        axes.legend()

    return Figure("drift_by_position", svg_of(draw), f"Mean KL(base ‖ arm) over the {n:,} tokens of the base model's "
                  "answers to the general prompts, by position. An arm that has learned to give short answers drifts "
                  "most at the first tokens, where it would end its answer. At later tokens it continues the base "
                  "model's longer answer, and drifts less. The mean over all tokens hides this.")


def response_lengths(run: Run) -> Figure:
    """Cumulative distribution of the lengths of the general answers."""
    lengths = {arm: np.sort(result["general"]["lengths"]) for arm, result in run.results.items()}

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for (arm, values), line in zip(lengths.items(), cycle(LINES), strict=False):
            share = 100 * np.arange(1, len(values) + 1) / len(values)
            axes.step(np.concatenate([[0], values]), np.concatenate([[0], share]), where="post", linestyle=line,
                      color=colour_of(run, arm), label=f"{arm} (mean {values.mean():.0f})")
        axes.set(xlabel="x: length of the answer, tokens", ylabel="answers of at most x tokens, %", ylim=(0, 101),
                 xlim=(0, None), title=f"Length of the general answers (n = {sizes_of(lengths.values())})")
        axes.legend()

    return Figure("lengths", svg_of(draw), "Cumulative distribution of the length of the answers to the general "
                  "prompts. The further left the curve, the shorter the answers. A jump at the right edge shows "
                  "answers that were cut at the limit of new tokens.")


def _positions(band: Band) -> str:
    return str(band["first"]) if band["first"] == band["last"] else f"{band['first']}–{band['last']}"


def _bars(value: float, low: float, high: float) -> list[list[float]]:
    return [[max(value - low, 0)], [max(high - value, 0)]]


# ------------------------------------------------------------------------------------------------------------------ gap
def gap_distribution(run: Run) -> Figure | None:
    """Histogram of the records' NLL under the base model, one outline per set of targets."""
    nll = {name: np.array([record["nll"] for record in gap["records"]]) for name, gap in run.gaps.items()}
    if not nll:
        return None
    edges = np.linspace(0, max(values.max() for values in nll.values()) * 1.001 + 1e-9, 31)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for (name, values), colour, line in zip(nll.items(), COLOURS[1:], cycle(LINES), strict=False):
            axes.hist(values, edges.tolist(), weights=np.full(len(values), 100 / len(values)), histtype="step",
                      linewidth=1.6, color=colour, linestyle=line, label=f"{name} (median {np.median(values):.2f})")
        axes.set(xlabel="NLL of a record's target under the base model, nats/token", ylabel="records, %",
                 xlim=(0, edges[-1]), title=f"NLL of the targets (n = {sizes_of(nll.values())})")
        axes.legend()

    return Figure("gap_distribution", svg_of(draw), "Mean NLL of every record's target tokens under the base model, "
                  "as a histogram over records. The further left, the closer the targets are to what the base model "
                  "would have written.")


def gap_by_position(run: Run) -> Figure | None:
    """NLL under the base model by position of the token in the target, one line per set of targets."""
    bands = {name: by_position for name, gap in run.gaps.items() if (by_position := gap.get("by_position"))}
    if not bands:
        return None
    longest = max(bands.values(), key=lambda by_position: by_position[-1]["last"])

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for (name, by_position), colour, marker in zip(bands.items(), COLOURS[1:], MARKERS[1:], strict=False):
            axes.plot(range(len(by_position)), [band["nll"] for band in by_position], color=colour, marker=marker,
                      label=f"{name} ({sum(band['tokens'] for band in by_position):,} tokens)")
        axes.set_xticks(range(len(longest)), [_positions(band) for band in longest])
        n = sizes_of(run.gaps[name]["records"] for name in bands)
        axes.set(xlabel="position of the token in the target", ylabel="NLL under the base model, nats/token",
                 ylim=(0, None), title=f"NLL by position in the target (n = {n})")
        axes.legend()

    return Figure("gap_by_position", svg_of(draw), "Mean NLL under the base model at these positions of all targets; n "
                  "counts records. Later tokens follow more text and are easier to predict, so longer targets have a "
                  "lower mean NLL. A comparison at equal positions is free of this effect.")


def target_nll(run: Run) -> Figure | None:
    """NLL under the base model of every record's original target against that of its distilled target."""
    if not {"original", "distilled"} <= run.gaps.keys():
        return None
    original, distilled = run.gaps["original"], run.gaps["distilled"]
    before, after = ({record["id"]: record["nll"] for record in gap["records"]} for gap in (original, distilled))
    rewritten = {line["id"] for line in run.distilled if line["source"] == "rewrite"}
    shared = [id for id in before if id in after]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for label, chosen, colour, marker in (
            ("rewrite accepted", [id for id in shared if id in rewritten], COLOURS[2], "o"),
            ("original kept", [id for id in shared if id not in rewritten], COLOURS[1], "x"),
        ):
            if chosen:
                axes.scatter([before[id] for id in chosen], [after[id] for id in chosen], s=14, alpha=0.6,
                             color=colour, marker=marker, label=f"{label} ({len(chosen)})")
        edge = max([*before.values(), *after.values(), 1e-9]) * 1.05
        axes.plot([0, edge], [0, edge], color="#888", linewidth=1, linestyle="--", label="no change")
        axes.set(xlabel="NLL of the original target, nats/token", ylabel="NLL of the distilled target, nats/token",
                 title=f"Gap of every record (n = {len(shared)})", xlim=(0, edge), ylim=(0, edge))
        axes.legend(loc="upper left")

    return Figure("target_nll", svg_of(draw), "Each point is one training record: the mean NLL of its original and of "
                  "its distilled target under the base model. Below the dashed line, the target is now closer to the "
                  f"base model. The NLL of all target tokens is {original['nll']:.2f} nats/token for original "
                  f"and {distilled['nll']:.2f} nats/token for distilled targets.")


# --------------------------------------------------------------------------------------- training, weights, activations
def training_curves(run: Run) -> Figure | None:
    """Loss and norm of the weight change at every optimiser step."""
    logs = {arm: log for arm in run.trained if (log := run.logs[arm])}
    if not logs:
        return None

    def draw(canvas: Canvas) -> None:
        upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for arm, log in logs.items():
            style = line_style(run, arm) | {"markersize": 4, "markevery": max(len(log) // 10, 1)}
            steps, loss = [line["step"] for line in log], np.array([line["loss"] for line in log])
            upper.plot(steps, loss, color=colour_of(run, arm), alpha=0.25, linewidth=0.8)
            upper.plot(steps, _running_mean(loss), **style)
            if validated := [line for line in log if "validation_loss" in line]:
                upper.plot([line["step"] for line in validated], [line["validation_loss"] for line in validated],
                           linestyle=":", **line_style(run, arm) | {"label": f"{arm}, validation"})
            lower.plot(steps, [line["delta_norm"] for line in log], **style)
        upper.set(ylabel="loss, nats/token", title=f"Training (n = {sizes_of(logs.values())} steps)", ylim=(0, None))
        upper.legend()
        lower.set(xlabel="optimiser step", ylabel="‖ΔW‖", ylim=(0, None))
        lower.locator_params(axis="x", integer=True)

    return Figure("training", svg_of(draw), "Upper: training loss per target token (thin: each step; thick: running "
                  "mean of 9 steps). Lower: Frobenius norm of the change of all weights since the start of training. "
                  "Some baselines minimise another loss (with a penalty, or with weighted tokens); its height cannot "
                  "be compared with that of sft and sdft.")


def shift_by_layer(run: Run) -> Figure | None:
    """Relative shift of every trained tensor of the layers, one panel per kind of module."""
    modules = {arm: sorted((module for module in shift["modules"] if module["layer"] is not None),
                           key=lambda module: module["layer"] or 0)
               for arm, result in run.trained.items() if (shift := result.get("shift"))}
    if not any(modules.values()):
        return None
    kinds = list(dict.fromkeys(module["kind"] for shifted in modules.values() for module in shifted))
    columns = min(len(kinds), 2)
    lines = -(-len(kinds) // columns)

    def draw(canvas: Canvas) -> None:
        grid = canvas.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        for axes, kind in zip(grid, kinds, strict=False):
            for arm, shifted in modules.items():
                chosen = [module for module in shifted if module["kind"] == kind]
                axes.plot([module["layer"] for module in chosen], [100 * module["relative"] for module in chosen],
                          **line_style(run, arm), **SMALL)
            axes.set_title(kind)
        for axes in canvas.axes[len(kinds):]:
            axes.set_visible(False)
        canvas.axes[0].set_ylim(bottom=0)               # after all panels are drawn: they share the axis
        canvas.axes[0].legend()
        canvas.supxlabel("layer", fontsize=9.5)
        canvas.supylabel("‖ΔW‖ / ‖W‖, %", fontsize=9.5)

    n = len(next(iter(modules.values())))
    return Figure("shift", svg_of(draw, height=1.6 + 2.0 * lines), f"Norm of the change of each of the {n} trained "
                  "weight tensors, relative to the norm of the tensor before training. One panel per kind of module; "
                  "layer 0 is nearest to the input.")


def spectrum(run: Run) -> Figure | None:
    """Singular values of the adapters' changes, averaged over the matrices."""
    spectra = {arm: [values for module in shift["modules"] if (values := module.get("spectrum"))]
               for arm, result in run.trained.items() if (shift := result.get("shift"))}
    spectra = {arm: matrices for arm, matrices in spectra.items() if matrices}
    if not spectra:
        return None

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, matrices in spectra.items():
            rank = min(map(len, matrices))
            means = np.mean([values[:rank] for values in matrices], axis=0)
            axes.plot(range(1, rank + 1), means, **line_style(run, arm))
        axes.set(xlabel="singular value of ΔW, by size", ylabel="σ", ylim=(0, None),
                 title=f"Singular values of the weight change (n = {sizes_of(spectra.values())} matrices)")
        axes.locator_params(axis="x", integer=True)
        axes.legend()

    return Figure("spectrum", svg_of(draw), "Singular values of the change of each trained matrix, averaged over the "
                  "matrices. A steep curve: few directions carry the change. A flat curve: the change uses every "
                  "direction that the rank of the adapter allows.")


def fisher_by_layer(run: Run) -> Figure | None:
    """Fisher-weighted weight shift of every layer."""
    shifts = {arm: fisher for arm, result in run.trained.items() if (fisher := result.get("fisher"))}
    if not shifts:
        return None
    n = next(iter(shifts.values()))["n"]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, fisher in shifts.items():
            points = {layer["layer"]: layer["shift"] for layer in fisher["layers"] if layer["layer"] is not None}
            axes.plot(list(points), list(points.values()), **line_style(run, arm), **SMALL)
        axes.set(xlabel=LAYER, ylabel="Σ F·ΔW², nats²", ylim=(0, None),
                 title=f"Fisher-weighted weight shift (F of n = {n} answers)")
        axes.legend()

    return Figure("fisher", svg_of(draw), "Each squared change is weighted by the Fisher information F of its weight: "
                  f"how sensitive the base model's answers are to it (F estimated on {n} general answers). Use it to "
                  "compare arms. It is no estimate of the KL: it ignores how changes interact, and is far too low.")


def activations_by_layer(run: Run) -> Figure | None:
    """Relative distance, cosine and linear CKA between the hidden states of arm and base model, by layer."""
    measured = {arm: activations for arm, result in run.trained.items() if (activations := result.get("activations"))}
    if not measured:
        return None

    def draw(canvas: Canvas) -> None:
        distance, cosine, cka = panels = canvas.subplots(3, 1, sharex=True)
        for arm, activations in measured.items():
            layers, style = [layer["layer"] for layer in activations["layers"]], line_style(run, arm) | SMALL
            distance.plot(layers, [layer["relative"] for layer in activations["layers"]], **style)
            cosine.plot(layers, [layer["cosine"] for layer in activations["layers"]], **style)
            cka.plot(layers, [layer["cka"] for layer in activations["layers"]], **style)
        for axes, label in zip(panels, ("‖h − h₀‖ / ‖h₀‖", "cosine(h, h₀)", "linear CKA"), strict=True):
            axes.set_ylabel(label)
            axes.ticklabel_format(axis="y", useOffset=False)
        tokens = next(iter(measured.values()))["tokens"]
        distance.set(title=f"Hidden states of arm and base model (n = {tokens:,} tokens)", ylim=(0, None))
        distance.legend()
        cka.set_xlabel(LAYER)

    return Figure("activations", svg_of(draw, height=5.4), "Residual stream after each layer on the same text: h of "
                  "the arm, h₀ of the base model. Upper: relative distance of the two. Middle: their cosine; at 1 "
                  "only the length of h changed. Lower: linear CKA; at 1 the tokens keep their arrangement relative "
                  "to each other.")


def loss_along(run: Run) -> Figure | None:
    """NLL along the straight line from the base model's weights to the arm's."""
    lines = {arm: points for arm, result in run.trained.items() if (points := result.get("interpolation"))}
    if not lines:
        return None

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for arm, points in lines.items():
            t, style = [point["t"] for point in points], line_style(run, arm)
            axes.plot(t, [point["nll"] for point in points], "-",
                      **style | {"label": f"{arm}: its targets (n = {points[0]['n']})"})
            axes.plot(t, [point["nll_general"] for point in points], "--",
                      **style | {"label": f"{arm}: base answers (n = {points[0]['n_general']})"})
        axes.axvline(0, color="#888", linewidth=1, linestyle="--")
        axes.axvline(1, color="#888", linewidth=1, linestyle="--")
        axes.set_xticks(t, [f"{value:g}" + {0.0: "\nbase", 1.0: "\ntuned"}.get(value, "") for value in t])
        axes.set(xlabel="t of the weights θ₀ + t·ΔW", ylabel="NLL, nats/token",
                 title="Loss from the base model to the tuned model, and beyond")
        axes.legend()

    return Figure("interpolation", svg_of(draw), "NLL of a model with the weights θ₀ + t·ΔW: the base model at t = 0, "
                  "the arm at t = 1, and a larger change in the same direction above 1. Solid: on the arm's training "
                  "targets. Dashed: on the base model's answers to the general prompts. n counts records or answers.")


def _running_mean(values: np.ndarray, window: int = 9) -> np.ndarray:
    padded = np.pad(values, window // 2, mode="edge")
    return np.convolve(padded, np.ones(window) / window, mode="valid")


# -------------------------------------------------------------------------------------------------------- single tokens

HOTTEST = math.log(1000)                # nats: tokens with p ≤ 0.1 % have the strongest colour
LOW = -math.log(0.4)                    # less probable tokens are also underlined, so that colour is not the only sign
LEGEND = (1.0, 0.4, 0.1, 0.01, 0.001)   # probabilities


def heat_map(run: Run) -> str:
    """HTML of some records' targets, each token coloured by its NLL under the base model; '' where none are kept."""
    instructions = {line["id"]: line["instruction"] for line in run.distilled}
    cards = "".join(
        f'<div class=card><p class=prompt>{escape(instructions.get(record["id"], record["id"]))}</p><div class=answers>'
        + "".join(_target(name, text) for name, text in record["texts"].items()) + "</div></div>"
        for record in run.measures.get("token_map") or ())
    legend = " ".join(_token(f"{abs(math.log(p)):.1f} (p = {p:g})", abs(math.log(p))) for p in LEGEND)
    return (f"<p class=legend>Colour: NLL of the token under the base model, in nats: {legend}. Underlined: p &lt; "
            f"0.4. ⏎: line break.</p>{cards}" if cards else "")


def _target(name: str, text: TokenMapText) -> str:
    tokens = "".join(_token(piece, nll, f"{nll:.2f} nats, rank {rank}")
                     for piece, nll, rank in zip(text["pieces"], text["nll"], text["rank"], strict=True))
    return (f"<div class=answer><b>{escape(name)}</b> <small>{fmean(text['nll']):.2f} nats/token, {len(text['nll'])} "
            f"tokens</small><pre class=heat>{tokens}</pre></div>")


def _token(piece: str, nll: float, title: str = "") -> str:
    opacity = min(max(nll, 0) / HOTTEST, 1) * 0.75          # at most 0.75: dark text must stay readable
    attributes = (" class=low" if nll > LOW else "") + (f' title="{title}"' if title else "")
    text = escape(piece).replace("\n", "⏎\n")
    return f'<span{attributes} style="background:rgba(224,90,0,{opacity:.2f})">{text}</span>'
