"""The whole instrument on one trained arm: what the measures of sdft/measure/ say of its weights and outputs.

    general            forward KL on the seed's answers to general prompts, reverse KL on its own
    shift              ‖ΔW‖ and the spectra, module by module; the whole decompositions in `spectra` layers
    on the task        forward and reverse KL on answers to its test items         said to predict forgetting: drift.py
    activations        behind every layer, on the seed's general answers
    along the way      NLL at θ₀ + t·ΔW of the arm's targets, and of the seed's general answers
    Fisher             ΔW weighted by how much the seed's general answers depend on each weight
    between arms       cosine and common directions of the ΔW of two arms

The dear ones take `probes` texts of each kind; every figure comes with its n. Formulas and sources stand in the measures.
"""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from itertools import combinations
from typing import Any

from sdft.experiment.arms import Arm
from sdft.experiment.context import Context
from sdft.measure.abilities import against
from sdft.measure.outputs.activations import activation_drift
from sdft.measure.outputs.drift import drift, drift_difference, reverse_drift
from sdft.measure.weights.adapter_pairs import adapter_in, compare_adapters
from sdft.measure.weights.checkpoint_pairs import compare_changes, weights_of
from sdft.measure.weights.fisher import fisher_shift
from sdft.measure.weights.interpolation import loss_along
from sdft.measure.weights.modules import module_measures, spread_out
from sdft.model.io.loading import open_checkpoint
from sdft.model.llama import Llama

WAY = (0.0, 0.5, 1.0, 1.5)      # places t between the seed, 0, and the arm, 1, and beyond


def measure_arm(context: Context, arm: Arm, model: Llama) -> dict[str, Any]:
    """What measures.json holds of the arm beside its abilities and its training, under the names above."""
    base, texts, own = context.separate_base(model), context.base_answers[:context.probes], context.task.suites[0]
    targets, answers = (loss_along(model, examples, WAY, base, f"along, {arm.name}")
                        for examples in (arm.targets[:context.probes], texts))
    general = drift(model, context.base_view, f"drift, {arm.name}")
    found = {
        "general": general | {"reverse": reverse_drift(model, context.written(arm.name, context.general), base,
                                                       f"reverse drift, {arm.name}")},
        "shift": module_measures(model, base, spread_out(context.matrices, context.spectra)),
        "activations": activation_drift(model, texts, base, f"activations, {arm.name}"),
        "interpolation": [{"t": at["t"], "nll": at["nll"], "n": at["n"], "nll_general": other["nll"],
                           "n_general": other["n"]} for at, other in zip(targets, answers, strict=True)],
    }
    if context.task_view is not None:
        found["on_task"] = drift(model, context.task_view, f"drift on the task, {arm.name}") | {"reverse": reverse_drift(
            model, context.written(arm.name, own)[:context.probes], base, f"reverse drift on the task, {arm.name}")}
    felt = fisher_shift(model, context.fisher, base)
    found["fisher"] = {key: felt[key] for key in ("total", "layers", "kinds")} | {"n": len(texts)}
    return found


def against_sft(context: Context, arms: Mapping[str, dict[str, Any]]) -> None:
    """Where sft is an arm, put beside the others what they differ from it, item by item and answer by answer."""
    for arm, measured in arms.items():
        if arm in ("base", "sft") or "sft" not in arms:
            continue
        for suite, row in measured["suites"].items():
            row["against_sft"] = against(context.answers[arm][suite], context.answers["sft"][suite])
        measured["general"]["against_sft"] = drift_difference(measured["general"]["answers"],
                                                              arms["sft"]["general"]["answers"])


def between(context: Context, arms: list[Arm]) -> dict[str, Any]:
    """The changes of every two arms set against each other: "sft, sdft" → cosines, over all and by layer and kind."""
    compare = _compare_full if context.settings.method == "full" else _compare_adapters
    return {f"{a.name}, {b.name}": {key: value for key, value in compare(context, a, b).items() if key != "modules"}
            for a, b in combinations(arms, 2)}


def _compare_adapters(context: Context, *pair: Arm) -> dict[str, Any]:
    return compare_adapters(*(adapter_in(context.folder / arm.name) for arm in pair))


def _compare_full(context: Context, *pair: Arm) -> dict[str, Any]:
    with ExitStack() as stack:
        tuned = [stack.enter_context(open_checkpoint(context.folder / arm.name)) for arm in pair]
        return compare_changes(weights_of(context.base), *tuned, spread_out(context.matrices, context.spectra))
