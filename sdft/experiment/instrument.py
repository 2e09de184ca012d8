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
from sdft.experiment.lab import Lab
from sdft.measure.abilities import against
from sdft.measure.activations import activation_drift
from sdft.measure.adapter_pairs import adapter_in, compare_adapters
from sdft.measure.checkpoint_pairs import compare_changes, weights_of
from sdft.measure.drift import drift, drift_difference, reverse_drift
from sdft.measure.fisher_shift import fisher_shift
from sdft.measure.interpolation import loss_along
from sdft.measure.modules import module_measures, spread_out
from sdft.model.llama import Llama
from sdft.model.loading import open_checkpoint

WAY = (0.0, 0.5, 1.0, 1.5)      # places t between the seed, 0, and the arm, 1, and beyond


def inspect(lab: Lab, arm: Arm, model: Llama) -> dict[str, Any]:
    """What measures.json holds of the arm beside its abilities and its training, under the names above."""
    seed, texts, own = lab.other_seed(model), lab.seed_answers[:lab.probes], lab.task.suites[0]
    targets, answers = (loss_along(model, examples, WAY, seed, f"along, {arm.name}")
                        for examples in (arm.targets[:lab.probes], texts))
    general = drift(model, lab.seed_view, f"drift, {arm.name}")
    found = {
        "general": general | {"reverse": reverse_drift(model, lab.written(arm.name, lab.general), seed,
                                                       f"reverse drift, {arm.name}")},
        "shift": module_measures(model, seed, spread_out(lab.matrices, lab.spectra)),
        "activations": activation_drift(model, texts, seed, f"activations, {arm.name}"),
        "interpolation": [{"t": at["t"], "nll": at["nll"], "n": at["n"], "nll_general": other["nll"],
                           "n_general": other["n"]} for at, other in zip(targets, answers, strict=True)],
    }
    if lab.task_view is not None:
        found["on_task"] = drift(model, lab.task_view, f"drift on the task, {arm.name}") | {"reverse": reverse_drift(
            model, lab.written(arm.name, own)[:lab.probes], seed, f"reverse drift on the task, {arm.name}")}
    felt = fisher_shift(model, lab.fisher, seed)
    found["fisher"] = {key: felt[key] for key in ("total", "layers", "kinds")} | {"n": len(texts)}
    return found


def against_sft(lab: Lab, arms: Mapping[str, dict[str, Any]]) -> None:
    """Where sft is an arm, put beside the others what they differ from it, item by item and answer by answer."""
    for arm, measured in arms.items():
        if arm in ("seed", "sft") or "sft" not in arms:
            continue
        for suite, row in measured["suites"].items():
            row["against_sft"] = against(lab.answers[arm][suite], lab.answers["sft"][suite])
        measured["general"]["against_sft"] = drift_difference(measured["general"]["answers"],
                                                              arms["sft"]["general"]["answers"])


def between(lab: Lab, arms: list[Arm]) -> dict[str, Any]:
    """The changes of every two arms set against each other: "sft, sdft" → cosines, over all and by layer and kind."""
    compare = _compare_full if lab.settings.method == "full" else _compare_adapters
    return {f"{a.name}, {b.name}": {key: value for key, value in compare(lab, a, b).items() if key != "modules"}
            for a, b in combinations(arms, 2)}


def _compare_adapters(lab: Lab, *pair: Arm) -> dict[str, Any]:
    return compare_adapters(*(adapter_in(lab.folder / arm.name) for arm in pair))


def _compare_full(lab: Lab, *pair: Arm) -> dict[str, Any]:
    with ExitStack() as stack:
        tuned = [stack.enter_context(open_checkpoint(lab.folder / arm.name)) for arm in pair]
        return compare_changes(weights_of(lab.seed), *tuned, spread_out(lab.matrices, lab.spectra))
