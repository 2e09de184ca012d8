"""The figures of a run's report: what was learned and lost, outputs, gap of the targets, training, weights.

Each function draws the figure of its name on a canvas and returns its caption, or None where the run lacks the
measures.
"""
from __future__ import annotations

from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from sdft.report.answer import loss_suite, name_of
from sdft.report.drawing import COLOURS, MARKERS, Figure, line_style, require_matplotlib, sizes_of, svg_of
from sdft.report.run import Run
from sdft.report.trajectory import trajectory
from sdft.results import Band

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

LINES = ("-", "--", ":", "-.")
LAYER = "layer (0 is nearest to the input)"
SMALL: dict[str, Any] = {"markersize": 3, "linewidth": 1}


def draw_figures(run: Run) -> list[Figure]:
    """Draw every figure for which the run has the measures."""
    require_matplotlib()
    functions = (learned_and_lost, trade_off, trajectory, drift_by_position, lengths, gap_distribution,
                 gap_by_position, target_nll, training, shift, spectrum, fisher, activations, interpolation)
    drawn = ((function.__name__, *svg_of(partial(function, run))) for function in functions)
    return [Figure(name, svg, caption) for name, svg, caption in drawn if caption is not None]


# -------------------------------------------------------------------------------------------------------------- outputs
def learned_and_lost(run: Run, canvas: Canvas) -> str | None:
    """Change of the score on the task against forgetting, one point per arm, the base model at the origin."""
    suite = loss_suite(run)
    if not suite or not run.trained:
        return None
    canvas.set_size_inches(4.1, 2.9)
    axes, task, labels = canvas.subplots(), run.results["base"]["suites"][run.task], []
    for line in (axes.axhline, axes.axvline):
        line(0, color="#999", linewidth=0.8)
    if suite.noise_floor:
        chance = 100 * suite.noise_floor["high"]
        axes.axhspan(0, chance, color="#999", alpha=0.25, linewidth=0)
        axes.text(0.99, 1, "chance: untrained model asked again", transform=axes.get_yaxis_transform(),
                  ha="right", va="bottom", size=8, color="#555")
    for arm in run.arms:
        change, lost = run.results[arm]["suites"][run.task].get("against_base"), suite.results[arm].get("forgetting")
        x, y = 100 * change["difference"] if change else 0.0, 100 * lost["share"] if lost else 0.0
        style = line_style(run, arm)
        if change and lost:
            axes.errorbar(x, y, **style, capsize=3, xerr=_bars(x, 100 * change["low"], 100 * change["high"]),
                          yerr=_bars(y, 100 * lost["low"], 100 * lost["high"]))
        axes.plot(x, y, **style, markersize=8)
        labels.append(axes.annotate(name_of(arm), (x, y), (7, 6), textcoords="offset points", color=style["color"],
                                    weight="bold"))
    for label in labels:                # to the left of a point in the right half
        if label.xy[0] > sum(axes.get_xlim()) / 2:
            label.set(position=(-7, 6), ha="right")
    axes.set_ylim(-4, 104)
    axes.set(xlabel=f"learned: change of {task['metric']}, points →",
             ylabel=f"lost: share of {suite.solved} {suite.items}, % →",
             title=f"Learned and lost (n = {task['n']} and {suite.solved})")
    return (f"Right: learned more (points on {task['n']} new items of the task). Up: lost more (share of the "
            f"{suite.solved} {suite.items} that the model could {suite.solve} before). Best is bottom right. Bars: "
            "95 % intervals."
            + (f" Grey: what the untrained model loses when asked again, up to {100 * suite.noise_floor['high']:.0f} % "
               "(the end of its interval)." if suite.noise_floor else ""))


def trade_off(run: Run, canvas: Canvas) -> str | None:
    """Score on the task against drift on the general prompts, one point per arm."""
    if not all("kl" in result["general"] for result in run.results.values()):
        return None
    suite, n_general = run.results["base"]["suites"][run.task], run.results["base"]["general"]["n"]
    axes = canvas.subplots()
    for arm, result in run.results.items():
        score, drift = result["suites"][run.task], result["general"]
        x, y = 100 * score["mean"], drift["kl"]
        axes.errorbar(x, y, **line_style(run, arm), markersize=8, capsize=3,
                      xerr=_bars(x, 100 * score["low"], 100 * score["high"]),
                      yerr=_bars(y, drift["kl_low"], drift["kl_high"]))
    axes.legend()
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.set(xlabel=f"{suite['metric']} on {run.task}, %   (right: learned more)",
             ylabel="KL(base ‖ arm), nats/token   (up: drifted more)",
             title=f"Learning and drift (n = {suite['n']} items, {n_general} prompts)")
    return (f"Score of each arm on {suite['n']} items of the task, against its drift from the base model on "
            f"{n_general} general prompts. Lower right is better. Bars: 95 % bootstrap intervals.")


def drift_by_position(run: Run, canvas: Canvas) -> str | None:
    """KL(base ‖ arm) by position of the token in the base model's answers."""
    bands = {arm: by_position for arm, result in run.trained.items()
             if (by_position := result["general"].get("by_position"))}
    if not bands:
        return None
    first = next(iter(bands.values()))
    n = sum(band["tokens"] for band in first)
    axes = canvas.subplots()
    for arm, by_position in bands.items():
        axes.plot(range(len(by_position)), [band["kl"] for band in by_position], **line_style(run, arm))
    axes.set_xticks(range(len(first)), [_positions(band) for band in first])
    axes.set(xlabel="position of the token in the base model's answer", ylabel="KL(base ‖ arm), nats/token",
             ylim=(0, None), title=f"Drift by position in the answer (n = {n:,} tokens)")
    axes.legend()
    return (f"Mean KL(base ‖ arm) over the {n:,} tokens of the base model's answers to the general prompts, by "
            "position. An arm that has learned to give short answers drifts most at the first tokens, where it would "
            "end its answer. At later tokens it continues the base model's longer answer, and drifts less. The mean "
            "over all tokens hides this.")


def lengths(run: Run, canvas: Canvas) -> str | None:
    """Cumulative distribution of the lengths of the general answers."""
    measured = {arm: np.sort(lengths) for arm, result in run.results.items()
                if (lengths := result["general"].get("lengths"))}
    if not measured:
        return None
    axes = canvas.subplots()
    for (arm, values), line in zip(measured.items(), cycle(LINES), strict=False):
        share = 100 * np.arange(1, len(values) + 1) / len(values)
        axes.step(np.concatenate([[0], values]), np.concatenate([[0], share]), where="post", linestyle=line,
                  color=line_style(run, arm)["color"], label=f"{arm} (mean {values.mean():.0f})")
    axes.set(xlabel="x: length of the answer, tokens", ylabel="answers of at most x tokens, %", ylim=(0, 101),
             xlim=(0, None), title=f"Length of the general answers (n = {sizes_of(measured.values())})")
    axes.legend()
    return ("Cumulative distribution of the length of the answers to the general prompts. The further left the curve, "
            "the shorter the answers. A jump at the right edge shows answers that were cut at the limit of new tokens.")


def _positions(band: Band) -> str:
    return str(band["first"]) if band["first"] == band["last"] else f"{band['first']}–{band['last']}"


def _bars(value: float, low: float, high: float) -> list[list[float]]:
    return [[max(value - low, 0)], [max(high - value, 0)]]


# ------------------------------------------------------------------------------------------------------------------ gap
def gap_distribution(run: Run, canvas: Canvas) -> str | None:
    """Histogram of the records' NLL under the base model, one outline per set of targets."""
    nll = {name: np.array([record["nll"] for record in gap["records"]]) for name, gap in run.gaps.items()}
    if not nll:
        return None
    edges = np.linspace(0, max(values.max() for values in nll.values()) * 1.001 + 1e-9, 31)
    axes = canvas.subplots()
    for (name, values), colour, line in zip(nll.items(), COLOURS[1:], cycle(LINES), strict=False):
        axes.hist(values, edges.tolist(), weights=np.full(len(values), 100 / len(values)), histtype="step",
                  linewidth=1.6, color=colour, linestyle=line, label=f"{name} (median {np.median(values):.2f})")
    axes.set(xlabel="NLL of a record's target under the base model, nats/token", ylabel="records, %",
             xlim=(0, edges[-1]), title=f"NLL of the targets (n = {sizes_of(nll.values())})")
    axes.legend()
    return ("Mean NLL of every record's target tokens under the base model, as a histogram over records. The further "
            "left, the closer the targets are to what the base model would have written.")


def gap_by_position(run: Run, canvas: Canvas) -> str | None:
    """NLL under the base model by position of the token in the target, one line per set of targets."""
    bands = {name: by_position for name, gap in run.gaps.items() if (by_position := gap.get("by_position"))}
    if not bands:
        return None
    longest = max(bands.values(), key=lambda by_position: by_position[-1]["last"])
    axes = canvas.subplots()
    for (name, by_position), colour, marker in zip(bands.items(), COLOURS[1:], MARKERS[1:], strict=False):
        axes.plot(range(len(by_position)), [band["nll"] for band in by_position], color=colour, marker=marker,
                  label=f"{name} ({sum(band['tokens'] for band in by_position):,} tokens)")
    axes.set_xticks(range(len(longest)), [_positions(band) for band in longest])
    n = sizes_of(run.gaps[name]["records"] for name in bands)
    axes.set(xlabel="position of the token in the target", ylabel="NLL under the base model, nats/token",
             ylim=(0, None), title=f"NLL by position in the target (n = {n})")
    axes.legend()
    return ("Mean NLL under the base model at these positions of all targets; n counts records. Later tokens follow "
            "more text and are easier to predict, so longer targets have a lower mean NLL. A comparison at equal "
            "positions is free of this effect.")


def target_nll(run: Run, canvas: Canvas) -> str | None:
    """NLL under the base model of every record's original target against that of its distilled target."""
    if not {"original", "distilled"} <= run.gaps.keys():
        return None
    original, distilled = run.gaps["original"], run.gaps["distilled"]
    before, after = ({record["id"]: record["nll"] for record in gap["records"]} for gap in (original, distilled))
    rewritten = {line["id"] for line in run.distilled if line["source"] == "rewrite"}
    shared = [id for id in before if id in after]
    axes = canvas.subplots()
    for accepted, label, colour, marker in ((True, "rewrite accepted", COLOURS[2], "o"),
                                            (False, "original kept", COLOURS[1], "x")):
        if chosen := [id for id in shared if (id in rewritten) == accepted]:
            axes.scatter([before[id] for id in chosen], [after[id] for id in chosen], s=14, alpha=0.6,
                         color=colour, marker=marker, label=f"{label} ({len(chosen)})")
    edge = max([*before.values(), *after.values(), 1e-9]) * 1.05
    axes.plot([0, edge], [0, edge], color="#888", linewidth=1, linestyle="--", label="no change")
    axes.set(xlabel="NLL of the original target, nats/token", ylabel="NLL of the distilled target, nats/token",
             title=f"Gap of every record (n = {len(shared)})", xlim=(0, edge), ylim=(0, edge))
    axes.legend(loc="upper left")
    return ("Each point is one training record: the mean NLL of its original and of its distilled target under the "
            "base model. Below the dashed line, the target is now closer to the base model. The NLL of all target "
            f"tokens is {original['nll']:.2f} nats/token for original and {distilled['nll']:.2f} nats/token for "
            "distilled targets.")


# --------------------------------------------------------------------------------------- training, weights, activations
def training(run: Run, canvas: Canvas) -> str | None:
    """Loss and norm of the weight change at every optimiser step."""
    logs = {arm: log for arm in run.trained if (log := run.logs[arm])}
    if not logs:
        return None
    upper, lower = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for arm, log in logs.items():
        style = line_style(run, arm) | {"markersize": 4, "markevery": max(len(log) // 10, 1)}
        steps, loss = [line["step"] for line in log], np.array([line["loss"] for line in log])
        upper.plot(steps, loss, color=style["color"], alpha=0.25, linewidth=0.8)
        upper.plot(steps, np.convolve(np.pad(loss, 4, mode="edge"), np.ones(9) / 9, mode="valid"), **style)
        if validated := [line for line in log if "validation_loss" in line]:
            upper.plot([line["step"] for line in validated], [line["validation_loss"] for line in validated],
                       linestyle=":", **line_style(run, arm) | {"label": f"{arm}, validation"})
        lower.plot(steps, [line["delta_norm"] for line in log], **style)
    upper.set(ylabel="loss, nats/token", title=f"Training (n = {sizes_of(logs.values())} steps)", ylim=(0, None))
    upper.legend()
    lower.set(xlabel="optimiser step", ylabel="‖ΔW‖", ylim=(0, None))
    lower.locator_params(axis="x", integer=True)
    return ("Upper: training loss per target token (thin: each step; thick: running mean of 9 steps). Lower: Frobenius "
            "norm of the change of all weights since the start of training. Some baselines minimise another loss (with "
            "a penalty, or with weighted tokens); its height cannot be compared with that of sft and sdft.")


def shift(run: Run, canvas: Canvas) -> str | None:
    """Relative shift of every trained tensor of the layers, one panel per kind of module."""
    modules = {arm: sorted((module for module in change["modules"] if module["layer"] is not None),
                           key=lambda module: module["layer"] or 0)
               for arm, result in run.trained.items() if (change := result.get("shift"))}
    if not any(modules.values()):
        return None
    kinds = list(dict.fromkeys(module["kind"] for shifted in modules.values() for module in shifted))
    columns = min(len(kinds), 2)
    lines = -(-len(kinds) // columns)
    canvas.set_figheight(1.6 + 2.0 * lines)
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
    return (f"Norm of the change of each of the {len(next(iter(modules.values())))} trained weight tensors, relative "
            "to the norm of the tensor before training. One panel per kind of module; layer 0 is nearest to the input.")


def spectrum(run: Run, canvas: Canvas) -> str | None:
    """Singular values of the adapters' changes, averaged over the matrices."""
    spectra = {arm: matrices for arm, result in run.trained.items() if (change := result.get("shift"))
               and (matrices := [values for module in change["modules"] if (values := module.get("spectrum"))])}
    if not spectra:
        return None
    axes = canvas.subplots()
    for arm, matrices in spectra.items():
        rank = min(map(len, matrices))
        axes.plot(range(1, rank + 1), np.mean([matrix[:rank] for matrix in matrices], axis=0), **line_style(run, arm))
    axes.set(xlabel="singular value of ΔW, by size", ylabel="σ", ylim=(0, None),
             title=f"Singular values of the weight change (n = {sizes_of(spectra.values())} matrices)")
    axes.locator_params(axis="x", integer=True)
    axes.legend()
    return ("Singular values of the change of each trained matrix, averaged over the matrices. A steep curve: few "
            "directions carry the change. A flat curve: the change uses every direction that the rank of the adapter "
            "allows.")


def fisher(run: Run, canvas: Canvas) -> str | None:
    """Fisher-weighted weight shift of every layer."""
    shifts = {arm: weighted for arm, result in run.trained.items() if (weighted := result.get("fisher"))}
    if not shifts:
        return None
    n = next(iter(shifts.values()))["n"]
    axes = canvas.subplots()
    for arm, weighted in shifts.items():
        points = {layer["layer"]: layer["shift"] for layer in weighted["layers"] if layer["layer"] is not None}
        axes.plot(list(points), list(points.values()), **line_style(run, arm), **SMALL)
    axes.set(xlabel=LAYER, ylabel="Σ F·ΔW², nats²", ylim=(0, None),
             title=f"Fisher-weighted weight shift (F of n = {n} answers)")
    axes.legend()
    return ("Each squared change is weighted by the Fisher information F of its weight: how sensitive the base model's "
            f"answers are to it (F estimated on {n} general answers). Use it to compare arms. It is no estimate of the "
            "KL: it ignores how changes interact, and is far too low.")


def activations(run: Run, canvas: Canvas) -> str | None:
    """Relative distance, cosine and linear CKA between the hidden states of arm and base model, by layer."""
    measured = {arm: drift for arm, result in run.trained.items() if (drift := result.get("activations"))}
    if not measured:
        return None
    canvas.set_figheight(5.4)
    distance, cosine, cka = panels = canvas.subplots(3, 1, sharex=True)
    for arm, drift in measured.items():
        layers, style = [layer["layer"] for layer in drift["layers"]], line_style(run, arm) | SMALL
        distance.plot(layers, [layer["relative"] for layer in drift["layers"]], **style)
        cosine.plot(layers, [layer["cosine"] for layer in drift["layers"]], **style)
        cka.plot(layers, [layer["cka"] for layer in drift["layers"]], **style)
    for axes, label in zip(panels, ("‖h − h₀‖ / ‖h₀‖", "cosine(h, h₀)", "linear CKA"), strict=True):
        axes.set_ylabel(label)
        axes.ticklabel_format(axis="y", useOffset=False)
    tokens = next(iter(measured.values()))["tokens"]
    distance.set(title=f"Hidden states of arm and base model (n = {tokens:,} tokens)", ylim=(0, None))
    distance.legend()
    cka.set_xlabel(LAYER)
    return ("Residual stream after each layer on the same text: h of the arm, h₀ of the base model. Upper: relative "
            "distance of the two. Middle: their cosine; at 1 only the length of h changed. Lower: linear CKA; at 1 the "
            "tokens keep their arrangement relative to each other.")


def interpolation(run: Run, canvas: Canvas) -> str | None:
    """NLL along the straight line from the base model's weights to the arm's."""
    lines = {arm: points for arm, result in run.trained.items() if (points := result.get("interpolation"))}
    if not lines:
        return None
    axes = canvas.subplots()
    for arm, points in lines.items():
        t, style = [point["t"] for point in points], line_style(run, arm)
        axes.plot(t, [point["nll"] for point in points], "-",
                  **style | {"label": f"{arm}: its targets (n = {points[0]['n']})"})
        axes.plot(t, [point["nll_general"] for point in points], "--",
                  **style | {"label": f"{arm}: base answers (n = {points[0]['n_general']})"})
    for end in (0, 1):
        axes.axvline(end, color="#888", linewidth=1, linestyle="--")
    axes.set_xticks(t, [f"{value:g}" + {0.0: "\nbase", 1.0: "\ntuned"}.get(value, "") for value in t])
    axes.set(xlabel="t of the weights θ₀ + t·ΔW", ylabel="NLL, nats/token",
             title="Loss from the base model to the tuned model, and beyond")
    axes.legend()
    return ("NLL of a model with the weights θ₀ + t·ΔW: the base model at t = 0, the arm at t = 1, and a larger change "
            "in the same direction above 1. Solid: on the arm's training targets. Dashed: on the base model's answers "
            "to the general prompts. n counts records or answers.")
