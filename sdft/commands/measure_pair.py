"""What `sdft measure` sets against each other: a seed and a tuned model, and what both answer to a suite's prompts.

    --model SEED  --adapter DIR        one model: the seed is it with its adapter off
    --model SEED  --tuned MODEL        two: MODEL is a whole model, whoever trained it

Both are asked in the seed's tokens and chat format, and their answers are journals as `sdft eval` writes them: the
seed's in --out, the tuned model's in --own.
"""
from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.commands import load_with_adapter, task_of
from sdft.errors import SdftError, nearest
from sdft.experiment.settings import Config

if TYPE_CHECKING:
    from sdft.data.chat import Example
    from sdft.model.llama import Llama
    from sdft.tasks import Suite
    from sdft.tokenizers.tokenizer import Tokenizer

Rows = list[dict[str, Any]]             # lines of `evaluate`


class Pair:
    """A tuned model and its seed, with the seed's tokenizer.

    model: the tuned one (the seed itself where neither --adapter nor --tuned is given). seed, as the measures take it:
    the other model, None where that is `model` with its adapter off. exact: --tuned is to be subtracted, so both are
    in fp32 whatever --dtype says, for rounding to bf16 can be larger than what training changed.

    Raises SdftError where --tuned has other weights or another vocabulary than the seed.
    """

    def __init__(self, config: Config, options: argparse.Namespace, exact: bool = False):
        self.config, self.options = config, options
        self.suite, self.ids = _asked(config, options.suite)
        if options.tuned:
            self.base, self.model, self.tokenizer = _two_models(config, options.tuned, exact)
        else:
            self.base, (self.model, self.tokenizer) = None, load_with_adapter(config, options.adapter)

    @property
    def before(self) -> Llama:
        """The model that is the seed, or that is it with its adapter off."""
        return self.base or self.model

    def base_rows(self) -> Rows:
        """The seed's answers: those in --out, or given now."""
        from sdft.model.lora import adapter_off

        return self._answers(adapter_off(self.before), Path(self.options.out))

    def tuned_rows(self) -> Rows:
        """The tuned model's answers: those in --own (default: its name, beside --out), or given now."""
        name = Path(self.options.adapter or self.options.tuned).resolve().name
        return self._answers(nullcontext(self.model), Path(self.options.own or Path(self.options.out).parent / name))

    def base_texts(self) -> list[Example]:
        """The seed's answers as examples (SdftError where it wrote nothing)."""
        if texts := self._texts(self.base_rows()):
            return texts
        raise SdftError(f"suite {self.suite.name}: expected answers of the seed to measure on, but all "
                        f"{len(self.ids)} are empty; take another --suite, or more prompts")

    def tuned_texts(self) -> list[Example]:
        """The tuned model's answers as examples."""
        return self._texts(self.tuned_rows())

    def _answers(self, answering: AbstractContextManager[Llama], folder: Path) -> Rows:
        from sdft.distill.resume import answers
        from sdft.experiment.context import sampling
        from sdft.files import Journal
        from sdft.measure.abilities import evaluate

        there = {line["id"] for line in answers(Journal(folder / f"{self.suite.name}.jsonl"))}
        suite = replace(self.suite, items=[item for item in self.suite.items if item.id in self.ids | there])
        config = self.config                                        # more than is asked for now may be answered
        with answering as model:
            rows = evaluate(model, self.tokenizer, [suite], folder, sampling(config), config.generate.generation_batch_size,
                            config.model.chat)
        return [row for row in rows[suite.name] if row["id"] in self.ids]

    def _texts(self, rows: Rows) -> list[Example]:
        from sdft.measure.outputs.drift import base_answers

        return base_answers(self.tokenizer, self.suite, rows, self.config.model.chat)


def _asked(config: Config, name: str) -> tuple[Suite, set[str]]:
    """The suite of that name, and the ids of those of its items that the settings ask for."""
    from sdft.tasks import general_suite, instruction_suite

    known = {suite.name: suite for suite in (general_suite(), instruction_suite())}
    if name not in known:
        known |= {suite.name: suite for suite in task_of(config).suites}
    if name not in known:
        raise SdftError(f"--suite: expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    count = {"general": config.eval.general_items, "instructions": config.eval.instruction_items}.get(name)
    ids = {item.id for item in known[name].items[:count]}
    if not ids:
        raise SdftError(f"suite {name}: expected prompts, got none; ask for some")
    return known[name], ids


def _two_models(config: Config, tuned: str, exact: bool) -> tuple[Llama, Llama, Tokenizer]:
    """The seed, the tuned model, and the seed's tokenizer."""
    if (Path(tuned) / "adapter_config.json").is_file() and not (Path(tuned) / "config.json").is_file():
        raise SdftError(f"--tuned {tuned}: expected a whole model, found an adapter; name it with --adapter")
    name, dtype = config.model.model, "float32" if exact else config.model.dtype
    (base, tokenizer), (model, own) = (
        load_with_adapter(replace(config, model=replace(config.model, model=each, dtype=dtype)), None)
        for each in (name, tuned))
    told = f"--tuned {tuned}: expected a model tuned from {name}"
    _same_weights(base, model, told)
    _same_vocabulary(tokenizer, own, told)
    return base, model, tokenizer


def _same_weights(base: Llama, tuned: Llama, told: str) -> None:
    shapes, others = ({name: tuple(weight.shape) for name, weight in model.named_parameters()}
                      for model in (base, tuned))
    if shapes != others:
        name = min(name for name, _ in shapes.items() ^ others.items())
        here, there = (each.get(name, "missing") for each in (others, shapes))
        raise SdftError(f"{told}, but {name} is {here} here and {there} there; name its own seed with --model")


def _same_vocabulary(tokenizer: Tokenizer, own: Tokenizer, told: str) -> None:
    for id in range(max(tokenizer.vocab_size, own.vocab_size)):
        here, there = own.piece(id), tokenizer.piece(id)
        if here != there:
            raise SdftError(f"{told}, but token {id} is {here!r} here and {there!r} there; name its own seed with "
                            "--model")
