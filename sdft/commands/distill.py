"""`sdft distill`: rewrite and choose, alone."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from sdft.commands import add_settings, load_with_adapter, settings, task_of


def distill(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Write rewrites.jsonl and distilled.jsonl to a folder; print the audit as JSON."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for rewrites.jsonl and distilled.jsonl")
    add_settings(parser, {"model": (), "task": (), "distill": (), "generate": ()})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        from sdft.distill import Limits, audit, choose, mix, rewrite_records, write_distilled
        from sdft.experiment.lab import sampling
        from sdft.text.templates import get_template

        task, out, knobs = task_of(config), Path(options.out), config.distill
        template = get_template(knobs.template or task.distill_template)
        model, tokenizer = load_with_adapter(config, None)
        rewrites = rewrite_records(model, tokenizer, task.train, template, sampling(config, knobs.rewrite_tokens),
                                   out / "rewrites.jsonl", config.generate.rows, config.model.chat)
        distilled = choose(task.train, rewrites, task.check, Limits(knobs.repetition, knobs.times, knobs.words))
        write_distilled(out / "distilled.jsonl", distilled)
        mixed = mix(task.train, distilled, knobs.ratio)
        counts = audit(task.train, rewrites, distilled, mixed, knobs.ratio, tokenizer)
        del counts["examples"]
        print(json.dumps(counts | {"distilled": str(out / "distilled.jsonl")}, ensure_ascii=False))

    return execute
