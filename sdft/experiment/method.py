"""Self-distillation fine-tuning (arXiv 2402.13669, section 3) beside plain fine-tuning: the whole method on one page.

    rewrite ─→ choose ─→ mix ─→ train ─→ evaluate ─→ measure      each step is one call into the room that holds it

Every step writes its result to the run folder, and takes up what is there: a run that was killed goes on.
"""
from __future__ import annotations

from typing import Any

from sdft.distill import audit, choose, leave_out, mix, rewrite_records, write_distilled
from sdft.experiment.arms import arms_of
from sdft.experiment.instrument import against_sft, between, inspect
from sdft.experiment.lab import Lab
from sdft.measure.abilities import adjust_together
from sdft.measure.gap import gaps, token_map
from sdft.measure.texts import compare_targets
from sdft.train import train


def compare(lab: Lab) -> dict[str, Any]:
    """Fine-tune the seed on the data's own answers (sft) and on its rewrites of them (sdft); measure what each did.

    The settings may name rivals beside the two (sdft/experiment/arms.py). Returns the content of measures.json.
    """
    seed, tokenizer, records = lab.seed, lab.tokenizer, lab.task.train

    # 1. Rewrite: the seed sees question and reference answer, and writes an answer of its own.
    with lab.timed("rewrite"):
        rewrites = rewrite_records(seed, tokenizer, records, lab.distill_template, lab.sampling,
                                   lab.folder / "rewrites.jsonl", lab.rows, lab.chat)

    # 2. Choose: the rewrite where every check accepts it, else the original answer.
    distilled = leave_out(choose(records, rewrites, lab.task.check, lab.limits), lab.ratio, lab.settings.seed)
    write_distilled(lab.folder / "distilled.jsonl", distilled)
    mixed = mix(records, distilled)
    originals, rewritten = lab.examples(records), lab.examples(mixed)

    # The gap: how surprising the targets are to the seed, before and after.
    with lab.timed("gap"):
        targets = {"original": originals, "distilled": rewritten}
        measures = lab.once("gap.json", seed, (originals, rewritten), lambda: {
            "gap": gaps(seed, targets), "token_map": token_map(seed, tokenizer, targets, lab.shown(distilled)),
            "texts": compare_targets(distilled),
            "audit": audit(records, rewrites, distilled, mixed, lab.ratio, tokenizer)})
    measures["arms"] = {"seed": lab.abilities("seed", seed)}

    # 3. Fine-tune LoRA on each arm's targets, and measure abilities, drift of the outputs and shift of the weights.
    trained = []
    for arm in arms_of(lab, originals, rewritten):
        model = lab.copy_of_seed()
        with lab.timed(f"train {arm.name}"):
            training = train(model, arm.targets, arm.settings, lab.folder / arm.folder, base_name=lab.model_name,
                             tokenizer=tokenizer, material=arm.material)
            arm.finish(lab, model)
        abilities = lab.abilities(arm.name, model)
        with lab.timed(f"measure {arm.name}"):
            found = lab.once(f"measured/{arm.name}.json", model, (arm.targets, lab.seed_answers),
                             lambda: inspect(lab, arm, model))
        measures["arms"][arm.name] = {**abilities, **found, "general": abilities["general"] | found["general"],
                                      "targets": arm.on, "training": training}
        lab.give_back(model)
        trained.append(arm)
    against_sft(lab, measures["arms"])
    adjust_together(measures["arms"])
    return measures | {"between": between(lab, trained)}
