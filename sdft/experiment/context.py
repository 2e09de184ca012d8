"""What the method works with: the seed model, the task, the settings as each room wants them, and the run folder."""
from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from sdft.data.chat import Example
from sdft.data.examples import training_example
from sdft.data.records import Record
from sdft.data.templates import Template, get_template
from sdft.distill import Limits
from sdft.distill.distilled import Distilled
from sdft.distill.rewriting import distill_prompt
from sdft.errors import SdftError
from sdft.experiment.settings import Config
from sdft.files import Journal, read_json, write_json
from sdft.generation import Sampling
from sdft.measure.abilities import against, evaluate, summarise
from sdft.measure.outputs.drift import BaseView, base_answers, base_view
from sdft.measure.outputs.texts import compare_texts
from sdft.model.batches import fingerprint as examples_fingerprint
from sdft.model.io.fingerprint import fingerprint
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off, match_targets, remove_lora
from sdft.objectives.fisher import fisher, linear_layers
from sdft.tasks import Suite, Task, general_suite, instruction_suite
from sdft.tokenizers.tokenizer import Tokenizer

T = TypeVar("T")
Shared = dict[str, tuple[Any, Any]]        # of the seed: what → (of which weights and texts, what was found)

FORMAT = 1          # of the measures that a run keeps: one more when one of them changes, so that it is taken anew
SHOWN = 4           # records of the token map


class Context:
    """One run's model, data, settings and folder, and the small steps that every arm shares."""

    def __init__(self, config: Config, folder: Path, model: Llama, tokenizer: Tokenizer, task: Task,
                 shared: Shared | None = None):
        self.shared: Shared = {} if shared is None else shared
        self.folder, self.base, self.tokenizer, self.task = folder, model, tokenizer, task
        self.model_name, self.chat = config.model.model, config.model.chat
        self.settings, self.rows, self.ratio = config.train, config.generate.generation_batch_size, config.distill.mix_ratio
        self.arms = config.arms
        self.sampling = sampling(config, config.distill.rewrite_tokens)
        self.limits = Limits(config.distill.max_repeated_ngrams, config.distill.max_length_ratio, config.distill.max_words)
        self.distill_template = get_template(config.distill.template or task.distill_template)
        self.train_template = get_template(config.eval.train_template or task.train_template)
        self.suites = [*task.suites, *first(instruction_suite(), config.eval.instruction_items)]
        self.general = first(general_suite(), config.eval.general_items)[0]
        self.probes, self.spectra = config.eval.n_probe_texts, config.eval.svd_layers
        self.answers: dict[str, dict[str, list[dict[str, Any]]]] = {}      # arm → suite → lines

    def check(self) -> None:
        """Refuse at once what a later stage would refuse after minutes of work (SdftError)."""
        if self.settings.method == "lora":
            match_targets(self.base, self.settings.lora_targets, self.settings.lora_rank)
        empty = sum(not record.response.strip() for record in self.task.train)
        if empty:
            raise SdftError(f"task {self.task.name}: expected an answer in every record, but {empty} of "
                            f"{len(self.task.train)} have none; leave them out")
        for suite in self.suites:
            if not suite.items:
                raise SdftError(f"suite {suite.name}: expected test items, got none; give it some")
        distill_prompt(self.tokenizer, self.task.train[0], self.distill_template, self.chat)
        longest = min(self.settings.max_length, self.base.config.context_length)
        if not any(len(self.example(record).tokens) <= longest for record in self.task.train):
            raise SdftError(f"expected records of at most {longest} tokens to train on, but all {len(self.task.train)} "
                            "are longer; raise max_length, or give other records")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note the seconds inside the `with` in seconds.jsonl."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with Journal(self.folder / "seconds.jsonl") as journal:
                journal.append({"stage": stage, "seconds": round(time.perf_counter() - started, 2)})

    def once(self, name: str, model: Llama, sets: Sequence[Sequence[Example]],
             make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` finds of a model and of sets of examples, kept as the file `name` of the run folder.

        It is made where the file is not there, or is of another model, of other examples or of other measures.
        """
        path = self.folder / name
        about = {"format": FORMAT, "model": fingerprint(model), "examples": list(map(examples_fingerprint, sets))}
        if not path.exists() or read_json(path).get("of") != about:
            write_json(path, {"of": about, "found": make()})
        return read_json(path)["found"]

    def seconds(self) -> dict[str, float]:
        """The seconds of every stage, those before an interruption included (all but a stage that was killed)."""
        total: dict[str, float] = {}
        for line in Journal(self.folder / "seconds.jsonl").read():
            total[line["stage"]] = round(total.get(line["stage"], 0.0) + line["seconds"], 2)
        return total

    def example(self, record: Record) -> Example:
        """A record as a training example: plain template, chat format, loss on the assistant's turns."""
        return training_example(self.tokenizer, record, self.train_template, self.chat)

    def examples(self, records: Iterable[Record]) -> list[Example]:
        """The records as training examples."""
        return [self.example(record) for record in records]

    def model_to_train(self) -> Llama:
        """A model to train: the seed itself under a fresh adapter, or with all weights trained a copy of it."""
        return copy.deepcopy(self.base) if self.settings.method == "full" else self.base

    def separate_base(self, model: Llama) -> Llama | None:
        """The seed to compare `model` with; None where that is `model` with its adapter off."""
        return None if model is self.base else self.base

    def remove_adapter(self, model: Llama) -> None:
        """Make the seed the seed again."""
        if model is self.base:
            remove_lora(model)

    def abilities(self, arm: str, model: Llama) -> dict[str, Any]:
        """Answer all suites; sum the scores up, and set them and the general answers against the seed's."""
        with self.timed(f"eval {arm}"):
            answers = self.answers[arm] = evaluate(model, self.tokenizer, [*self.suites, self.general],
                                                   self.folder / "eval" / arm, self.sampling, self.rows, self.chat)
        suites = {}
        for suite in self.suites:
            suites[suite.name] = {"metric": suite.metric, **summarise(answers[suite.name])}
            if arm != "base":
                suites[suite.name]["against_base"] = against(answers[suite.name], self.answers["base"][suite.name])
        general = compare_texts(answers[self.general.name], self.answers["base"][self.general.name])
        if arm == "base":
            general |= {"kl": 0.0, "kl_low": 0.0, "kl_high": 0.0, "top1": 1.0, "n": len(answers[self.general.name]),
                        "tokens": sum(sum(answer.mask) for answer in self.base_answers)}
        return {"suites": suites, "general": general}

    def of_base(self, what: str, texts: Sequence[Example], make: Callable[[], T], layers: Sequence[str] = ()) -> T:
        """What `make` finds of the seed, or of its `layers`, on `texts`.

        The newest of each kind is kept for the runs that share a memory.
        """
        with adapter_off(self.base):
            about = fingerprint(self.base), str(self.base.device), examples_fingerprint(texts), tuple(layers)
        if what not in self.shared or self.shared[what][0] != about:
            self.shared[what] = about, make()
        return self.shared[what][1]

    @cached_property
    def base_answers(self) -> list[Example]:
        """The seed's own answers to the general prompts, on which drift is measured."""
        return self.written("base", self.general)

    @cached_property
    def base_view(self) -> BaseView:
        """What the seed makes of these answers, computed before the first arm is set against it."""
        return self.of_base("view", self.base_answers, lambda: base_view(self.base, self.base_answers))

    def written(self, arm: str, suite: Suite) -> list[Example]:
        """An arm's own answers to a suite, as examples whose targets are the tokens that it chose."""
        return base_answers(self.tokenizer, suite, self.answers[arm][suite.name], self.chat)

    @cached_property
    def task_view(self) -> BaseView | None:
        """What the seed makes of its own first answers to the task's test items; None where it answers nothing."""
        answers = self.written("base", self.task.suites[0])[:self.probes]
        if not answers:
            return None
        return self.of_base("view on the task", answers, lambda: base_view(self.base, answers))

    @cached_property
    def fisher(self) -> dict[str, Tensor]:
        """The seed's diagonal Fisher of the trained matrices, on its first general answers."""
        texts, layers = self.base_answers[:self.probes], self.matrices
        return self.of_base("fisher", texts, lambda: fisher(self.base, texts, layers), layers)

    @cached_property
    def matrices(self) -> list[str]:
        """The names of the linear layers that are trained, embedding and head aside."""
        if self.settings.method == "full":
            return linear_layers(self.base)
        return match_targets(self.base, self.settings.lora_targets)

    def shown(self, distilled: Iterable[Distilled]) -> list[str]:
        """The ids of the first few records whose rewrite was taken, which the report shows token by token."""
        return [row.id for row in distilled if row.source == "rewrite"][:SHOWN]


def sampling(config: Config, max_new_tokens: int = Sampling.max_new_tokens) -> Sampling:
    """Decoding as the settings say."""
    generate = config.generate
    return Sampling(max_new_tokens=max_new_tokens, temperature=generate.temperature, top_k=generate.top_k,
                    top_p=generate.top_p, repetition_penalty=generate.repetition_penalty, seed=generate.sampling_seed)


def first(suite: Suite, count: int | None) -> list[Suite]:
    """The suite cut to its first `count` items; no suite where that is 0."""
    return [replace(suite, items=suite.items[:count])] if count != 0 else []
