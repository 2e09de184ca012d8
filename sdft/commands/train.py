"""`sdft train`: fine-tune on a file of records, or on distilled.jsonl."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sdft.commands import Execute, add_settings, load_with_adapter, records_of, settings, task_of
from sdft.errors import SdftError
from sdft.experiment.settings import Config, of_task, with_task

if TYPE_CHECKING:
    from sdft.data.records import Record


def train(parser: argparse.ArgumentParser) -> Execute:
    """Write the adapter (or, with --method full, the model), log.jsonl and state.safetensors to a folder."""
    parser.add_argument("--out", required=True, metavar="DIR", help="Folder for the adapter, its log and its state.")
    add_settings(parser, {"model": (), "task": (), "train": (), "eval": ("train_template",)})

    def execute(options: argparse.Namespace) -> None:
        config, given = settings(options)
        from sdft.data.chat import training_example
        from sdft.data.templates import get_template
        from sdft.files import locked
        from sdft.train import train as train_model

        out = Path(options.out)
        if out.exists() and not out.is_dir():
            raise SdftError(f"--out {out}: expected a folder, but it is a file; name another")
        config, records = training_data(config, given)
        model, tokenizer = load_with_adapter(config, None)
        template = get_template(config.eval.train_template or "plain")
        examples = [training_example(tokenizer, record, template, config.model.chat) for record in records]
        with locked(out):
            summary = train_model(model, examples, config.train, out, base_name=config.model.model,
                                  tokenizer=tokenizer)
        print(json.dumps(summary | {"out": options.out}, ensure_ascii=False))

    return execute


def training_data(config: Config, given: frozenset[str]) -> tuple[Config, list[Record]]:
    """The records to train on, and the settings with those that the task decides. A file that `sdft distill` or `sdft
    run` wrote has the task's settings in a file next to it."""
    from sdft.distill.resume import settings_path
    from sdft.files import read_json

    data = Path(config.task.data) if config.task.data else None
    if data is None or data.is_dir():
        task = task_of(config)
        return with_task(config, given, **task.default_settings), task.train
    records, path = records_of(config), settings_path(data)
    decided = read_json(path) if path.is_file() else None
    if isinstance(decided, dict) and decided.keys() == of_task(config).keys():      # not another file of that name
        if any(not isinstance(decided[name], int if name in ("epochs", "rewrite_tokens") else str) for name in decided):
            raise SdftError(f"{path}: expected numbers for epochs and rewrite_tokens and names of templates, got "
                            f"{decided}; make it again with `sdft distill`")
        config = with_task(config, given, **decided)
        print(f"{path.name}: template {config.eval.train_template!r}, {config.train.epochs} epochs", file=sys.stderr)
    return config, records
