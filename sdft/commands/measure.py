"""`sdft measure`: each measure alone, of an adapter, of two of them, and of any two checkpoints."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.commands import add_settings, existing, load_with_adapter, settings
from sdft.commands.train import training_data
from sdft.errors import SdftError
from sdft.experiment.config import Config

if TYPE_CHECKING:
    from sdft.model.llama import Llama
    from sdft.text.chat import Example

HELP = """\
shift: of the weights by an adapter, module by module, with spectrum and ranks;
gap: NLL of the targets in --data under the model;
drift: of the outputs from the seed's, under an adapter;
activations: their drift, layer by layer;
along: NLL of the targets in --data on the way from the seed to the adapter and beyond;
adapters: two adapter folders A and B beside each other;
weights: the change from checkpoint folder A to B, module by module"""


def measure(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Print one measure as JSON."""
    parser.add_argument("what", choices=MEASURES, help=HELP)
    parser.add_argument("folders", nargs="*", metavar="A B", help="adapters, weights: the two folders")
    parser.add_argument("--spectra", metavar="NAMES",
                        help="shift, weights: also decompose these matrices (q_proj,…) before and after: spectral "
                        "shift, principal cosines, intruder dimensions; 0.3 s for one of 576 × 576, eight times that "
                        "at twice the width")
    parser.add_argument("--adapter", metavar="DIR", help="adapter to measure")
    parser.add_argument("--out", default="eval/seed", metavar="DIR",
                        help="drift, activations: folder of the seed's answers (default: eval/seed)")
    add_settings(parser, {"model": (), "task": (), "generate": (), "eval": ("train_template", "general_items")})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        if options.what in OF_TWO:
            if len(options.folders) != 2:
                raise SdftError(f"measure {options.what} needs two folders, A and B; got {len(options.folders)}")
        elif options.folders:
            raise SdftError(f"measure {options.what} takes no folder beside its options; got {options.folders[0]!r}")
        elif options.what != "gap" and not options.adapter:
            raise SdftError(f"measure {options.what} needs an adapter to set against the seed; name one with "
                            "--adapter DIR")
        print(json.dumps(MEASURES[options.what](config, options), ensure_ascii=False))

    return execute


def _weights(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.checkpoints import compare_checkpoints

    first, second = (existing(folder, "a checkpoint folder") for folder in options.folders)
    return compare_checkpoints(first, second, _spectra(options))


def _adapters(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.adapter_pairs import adapter_in, compare_adapters

    first, second = (adapter_in(existing(folder, "an adapter folder")) for folder in options.folders)
    return compare_adapters(first, second)


def _shift(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.modules import module_measures

    return module_measures(load_with_adapter(config, options.adapter)[0], spectra=_spectra(options))


def _spectra(options: argparse.Namespace) -> list[str]:
    return options.spectra.split(",") if options.spectra else []


def _gap(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.gap import gap

    return gap(*_targets(options))


def _along(config: Config, options: argparse.Namespace) -> list[dict[str, float]]:
    from sdft.measure.interpolation import loss_along

    return loss_along(*_targets(options))


def _targets(options: argparse.Namespace) -> tuple[Llama, list[Example]]:
    """The model, with the adapter where one is named, and the records of --data as it would train on them."""
    from sdft.experiment.lab import training_example
    from sdft.text.templates import get_template

    config, records = training_data(*settings(options))
    template = get_template(config.eval.train_template or "plain")
    model, tokenizer = load_with_adapter(config, options.adapter)
    return model, [training_example(tokenizer, record, template, config.model.chat) for record in records]


def _drift(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.drift import drift, seed_view

    model, answers = _seed_answers(config, options)
    return drift(model, seed_view(model, answers))


def _activations(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.activations import activation_drift

    return activation_drift(*_seed_answers(config, options))


def _seed_answers(config: Config, options: argparse.Namespace) -> tuple[Llama, list[Example]]:
    """The model under its adapter, and the seed's answers to the general prompts: those in --out, or given now."""
    from sdft.distill.resume import answers
    from sdft.experiment.lab import first, sampling
    from sdft.files import Journal
    from sdft.measure.abilities import evaluate
    from sdft.measure.drift import seed_answers
    from sdft.model.lora import adapter_off
    from sdft.tasks import general_suite

    whole, path = general_suite(), Path(options.out) / "general.jsonl"
    asked = first(whole, config.eval.general_items)[0]
    ids, there = {item.id for item in asked.items}, {line["id"] for line in answers(Journal(path))}
    suite = replace(whole, items=[item for item in whole.items if item.id in ids | there])      # more may be answered
    model, tokenizer = load_with_adapter(config, options.adapter)
    with adapter_off(model):
        rows = evaluate(model, tokenizer, [suite], path.parent, sampling(config), config.generate.rows, config.model.chat)
    rows = [row for row in rows[suite.name] if row["id"] in ids]
    return model, seed_answers(tokenizer, asked, rows, config.model.chat)


MEASURES = {"shift": _shift, "gap": _gap, "drift": _drift, "activations": _activations, "along": _along,
            "adapters": _adapters, "weights": _weights}
OF_TWO = ("adapters", "weights")
