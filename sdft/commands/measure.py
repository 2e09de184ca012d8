"""`sdft measure`: each measure alone, of a tuned model and its seed, of two adapters, and of any two checkpoints."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.commands import add_settings, existing, settings
from sdft.commands.measure_pair import Pair
from sdft.commands.train import training_data
from sdft.errors import SdftError
from sdft.experiment.settings import Config

if TYPE_CHECKING:
    from sdft.data.chat import Example

HELP = """\
of --adapter or --tuned against the seed of --model:
shift: of the weights, module by module, with spectrum and ranks;
fisher: the same, each weight counted by how much the seed's answers to --suite hang on it;
drift: of the outputs: KL on the seed's answers to --suite, and in `reverse` on the tuned model's own;
texts: likeness of the tuned model's answers to --suite to the seed's: ROUGE-L, BLEU, cosine;
activations: their drift on the seed's answers to --suite, layer by layer;
along: NLL of the targets in --data on the way from the seed to the tuned model and beyond.
of one model:
gap: NLL, rank and low-probability share of the targets in --data.
of folders:
adapters: two adapter folders A and B beside each other;
weights: the change from checkpoint folder A to B, module by module;
between: two checkpoints B and C, both tuned from A, beside each other"""


def measure(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Print one measure as JSON."""
    parser.add_argument("what", choices=MEASURES, help=HELP)
    parser.add_argument("folders", nargs="*", metavar="A B", help="adapters, weights, between: the folders")
    parser.add_argument("--adapter", metavar="DIR", help="adapter to measure")
    parser.add_argument("--tuned", metavar="MODEL",
                        help="or whole model to measure, as `sdft train --method full` writes one: a folder, a .gguf "
                        "file or a name, whoever trained it; shift and fisher take it and the seed in fp32")
    parser.add_argument("--spectra", metavar="NAMES",
                        help="shift, weights, between: also decompose these matrices (q_proj,…) before and after: spectral "
                        "shift, principal cosines, intruder dimensions; 0.3 s for one of 576 × 576, eight times that "
                        "at twice the width")
    parser.add_argument("--suite", default="general", metavar="NAME",
                        help="fisher, drift, texts, activations: whose prompts are answered: general, instructions, or "
                        "a suite of the task (default: general)")
    parser.add_argument("--out", default="eval/base", metavar="DIR",
                        help="…: folder of the seed's answers; what is missing is answered now (default: eval/base)")
    parser.add_argument("--own", metavar="DIR",
                        help="drift, texts: folder of the tuned model's (default: its name, beside --out)")
    add_settings(parser, {"model": (), "task": (), "generate": (),
                          "eval": ("train_template", "general_items", "instruction_items")})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        _refuse(options)
        print(json.dumps(MEASURES[options.what](config, options), ensure_ascii=False))

    return execute


def _refuse(options: argparse.Namespace) -> None:
    """Refuse what a measure does not take (SdftError)."""
    what, tuned = options.what, [f"--{name}" for name in ("adapter", "tuned") if getattr(options, name)]
    if what in FOLDERS and len(options.folders) != FOLDERS[what]:
        raise SdftError(f"measure {what} needs {FOLDERS[what]} folders; got {len(options.folders)}")
    if what in FOLDERS and tuned:
        raise SdftError(f"measure {what} takes its folders alone; leave {tuned[0]} out")
    if what not in FOLDERS and options.folders:
        raise SdftError(f"measure {what} takes no folder beside its options; got {options.folders[0]!r}")
    if len(tuned) == 2:
        raise SdftError(f"measure {what} takes one tuned model; got both --adapter and --tuned, leave one out")
    if what not in (*FOLDERS, "gap") and not tuned:
        raise SdftError(f"measure {what} needs an adapter or a whole tuned model to set against the seed; name one "
                        "with --adapter DIR or --tuned MODEL")


def _weights(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.weights.checkpoints import compare_checkpoints

    return compare_checkpoints(*_checkpoints(options), _spectra(options))


def _between(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from contextlib import ExitStack

    from sdft.measure.weights.checkpoint_pairs import compare_changes
    from sdft.model.io.loading import open_checkpoint

    with ExitStack() as stack:
        opened = [stack.enter_context(open_checkpoint(folder)) for folder in _checkpoints(options)]
        return compare_changes(*opened, _spectra(options))


def _checkpoints(options: argparse.Namespace) -> list[Path]:
    return [existing(folder, "a checkpoint folder") for folder in options.folders]


def _adapters(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.weights.adapter_pairs import adapter_in, compare_adapters

    first, second = (adapter_in(existing(folder, "an adapter folder")) for folder in options.folders)
    return compare_adapters(first, second)


def _shift(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.weights.modules import module_measures

    pair = Pair(config, options, exact=True)
    return module_measures(pair.model, pair.base, _spectra(options))


def _spectra(options: argparse.Namespace) -> list[str]:
    return options.spectra.split(",") if options.spectra else []


def _fisher(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Of an adapter the adapted layers, of a whole model every linear layer of the decoder."""
    from sdft.measure.passes import fitting
    from sdft.measure.weights.fisher import fisher_shift
    from sdft.objectives.fisher import fisher

    pair = Pair(config, options)
    texts = fitting(pair.before, pair.base_texts(), "fisher")
    found = fisher(pair.before, texts)
    if options.tuned:
        pair = Pair(config, options, exact=True)
    return fisher_shift(pair.model, found, pair.base) | {"n": len(texts)}


def _drift(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.outputs.drift import base_view, drift, reverse_drift

    pair = Pair(config, options)
    texts, own = pair.base_texts(), pair.tuned_texts()
    return drift(pair.model, base_view(pair.before, texts)) | {"reverse": reverse_drift(pair.model, own, pair.base)}


def _texts(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.outputs.texts import compare_texts

    pair = Pair(config, options)
    return compare_texts(pair.tuned_rows(), pair.base_rows())


def _activations(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.outputs.activations import activation_drift

    pair = Pair(config, options)
    return activation_drift(pair.model, pair.base_texts(), pair.base)


def _gap(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    from sdft.measure.outputs.gap import gap

    pair, examples = _targets(options)
    return gap(pair.model, examples)


def _along(config: Config, options: argparse.Namespace) -> list[dict[str, float]]:
    from sdft.measure.weights.interpolation import loss_along

    pair, examples = _targets(options)
    return loss_along(pair.model, examples, base=pair.base)


def _targets(options: argparse.Namespace) -> tuple[Pair, list[Example]]:
    """The models, and the records of --data as they would be trained on."""
    from sdft.data.templates import get_template
    from sdft.experiment.context import training_example

    config, records = training_data(*settings(options))
    template, pair = get_template(config.eval.train_template or "plain"), Pair(config, options)
    return pair, [training_example(pair.tokenizer, record, template, config.model.chat) for record in records]


MEASURES = {"shift": _shift, "fisher": _fisher, "drift": _drift, "texts": _texts, "activations": _activations,
            "along": _along, "gap": _gap, "adapters": _adapters, "weights": _weights,
            "between": _between}
FOLDERS = {"adapters": 2, "weights": 2, "between": 3}           # how many each takes
