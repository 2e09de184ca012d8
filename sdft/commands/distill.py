"""`sdft distill`: steps 1 and 2 of the method alone, rewrite and choose."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sdft.commands import Execute, add_settings, load_with_adapter, settings, task_of
from sdft.experiment.settings import of_task, with_task


def distill(parser: argparse.ArgumentParser) -> Execute:
    """Write rewrites.jsonl and distilled.jsonl, which `sdft train` reads, to a folder; print the audit as JSON."""
    parser.add_argument("--out", required=True, metavar="DIR", help="Folder for rewrites.jsonl and distilled.jsonl.")
    add_settings(parser, {"model": (), "task": (), "distill": (), "generate": (), "train": ("seed",)})

    def execute(options: argparse.Namespace) -> None:
        config, given = settings(options)
        from sdft.data.templates import get_template
        from sdft.distill import Limits, audit, choose, mix, rewrite, write_distilled
        from sdft.distill.resume import settings_path
        from sdft.experiment.context import sampling
        from sdft.files import write_json

        task, out = task_of(config), Path(options.out)
        config = with_task(config, given, **task.default_settings)
        step, template = config.distill, get_template(config.distill.template or task.distill_template)
        print(f"distill: {len(task.train)} records ({task.source})", file=sys.stderr)
        model, tokenizer = load_with_adapter(config, None)
        decoding = sampling(config, step.rewrite_tokens or task.rewrite_tokens)
        rewrites = rewrite(model, tokenizer, task.train, template, decoding, config.generate.generation_batch_size,
                           config.model.chat, out / "rewrites.jsonl")
        chosen = choose(task.train, rewrites, task.check,
                        Limits(step.max_repeated_ngrams, step.max_length_ratio, step.max_words))
        distilled = mix(chosen, step.mix_ratio, config.train.seed)
        write_json(settings_path(out / "distilled.jsonl"), of_task(config))
        write_distilled(out / "distilled.jsonl", distilled)
        audited = audit(rewrites, distilled, step.mix_ratio, tokenizer)
        counts = {name: value for name, value in audited.items() if name != "examples"}
        print(json.dumps(counts | {"distilled": str(out / "distilled.jsonl")}, ensure_ascii=False))

    return execute
