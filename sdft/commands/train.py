"""`sdft train`: fine-tune on a file of records, or on distilled.jsonl."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from sdft.commands import add_settings, load_with_adapter, records_of, settings


def train(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Write the adapter (or, with --method full, the model), log.jsonl and state.safetensors to a folder."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the adapter, its log and its state")
    add_settings(parser, {"model": (), "task": (), "train": (), "eval": ("train_template",)})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        from sdft.experiment.lab import training_example
        from sdft.text.templates import get_template
        from sdft.train import train as train_model

        records = records_of(config)
        model, tokenizer = load_with_adapter(config, None)
        template = get_template(config.eval.train_template or "plain")
        examples = [training_example(tokenizer, record, template, config.model.chat) for record in records]
        summary = train_model(model, examples, config.train, Path(options.out), base_name=config.model.model)
        print(json.dumps(summary | {"out": options.out}, ensure_ascii=False))

    return execute
