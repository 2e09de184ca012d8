"""Self-distillation fine-tuning (arXiv 2402.13669, section 3) beside plain fine-tuning: the whole method on one page.

    rewrite ─→ choose ─→ mix ─→ train ─→ evaluate ─→ measure      each step is one call into the room that holds it

Every step writes its result to the run folder, and takes up what is there: a run that was killed goes on.
"""
from __future__ import annotations

from typing import Any

from sdft.distill import audit, choose, leave_out, mix, rewrite, write_distilled
from sdft.experiment.arms import arms_of
from sdft.experiment.context import Context
from sdft.experiment.measure_arm import against_sft, between, measure_arm
from sdft.measure.abilities import adjust_together
from sdft.measure.outputs.gap import gaps, token_map
from sdft.measure.outputs.texts import compare_targets
from sdft.train import train


def compare(context: Context) -> dict[str, Any]:
    """Fine-tune the seed on the data's own answers (sft) and on its rewrites of them (sdft); measure what each did.

    The settings may name rivals beside the two (sdft/experiment/arms.py). Returns the content of measures.json.
    """
    base, tokenizer, records = context.base, context.tokenizer, context.task.train

    # 1. Rewrite: the seed sees question and reference answer, and writes an answer of its own.
    with context.timed("rewrite"):
        rewrites = rewrite(base, tokenizer, records, context.distill_template, context.sampling, context.rows,
                           context.chat, context.folder / "rewrites.jsonl")

    # 2. Choose: the rewrite where every check accepts it, else the original answer.
    distilled = leave_out(choose(records, rewrites, context.task.check, context.limits), context.ratio, context.settings.seed)
    write_distilled(context.folder / "distilled.jsonl", distilled)
    mixed = mix(records, distilled)
    originals, rewritten = context.examples(records), context.examples(mixed)

    # The gap: how surprising the targets are to the seed, before and after.
    with context.timed("gap"):
        targets = {"original": originals, "distilled": rewritten}
        measures = context.once("gap.json", base, (originals, rewritten), lambda: {
            "gap": gaps(base, targets), "token_map": token_map(base, tokenizer, targets, context.shown(distilled)),
            "texts": compare_targets(distilled),
            "audit": audit(records, rewrites, distilled, mixed, context.ratio, tokenizer)})
    measures["arms"] = {"base": context.abilities("base", base)}

    # 3. Fine-tune LoRA on each arm's targets, and measure abilities, drift of the outputs and shift of the weights.
    trained = []
    for arm in arms_of(context, originals, rewritten):
        model = context.model_to_train()
        with context.timed(f"train {arm.name}"):
            training = train(model, arm.targets, arm.settings, context.folder / arm.folder, base_name=context.model_name,
                             tokenizer=tokenizer, inputs=arm.inputs)
            arm.finish(context, model)
        abilities = context.abilities(arm.name, model)
        with context.timed(f"measure {arm.name}"):
            found = context.once(f"measured/{arm.name}.json", model, (arm.targets, context.base_answers),
                             lambda: measure_arm(context, arm, model))
        measures["arms"][arm.name] = {**abilities, **found, "general": abilities["general"] | found["general"],
                                      "targets": arm.on, "training": training}
        context.remove_adapter(model)
        trained.append(arm)
    against_sft(context, measures["arms"])
    adjust_together(measures["arms"])
    return measures | {"between": between(context, trained)}
