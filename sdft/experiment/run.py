"""A whole run: fine-tune the base model on original and on distilled answers, and measure what each did.

    settings, task ─→ 1. rewrite → 2. choose → 3. fine-tune each arm → measure → measures.json, summary.json

    sdft run [CONFIG.toml] [--key=value …]
"""
from __future__ import annotations

from functools import partial
from pathlib import Path

import sdft.model
from sdft.distill import audit, choose, mix, rewrite, write_distilled
from sdft.distill.resume import settings_path
from sdft.experiment.arms import Arm, arms_of, check_arms
from sdft.experiment.context import GAP_RECORDS, Context, SharedMeasures
from sdft.experiment.forecast import timetable_of
from sdft.experiment.measure_arm import compare_changes_of, compare_with_sft, measure_arm
from sdft.experiment.recovery import recovery_of
from sdft.experiment.run_folder import check_folder, data_hash, default_folder, hashes, is_finished, is_new, make_folder
from sdft.experiment.sequence import later_stages, train_later
from sdft.experiment.settings import Config, load_later, of_task, resolve_settings
from sdft.experiment.trajectory import Trajectory, compare_trajectories
from sdft.files import locked, write_json
from sdft.measure.forgetting import adjust_together
from sdft.measure.outputs.gap import gaps, token_map
from sdft.measure.outputs.texts import compare_targets
from sdft.model.io.fetch import resolve
from sdft.results import FORMAT, ArmMeasures, Measures, Summary, TargetMeasures
from sdft.train import train

TOKEN_MAP_RECORDS = 4           # accepted rewrites that the report shows token by token


def compare(context: Context) -> Measures:
    """Fine-tune the base model on the data's answers (sft) and on its own rewrites of them (sdft); measure each arm.

    The steps are those of sdft/method.py, with a run folder, more arms (sdft/experiment/arms.py) and measures. Returns
    the content of measures.json.
    """
    base, tokenizer, records = context.base, context.tokenizer, context.task.train

    # 1. Rewrite: the base model reads instruction and reference answer, and writes an answer in its own words.
    with context.timed("rewrite"):
        rewrites = rewrite(base, tokenizer, records, context.distill_template, context.sampling,
                           context.batch_size, context.chat, context.folder / "rewrites.jsonl")

    # 2. Choose: the rewrite where every check accepts it, else the original answer.
    distilled = mix(choose(records, rewrites, context.task.check, context.limits), context.mix_ratio,
                    context.settings.seed)
    write_distilled(context.folder / "distilled.jsonl", distilled)
    targets = {"original": context.examples(records), "distilled": context.examples(distilled)}

    # The gap: how improbable the targets are under the base model, before and after distillation.
    shown = [record.id for record in distilled if record.source == "rewrite"][:TOKEN_MAP_RECORDS]
    with context.timed("gap"):
        compared = {name: context.fewer(examples, GAP_RECORDS) for name, examples in targets.items()}
        measured = context.once("gap.json", base, compared.values(), lambda: TargetMeasures(
            gap=gaps(base, compared), token_map=token_map(base, tokenizer, targets, shown),
            texts=compare_targets(distilled), audit=audit(rewrites, distilled, context.mix_ratio, tokenizer)))
    arms = {"base": context.abilities("base", base)}
    for suite, floor in context.noise_floors().items():
        arms["base"]["suites"][suite]["noise_floor"] = floor

    # 3. Fine-tune LoRA on the targets of each arm; measure abilities, drift of the outputs and shift of the weights.
    trained = []
    for arm in arms_of(context, *targets.values()):
        arms[arm.name] = train_and_measure(context, arm)
        trained.append(arm)
    compare_with_sft(context, arms)
    compare_trajectories(context, arms)
    adjust_together(arms, context.primary)
    return {**measured, "arms": arms, "between": compare_changes_of(context, trained)}


def train_and_measure(context: Context, arm: Arm) -> ArmMeasures:
    """Step 3 of one arm: train it, answer all suites, and measure what changed; the adapter is removed at the end."""
    model = context.model_to_train()
    along = Trajectory(context, arm, model) if context.eval_every else None
    with context.timed(f"train {arm.name}"):
        training = train(model, arm.targets, arm.settings, context.folder / arm.folder, base_name=context.model_name,
                         tokenizer=context.tokenizer, inputs=arm.inputs, watch=along)
        arm.finish(context, model)
    abilities = context.abilities(arm.name, model)
    with context.timed(f"measure {arm.name}"):
        change = context.once(f"measured/{arm.name}.json", model, (arm.targets, context.base_answers),
                              partial(measure_arm, context, arm, model))
    measures: ArmMeasures = {**abilities, **change, "general": {**abilities["general"], **change["general"]},
                             "targets": arm.target_set, "training": training}
    if along is not None:
        along.finish(training, change["general"])
    if context.recovery:
        with context.timed(f"recovery {arm.name}"):
            recovered = context.once(f"measured/{arm.name}.recovery.json", model, (context.base_answers,),
                                     partial(recovery_of, context, arm.name, model))
        if recovered is not None:
            measures["recovery"] = recovered
    context.remove_adapter(model)
    return measures


def run(config: Config, given: frozenset[str] = frozenset(), folder: Path | None = None,
        shared: SharedMeasures | None = None) -> Path:
    """Run the experiment that `config` describes, or resume it; return its folder.

    `given` names the settings that were set; the task decides some of the others. `shared` keeps, from run to run, what
    was measured of the base model. A finished run is left as it is. Raises SdftError for bad input, and for a folder of
    other settings, another model, other data, or an older version.
    """
    config, task = resolve_settings(config, given)
    folder = folder or default_folder(config)
    path = resolve(config.model.model)
    later = load_later(config, task)
    made_of = hashes(path, data_hash(task, *later))
    if not is_new(folder):
        check_folder(folder, config, made_of)
    if is_finished(folder):
        return folder
    model, tokenizer = sdft.model.load(path, config.model.dtype, config.model.device)
    context = Context(config, folder, model, tokenizer, task, shared)
    check_arms(config.arms.arms, config.train)
    context.check()
    stages = later_stages(config, context, later)
    with locked(folder):
        if is_new(folder):                      # only now: a folder with impossible settings would refuse better ones
            make_folder(folder, config, made_of)
        else:
            check_folder(folder, config, made_of)
        write_json(settings_path(folder / "distilled.jsonl"), of_task(config))
        context.timetable = timetable_of(config, task, later, model, tokenizer, folder)
        context.timetable.announce()
        measures = compare(context)
        train_later(context, stages, measures["arms"])
        write_json(folder / "measures.json", measures)
        write_json(folder / "summary.json", summary(measures, context.seconds(), task.source, folder / "report.html"))
    return folder


def summary(measures: Measures, seconds: dict[str, float], source: str, report: Path) -> Summary:
    """Arms × measures as plain numbers, for programs: shares in 0 … 1, KL in nats per token, lengths in tokens."""
    table: dict[str, dict[str, float | None]] = {}
    for arm, measured in measures["arms"].items():
        general, shift = measured["general"], measured.get("shift")
        flips = {f"{suite}.{name}": result[name]["share"] if name in result else None
                 for suite, result in measured["suites"].items() for name in ("forgetting", "backward_transfer")}
        kept = general.get("long_answers")
        means = {suite: result["mean"] for suite, result in measured["suites"].items()}
        table[arm] = {**means, **flips,
                      "kl8": general.get("kl8"), "kl32": general.get("kl32"), "kl": general["kl"],
                      "long_answers": kept["share"] if kept else None, "top1": general["top1"],
                      "rouge_l": general["rouge_l"], "length": general["length_mean"],
                      "shift": shift["total"] if shift else None,
                      "relative_shift": shift["relative"] if shift else None}
    return {"format": FORMAT, "columns": list(table["base"]), "table": table, "seconds": seconds, "source": source,
            "report": str(report)}
