"""All measures of one trained arm: its outputs and its weights. Formulas and sources: sdft/measure/.

    always, with abilities and forgetting the answer to what a run asks:
    general            forward KL on the base model's answers to general prompts
    shift              ‖ΔW‖, module by module, with spectrum and ranks of an adapter's ΔW

    with the setting measure = all; without it by `sdft measure`:
    general.reverse    reverse KL on the arm's own answers to general prompts
    shift              in `svd_layers` layers also full decompositions before and after training
    on_task            forward and reverse KL on answers to the task's test items: said to predict forgetting (drift.py)
    activations        after every layer, on the base model's general answers
    interpolation      NLL at θ₀ + t·ΔW of the arm's targets, and of the base model's general answers
    fisher             ΔW weighted by how sensitive the base model's general answers are to each weight

    between arms       cosine and common directions of the ΔW of two arms

Expensive measures use only the first `n_probe_texts` texts; every value is reported with its sample size.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations

from sdft.experiment.arms import Arm
from sdft.experiment.context import Context
from sdft.measure.abilities import against
from sdft.measure.forgetting import compare_forgetting, compare_long_answers
from sdft.measure.outputs.activations import activation_drift
from sdft.measure.outputs.drift import drift, drift_difference, reverse_drift
from sdft.measure.weights.compare import adapter_in, compare_adapters, compare_changes, weights_of
from sdft.measure.weights.fisher import fisher_shift
from sdft.measure.weights.interpolation import loss_along
from sdft.measure.weights.shift import module_measures, spread_out
from sdft.model.io.checkpoints import open_checkpoint
from sdft.model.llama import Llama
from sdft.results import AdapterComparison, AnswerLine, ArmMeasures, MeasuredArm, SuiteResult
from sdft.tasks import Suite

Answers = Mapping[str, list[AnswerLine]]       # suite → answers
INTERPOLATION = (0.0, 0.5, 1.0, 1.5)      # t: 0 is the base model, 1 the arm, beyond 1 extrapolation


def measure_arm(context: Context, arm: Arm, model: Llama) -> MeasuredArm:
    """The measures listed above of the trained `model`, as measures.json holds them."""
    base = context.separate_base(model)
    measures: MeasuredArm = {
        "general": drift(model, context.base_view, f"drift, {arm.name}"),
        "shift": module_measures(model, base, spread_out(context.matrices, context.svd_layers)),
    }
    if context.measure == "all":
        _measure_more(context, arm, model, base, measures)
    return measures


def _measure_more(context: Context, arm: Arm, model: Llama, base: Llama | None, measures: MeasuredArm) -> None:
    """Add the measures of measure = all."""
    n = context.n_probe_texts
    texts, task = context.base_answers[:n], context.task.suites[0]
    own_general, own_task = (context.own_answers(arm.name, suite) for suite in (context.general, task))
    on_targets, on_general = (loss_along(model, examples, INTERPOLATION, base, f"interpolation, {arm.name}")
                              for examples in (arm.targets[:n], texts))
    measures["general"]["reverse"] = reverse_drift(model, own_general, base, f"reverse drift, {arm.name}")
    measures["activations"] = activation_drift(model, texts, base, f"activations, {arm.name}")
    measures["interpolation"] = [
        {"t": target["t"], "nll": target["nll"], "n": target["n"], "nll_general": general["nll"],
         "n_general": general["n"]} for target, general in zip(on_targets, on_general, strict=True)]
    weighted = fisher_shift(model, context.fisher, base)
    weighted.pop("modules", None)                                       # would be most of the file
    measures["fisher"] = {**weighted, "n": len(texts)}
    if context.task_view is not None:
        measures["on_task"] = {**drift(model, context.task_view, f"drift on the task, {arm.name}"),
                               "reverse": reverse_drift(model, own_task[:n], base,
                                                        f"reverse drift on the task, {arm.name}")}


def compare_with_sft(context: Context, arms: Mapping[str, ArmMeasures]) -> None:
    """Where sft is an arm, add to every other arm its differences from sft, item by item and answer by answer."""
    for arm, measures in arms.items():
        if arm in ("base", "sft") or "sft" not in arms:
            continue
        ours, theirs, base = (context.answers[name] for name in (arm, "sft", "base"))
        compare_suites(context.suites, measures["suites"], ours, theirs, base)
        general, name = measures["general"], context.general.name
        drifts = general["answers"], arms["sft"]["general"]["answers"]
        general |= {"against_sft": drift_difference(*drifts), "kl8_against_sft": drift_difference(*drifts, "kl8")}
        if kept := compare_long_answers(ours[name], theirs[name], base[name]):
            general["long_answers"]["against_sft"] = kept


def compare_suites(suites: Sequence[Suite], results: Mapping[str, SuiteResult], *answers: Answers) -> None:
    """Add to an arm's results on `suites` its differences from sft; answers: the arm's, those of sft and of base."""
    for suite in suites:
        result = results[suite.name]
        _compare_suite(result, *(lines[suite.name] for lines in answers))
        for name, part in result.get("parts", {}).items():
            ids = {item.id for item in suite.items if item.brief == (name == "brief")}
            _compare_suite(part, *([line for line in lines[suite.name] if line["id"] in ids] for lines in answers))


def _compare_suite(result: SuiteResult, lines: Sequence[AnswerLine], others: Sequence[AnswerLine],
                   base_lines: Sequence[AnswerLine]) -> None:
    result["against_sft"] = against(lines, others)
    if forgetting := compare_forgetting(lines, others, base_lines):
        result["forgetting_against_sft"] = forgetting


def compare_changes_of(context: Context, arms: list[Arm]) -> dict[str, AdapterComparison]:
    """The weight changes of every two arms compared: "sft, sdft" → cosines, over all and by layer and kind."""
    compared: dict[str, AdapterComparison] = {}
    for pair in combinations(arms, 2):
        folders = [context.folder / arm.name for arm in pair]
        if context.settings.method == "full":
            with ExitStack() as stack:
                first, second = (stack.enter_context(open_checkpoint(folder)) for folder in folders)
                svd = spread_out(context.matrices, context.svd_layers)
                comparison = compare_changes(weights_of(context.base), first, second, svd)
        else:
            comparison = compare_adapters(*map(adapter_in, folders))
        comparison.pop("modules", None)
        compared[", ".join(arm.name for arm in pair)] = comparison
    return compared
