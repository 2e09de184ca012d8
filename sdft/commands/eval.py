"""`sdft eval`: answer and score suites with the base model or an adapter."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from sdft.commands import Execute, add_settings, load_with_adapter, settings, suites_of, task_of


def eval(parser: argparse.ArgumentParser) -> Execute:
    """Write every answer with its score to <out>/<suite>.jsonl; print one JSON line per suite."""
    parser.add_argument("--adapter", metavar="DIR", help="Adapter to load onto the model.")
    parser.add_argument("--suite", action="append", metavar="NAME",
                        help="Suite: one of the task, elaborate, instructions, or general; repeatable (default: the "
                        "task's).")
    parser.add_argument("--out", metavar="DIR",
                        help="Folder for the answers (default: eval/NAME of the adapter's folder, or eval/base).")
    add_settings(parser, {"model": (), "task": (), "generate": ()})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        from sdft.experiment.context import sampling
        from sdft.measure.abilities import evaluate, summarise

        suites = suites_of(config, options.suite) if options.suite else task_of(config).suites
        out = Path(options.out or Path("eval") / (Path(options.adapter).resolve().name if options.adapter else "base"))
        model, tokenizer = load_with_adapter(config, options.adapter)
        answers = evaluate(model, tokenizer, suites, out, sampling(config), config.generate.generation_batch_size,
                           config.model.chat)
        for suite in suites:
            lines = answers[suite.name]
            scores = {"metric": suite.metric, **summarise(lines)} if suite.score else {"n": len(lines)}
            print(json.dumps({"suite": suite.name, **scores, "answers": str(out / f"{suite.name}.jsonl")},
                             ensure_ascii=False))

    return execute
