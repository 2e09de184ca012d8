"""`sdft measure`: shift, gap, drift, and any two checkpoints, alone."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdft.commands import add_settings, existing, load_with_adapter, settings
from sdft.commands.train import training_data
from sdft.errors import SdftError
from sdft.experiment.config import Config


def measure(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Print one measure as JSON."""
    parser.add_argument("what", choices=("shift", "gap", "drift", "weights"),
                        help="shift: of the weights by an adapter; gap: NLL of the targets in --data under the model; "
                        "drift: of the outputs from the seed's, under an adapter; weights: between the checkpoint "
                        "folders A and B")
    parser.add_argument("folders", nargs="*", metavar="A B", help="weights: the two checkpoint folders")
    parser.add_argument("--spectra", metavar="NAMES",
                        help="weights: also the singular values of these matrices (q_proj,…)")
    parser.add_argument("--adapter", metavar="DIR", help="adapter to measure")
    parser.add_argument("--out", default="eval/seed", metavar="DIR",
                        help="drift: folder of the seed's answers (default: eval/seed)")
    add_settings(parser, {"model": (), "task": (), "generate": (), "eval": ("train_template", "general_items")})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        if options.what == "weights":
            print(json.dumps(_weights(options), ensure_ascii=False))
            return
        if options.what != "gap" and not options.adapter:
            raise SdftError(f"measure {options.what} needs an adapter to set against the seed; name one with "
                            "--adapter DIR")
        result = {"shift": _shift, "gap": _gap, "drift": _drift}[options.what](config, options)
        print(json.dumps(result, ensure_ascii=False))

    return execute


def _weights(options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.checkpoints import compare_checkpoints

    if len(options.folders) != 2:
        raise SdftError(f"measure weights needs two checkpoint folders, A and B; got {len(options.folders)}")
    first, second = (existing(folder, "a checkpoint folder") for folder in options.folders)
    return compare_checkpoints(first, second, options.spectra.split(",") if options.spectra else ())


def _shift(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.weights import shift

    return shift(load_with_adapter(config, options.adapter)[0])


def _gap(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.experiment.lab import training_example
    from sdft.measure.gap import gap
    from sdft.text.templates import get_template

    config, records = training_data(*settings(options))
    template = get_template(config.eval.train_template or "plain")
    model, tokenizer = load_with_adapter(config, options.adapter)
    return gap(model, [training_example(tokenizer, record, template, config.model.chat) for record in records])


def _drift(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.distill.resume import answers
    from sdft.experiment.lab import first, sampling
    from sdft.files import Journal
    from sdft.measure.abilities import evaluate
    from sdft.measure.drift import drift, seed_answers, seed_view
    from sdft.model.lora import adapter_off
    from sdft.tasks import general_suite

    whole, path = general_suite(), Path(options.out) / "general.jsonl"
    asked = first(whole, config.eval.general_items)[0]
    ids, there = {item.id for item in asked.items}, {line["id"] for line in answers(Journal(path))}
    suite = replace(whole, items=[item for item in whole.items if item.id in ids | there])      # more may be answered
    model, tokenizer = load_with_adapter(config, options.adapter)
    with adapter_off(model):
        rows = evaluate(model, tokenizer, suite, path, sampling(config, suite.max_new_tokens), config.generate.rows,
                        config.model.chat)
    rows = [row for row in rows if row["id"] in ids]
    return drift(model, seed_view(model, seed_answers(tokenizer, asked, rows, config.model.chat)))
