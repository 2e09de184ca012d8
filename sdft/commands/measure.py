"""`sdft measure`: one measure alone, of one model (gap), of a tuned model and its base model, or of two folders.

    --model BASE  --adapter DIR        one model: the base model is the same with the adapter off
    --model BASE  --tuned MODEL        two models: MODEL is a whole model, whoever trained it

Both models use the tokenizer and the chat format of the base model. drift and texts use the answers of both models to
the prompts of --suite; fisher and activations use only those of the base model. Answers are JSONL files as `sdft eval`
writes them, in --out (base model) and --own (tuned model).
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sdft.commands import Execute, add_settings, existing, load_with_adapter, settings, suites_of
from sdft.commands.train import training_data
from sdft.errors import SdftError
from sdft.experiment.settings import Config

if TYPE_CHECKING:
    from sdft.data.chat import Example
    from sdft.model.llama import Llama
    from sdft.results import AnswerLine
    from sdft.tokenizers.tokenizer import Tokenizer

HELP = """

These compare --adapter or --tuned with the base model of --model:
  shift          prints how far the weights moved, module by module, with spectrum and ranks.
  fisher         weights each change by how sensitive the base model's answers to --suite are to that weight.
  forgetting     counts, item by item, what the base model solves in --suite and the tuned model lost, and gained.
  recovery       counts the training steps on the base model's answers to general prompts after which the tuned model
                 solves `elaborate` again: what returns at once was not lost.
  drift          prints KL on the base model's answers to --suite, and in `reverse` on the tuned model's own.
  texts          prints how similar both models' answers to --suite are: ROUGE-L, BLEU, cosine.
  activations    prints the drift of the hidden states on the base model's answers to --suite, layer by layer.
  interpolation  prints the NLL of the targets in --data between the base and the tuned model, and beyond.
This one measures one model:
  gap            prints NLL, rank and low-probability share of the targets in --data.
These compare folders:
  adapters       compares two adapter folders A and B.
  weights        prints the change from checkpoint folder A to B, module by module.
  between        compares two checkpoints B and C, both tuned from A."""


def measure(parser: argparse.ArgumentParser) -> Execute:
    """Print one measure as JSON."""
    parser.description = f"{parser.description}{HELP}"
    parser.add_argument("what", choices=MEASURES, metavar="MEASURE", help="Name of the measure, of the list above.")
    parser.add_argument("folders", nargs="*", metavar="A B", help="Folders of adapters, weights and between.")
    parser.add_argument("--adapter", metavar="DIR", help="Adapter to measure.")
    parser.add_argument("--tuned", metavar="MODEL",
                        help="Whole model to measure, as `sdft train --method full` writes it: a folder, a .gguf file "
                        "or a name; shift and fisher read it and the base model in fp32.")
    parser.add_argument("--spectra", metavar="NAMES", type=lambda names: names.split(",") if names else [], default=[],
                        help="For shift, weights and between: decompose these matrices (q_proj,…) before and after: "
                        "spectral shift, principal cosines, intruder dimensions.")
    parser.add_argument("--suite", default="general", metavar="NAME",
                        help="Suite whose prompts are answered: general, elaborate, instructions, or one of the task "
                        "(default: general).")
    parser.add_argument("--out", default="eval/base", metavar="DIR",
                        help="Folder of the base model's answers; missing ones are generated (default: eval/base).")
    parser.add_argument("--own", metavar="DIR",
                        help="Folder of the tuned model's answers (default: its name, in the folder that holds --out).")
    add_settings(parser, {"model": (), "task": (), "generate": (),
                          "eval": ("train_template", "general_items", "elaborate_items", "instruction_items")})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        _check(options)
        what = options.what
        measured = (_of_folders(options) if what in FOLDERS else
                    OF_TARGETS[what](*_targets(options)) if what in OF_TARGETS else
                    OF_ANSWERS[what](Pair(config, options, exact=what == "shift")))
        print(json.dumps(measured, ensure_ascii=False))

    return execute


def _check(options: argparse.Namespace) -> None:
    """Refuse options that a measure does not take (SdftError)."""
    what, tuned = options.what, [f"--{name}" for name in ("adapter", "tuned") if getattr(options, name)]
    if what in FOLDERS and len(options.folders) != FOLDERS[what]:
        raise SdftError(f"measure {what} needs {FOLDERS[what]} folders; got {len(options.folders)}")
    if what in FOLDERS and tuned:
        raise SdftError(f"measure {what} takes its folders alone; leave {tuned[0]} out")
    if what not in FOLDERS and options.folders:
        raise SdftError(f"measure {what} takes options only, no folder; got {options.folders[0]!r}")
    if len(tuned) == 2:
        raise SdftError(f"measure {what} takes one tuned model; got both --adapter and --tuned, leave one out")
    if what not in (*FOLDERS, "gap") and not tuned:
        raise SdftError(f"measure {what} needs an adapter or a whole tuned model to compare with the base model; name "
                        "one with --adapter DIR or --tuned MODEL")


class Pair:
    """A tuned model and its base model, with the base model's tokenizer.

    model: the tuned one (the base model itself without --adapter and --tuned). base: the base model where it is another
    model; None where it is `model` with its adapter off. exact: the weights will be subtracted, so both models are in
    fp32 whatever --dtype says, since rounding to bf16 can exceed what training changed.
    Raises SdftError where --tuned has other weights or another vocabulary than the base model.
    """

    def __init__(self, config: Config, options: argparse.Namespace, exact: bool = False):
        self.config, self.options = config, options
        self.select(options.suite)
        self.base: Llama | None = None
        if options.tuned:
            self.base, self.model, self.tokenizer = _two_models(config, options.tuned, exact)
        else:
            self.model, self.tokenizer = load_with_adapter(config, options.adapter)

    def select(self, name: str) -> None:
        """Answer the prompts of the suite `name` from now on (SdftError where there are none)."""
        config = self.config
        counts = {"general": config.eval.general_items, "elaborate": config.eval.elaborate_items,
                  "instructions": config.eval.instruction_items}
        self.suite = suites_of(config, [name])[0]
        self.ids = {item.id for item in self.suite.items[: counts.get(name)]}
        if not self.ids:
            raise SdftError(f"suite {name}: expected prompts, got none; ask for some")

    @property
    def before(self) -> Llama:
        """The base model, or the model that is the base model with its adapter off."""
        return self.base or self.model

    def base_answers(self) -> list[AnswerLine]:
        """The base model's answers: read from --out, or generated."""
        from sdft.model.lora import adapter_off

        return self._answers(adapter_off(self.before), Path(self.options.out))

    def tuned_answers(self) -> list[AnswerLine]:
        """The tuned model's answers: read from --own, or generated."""
        name = Path(self.options.adapter or self.options.tuned).resolve().name
        return self._answers(nullcontext(self.model), Path(self.options.own or Path(self.options.out).parent / name))

    def base_texts(self) -> list[Example]:
        """The base model's answers as examples (SdftError where all are empty)."""
        if texts := self.texts(self.base_answers()):
            return texts
        raise SdftError(f"suite {self.suite.name}: expected answers of the base model to measure on, but all "
                        f"{len(self.ids)} are empty; take another --suite, or more prompts")

    def _answers(self, answering: AbstractContextManager[Llama], folder: Path) -> list[AnswerLine]:
        from sdft.distill.resume import answers
        from sdft.experiment.context import sampling
        from sdft.files import Journal
        from sdft.measure.abilities import evaluate

        # The journal may hold answers to more items than are measured now: they are part of its suite.
        answered = {line["id"] for line in answers(Journal(folder / f"{self.suite.name}.jsonl"))}
        suite = replace(self.suite, items=[item for item in self.suite.items if item.id in self.ids | answered])
        config = self.config
        with answering as model:
            lines = evaluate(model, self.tokenizer, [suite], folder, sampling(config),
                             config.generate.generation_batch_size, config.model.chat)[suite.name]
        return [line for line in lines if line["id"] in self.ids]

    def texts(self, lines: list[AnswerLine]) -> list[Example]:
        """A model's answers as examples."""
        from sdft.measure.outputs.drift import base_answers

        return base_answers(self.tokenizer, self.suite, lines, self.config.model.chat)


def _two_models(config: Config, tuned: str, exact: bool) -> tuple[Llama, Llama, Tokenizer]:
    if (Path(tuned) / "adapter_config.json").is_file() and not (Path(tuned) / "config.json").is_file():
        raise SdftError(f"--tuned {tuned}: expected a whole model, found an adapter; name it with --adapter")
    name, dtype = config.model.model, "float32" if exact else config.model.dtype
    (base, tokenizer), (model, tuned_tokenizer) = (
        load_with_adapter(replace(config, model=replace(config.model, model=each, dtype=dtype)), None)
        for each in (name, tuned))

    def refuse(what: str, here: object, there: object) -> NoReturn:
        raise SdftError(f"--tuned {tuned}: expected a model tuned from {name}, but {what} is {here} here and {there} "
                        "there; name its own base model with --model")

    shapes, others = ({name: tuple(weight.shape) for name, weight in each.named_parameters()} for each in (base, model))
    if shapes != others:
        weight = min(weight for weight, _ in shapes.items() ^ others.items())
        refuse(weight, others.get(weight, "missing"), shapes.get(weight, "missing"))
    for id in range(max(tokenizer.vocab_size, tuned_tokenizer.vocab_size)):
        if (here := tuned_tokenizer.piece(id)) != (there := tokenizer.piece(id)):
            refuse(f"token {id}", repr(here), repr(there))
    return base, model, tokenizer


def _shift(pair: Pair) -> Mapping[str, Any]:
    from sdft.measure.weights.shift import module_measures

    return module_measures(pair.model, pair.base, pair.options.spectra)


def _fisher(pair: Pair) -> Mapping[str, Any]:
    """For an adapter the adapted layers, for a whole model every linear layer of the decoder."""
    from sdft.measure.passes import fitting
    from sdft.measure.weights.fisher import fisher_shift
    from sdft.objectives.fisher import fisher

    texts = fitting(pair.before, pair.base_texts(), "fisher")
    information = fisher(pair.before, texts)
    if pair.options.tuned:
        pair = Pair(pair.config, pair.options, exact=True)
    return {**fisher_shift(pair.model, information, pair.base), "n": len(texts)}


def _forgetting(pair: Pair) -> Mapping[str, Any]:
    from sdft.measure.forgetting import suite_result

    if pair.suite.score is None:
        raise SdftError(f"measure forgetting: expected a suite that is scored, got {pair.suite.name}; name another "
                        "with --suite")
    suite = replace(pair.suite, items=[item for item in pair.suite.items if item.id in pair.ids])
    return suite_result(suite, pair.tuned_answers(), pair.base_answers())


def _recovery(pair: Pair) -> Mapping[str, Any]:
    from sdft.experiment.context import sampling, solved_by
    from sdft.experiment.recovery import ITEMS, recovery
    from sdft.measure.passes import fitting

    if pair.options.suite != "general":
        raise SdftError("measure recovery: trains on answers to the suite general and measures elaborate, got --suite "
                        f"{pair.options.suite}; leave --suite out")
    dialogues = fitting(pair.before, pair.base_texts(), "recovery")
    pair.select("elaborate")
    suite = solved_by(pair.base_answers(), pair.suite, ITEMS)
    if not suite.items:
        raise SdftError(f"measure recovery: expected items of elaborate that the base model solves, but of "
                        f"{len(pair.ids)} it solves none; ask for more with --elaborate_items")
    config = pair.config
    return recovery(pair.model, pair.tokenizer, suite, dialogues, sampling(config),
                    config.generate.generation_batch_size, config.model.chat)


def _drift(pair: Pair) -> Mapping[str, Any]:
    from sdft.measure.outputs.drift import base_view, drift, reverse_drift

    texts, own = pair.base_texts(), pair.texts(pair.tuned_answers())
    return {**drift(pair.model, base_view(pair.before, texts)), "reverse": reverse_drift(pair.model, own, pair.base)}


def _texts(pair: Pair) -> Mapping[str, Any]:
    from sdft.measure.outputs.texts import compare_texts

    return compare_texts(pair.tuned_answers(), pair.base_answers())


def _activations(pair: Pair) -> Mapping[str, Any]:
    from sdft.measure.outputs.activations import activation_drift

    return activation_drift(pair.model, pair.base_texts(), pair.base)


def _gap(pair: Pair, examples: list[Example]) -> Mapping[str, Any]:
    from sdft.measure.outputs.gap import gap

    return gap(pair.model, examples)


def _interpolation(pair: Pair, examples: list[Example]) -> list[Any]:
    from sdft.measure.weights.interpolation import loss_along

    return list(loss_along(pair.model, examples, base=pair.base))


def _targets(options: argparse.Namespace) -> tuple[Pair, list[Example]]:
    """The models, and the records of --data as training examples."""
    from sdft.data.chat import training_example
    from sdft.data.templates import get_template

    config, records = training_data(*settings(options))
    template, pair = get_template(config.eval.train_template or "plain"), Pair(config, options)
    return pair, [training_example(pair.tokenizer, record, template, config.model.chat) for record in records]


def _of_folders(options: argparse.Namespace) -> Mapping[str, Any]:
    from sdft.measure.weights.compare import adapter_in, compare_adapters, compare_changes, compare_checkpoints
    from sdft.model.io.checkpoints import open_checkpoint

    what = "an adapter folder" if options.what == "adapters" else "a checkpoint folder"
    folders, spectra = [existing(folder, what) for folder in options.folders], options.spectra
    if options.what == "adapters":
        return compare_adapters(*map(adapter_in, folders))
    if options.what == "weights":
        return compare_checkpoints(folders[0], folders[1], spectra)
    with ExitStack() as stack:
        base, first, second = (stack.enter_context(open_checkpoint(folder)) for folder in folders)
        return compare_changes(base, first, second, spectra)


FOLDERS = {"adapters": 2, "weights": 2, "between": 3}           # measure → the number of its folders
OF_TARGETS: Mapping[str, Callable[[Pair, list[Example]], Mapping[str, Any] | list[Any]]] = {
    "interpolation": _interpolation, "gap": _gap}
OF_ANSWERS: Mapping[str, Callable[[Pair], Mapping[str, Any]]] = {
    "shift": _shift, "fisher": _fisher, "forgetting": _forgetting, "recovery": _recovery, "drift": _drift,
    "texts": _texts, "activations": _activations}
MEASURES = (*OF_ANSWERS, *OF_TARGETS, *FOLDERS)
