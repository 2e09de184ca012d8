"""What a run works with: the base model, the task, the settings as each step takes them, and the run folder."""
from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import Tensor

from sdft.data.chat import Example, encode_prompt, training_example
from sdft.data.records import Record
from sdft.data.templates import get_template
from sdft.distill import Limits
from sdft.distill.rewriting import distill_prompt
from sdft.errors import SdftError, nearest
from sdft.experiment.settings import Config
from sdft.experiment.timetable import Timetable
from sdft.files import Journal, read_json, write_json
from sdft.generation import Sampling
from sdft.generation.memory import batch_size_for
from sdft.measure.abilities import evaluate
from sdft.measure.forgetting import long_answers, share, solved, suite_result
from sdft.measure.outputs.drift import BaseView, base_answers, base_view
from sdft.measure.outputs.texts import compare_texts
from sdft.model.batches import fingerprint as examples_fingerprint
from sdft.model.io.checkpoints import fingerprint
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off, match_targets, remove_lora
from sdft.objectives.fisher import fisher, linear_layers
from sdft.results import AnswerLine, ArmMeasures, General, Share
from sdft.tasks import Suite, Task, elaborate_suite, general_suite, instruction_suite
from sdft.tokenizers.tokenizer import Tokenizer

# What measure = main measures on fewer texts, evenly spread. Each is several times what its interval needs: the gap is
# nats wide on any hundred records, and KL over the first 8 tokens differs twofold between two arms.
GAP_RECORDS, DRIFT_ANSWERS = 200, 54
NOISE_ITEMS = 64            # that are answered again for the noise floor: none lost of 64 bounds it at 6 %

T = TypeVar("T")
SharedMeasures = dict[str, tuple[Any, Any]]     # measure of the base model → (its weights and texts, its value)


class Context:
    """One run's model, data, settings and folder, and the small steps that all arms share."""

    def __init__(self, config: Config, folder: Path, model: Llama, tokenizer: Tokenizer, task: Task,
                 shared: SharedMeasures | None = None):
        self.shared: SharedMeasures = {} if shared is None else shared
        self.folder, self.base, self.tokenizer, self.task = folder, model, tokenizer, task
        self.model_name, self.chat = config.model.model, config.model.chat
        self.settings, self.arms, distill = config.train, config.arms, config.distill
        self.batch_size, self.mix_ratio = config.generate.generation_batch_size, distill.mix_ratio
        self.sampling = sampling(config, distill.rewrite_tokens or task.rewrite_tokens)
        self.limits = Limits(distill.max_repeated_ngrams, distill.max_length_ratio, distill.max_words)
        self.distill_template = get_template(distill.template or task.distill_template)
        self.train_template = get_template(config.eval.train_template or task.train_template)
        self.suites, self.general = run_suites(config, task)
        self.primary = primary_end_points(config.eval.primary, self.suites)
        self.eval_every, self.recovery = config.eval.eval_every, config.eval.recovery
        self.measure, self.n_probe_texts = config.eval.measure, config.eval.n_probe_texts
        self.svd_layers = config.eval.svd_layers if self.measure == "all" else 0
        self.answers: dict[str, dict[str, list[AnswerLine]]] = {}          # arm → suite → answers
        self.timetable = Timetable()                                        # `run` sets that of the whole run

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
        if self.recovery and not any(suite.name == "elaborate" for suite in self.suites):
            raise SdftError("recovery: expected items of the suite elaborate, got elaborate_items = 0; ask for some, "
                            "or leave recovery out")
        distill_prompt(self.tokenizer, self.task.train[0], self.distill_template, self.chat)
        longest = min(self.settings.max_length, self.base.config.context_length)
        if not any(len(self.example(record).tokens) <= longest for record in self.task.train):
            raise SdftError(f"expected records of at most {longest} tokens to train on, but all {len(self.task.train)} "
                            "are longer; raise max_length, or give other records")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Append the seconds inside the `with` to seconds.jsonl."""
        self.timetable.begin(stage)
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self.timetable.end(stage, seconds)
            with Journal(self.folder / "seconds.jsonl") as journal:
                journal.append({"stage": stage, "seconds": round(seconds, 2)})

    def seconds(self) -> dict[str, float]:
        """The seconds of every stage, summed over interruptions (without those of a stage that was killed)."""
        total: dict[str, float] = {}
        for line in Journal(self.folder / "seconds.jsonl").read():
            total[line["stage"]] = round(total.get(line["stage"], 0.0) + line["seconds"], 2)
        return total

    def once(self, name: str, model: Llama, sets: Collection[Sequence[Example]], make: Callable[[], T]) -> T:
        """The result of `make`, a measure of a model on sets of examples, kept as the file `name` of the run folder.
        `make` is called where there is no such file, or where it belongs to another model or other examples."""
        path = self.folder / name
        about = {"model": fingerprint(model), "examples": list(map(examples_fingerprint, sets))}
        if not path.exists() or read_json(path).get("of") != about:
            write_json(path, {"of": about, "measures": make()})
        return read_json(path)["measures"]

    def example(self, record: Record) -> Example:
        """A record as a training example."""
        return training_example(self.tokenizer, record, self.train_template, self.chat)

    def examples(self, records: Iterable[Record]) -> list[Example]:
        """The records as training examples."""
        return [self.example(record) for record in records]

    def model_to_train(self) -> Llama:
        """The base model itself, for a fresh adapter; a copy of it where all weights are trained."""
        return copy.deepcopy(self.base) if self.settings.method == "full" else self.base

    def separate_base(self, model: Llama) -> Llama | None:
        """The base model to compare `model` with; None where that is `model` with its adapter off."""
        return None if model is self.base else self.base

    def remove_adapter(self, model: Llama) -> None:
        """Remove the adapter, so that the shared base model is unmodified again."""
        if model is self.base:
            remove_lora(model)

    def abilities(self, arm: str, model: Llama) -> ArmMeasures:
        """Answer all suites, and compare scores and general answers with the base model's, item by item."""
        with self.timed(f"eval {arm}"):
            answers = evaluate(model, self.tokenizer, [*self.suites, self.general], self.folder / "eval" / arm,
                               self.sampling, self.batch_size, self.chat)
        self.answers[arm] = answers
        base = self.answers["base"]
        suites = {suite.name: suite_result(suite, answers[suite.name], base[suite.name]) for suite in self.suites}
        general = cast(General, compare_texts(answers[self.general.name], base[self.general.name]))
        if kept := long_answers(answers[self.general.name], base[self.general.name]):
            general["long_answers"] = kept
        if arm == "base":
            general |= {"kl": 0.0, "kl_low": 0.0, "kl_high": 0.0, "top1": 1.0, "n": len(self.base_answers),
                        "tokens": sum(sum(answer.mask) for answer in self.base_answers)}
        return {"suites": suites, "general": general}

    def noise_floors(self) -> dict[str, Share]:
        """F between two answers of the base model to the items that it solves, of every suite whose F is a primary end
        point: how much forgetting is only noise.

        The second answers are sampled with another seed; greedy ones are decoded with another number of sequences at a
        time, which in bf16 can decide a near-tie. At most NOISE_ITEMS items of a suite are answered again. A suite has
        no floor where the base model solves no item of it, and none has where greedy answers were decoded one by one.
        """
        again, batch_size = self.sampling, max(1, self.sequences // 4)
        if again.temperature:
            again = replace(again, seed=again.seed + 1)
        elif batch_size == self.sequences:
            return {}
        few = [solved_by(self.answers["base"][suite.name], suite)
               for suite in self.suites if f"{suite.name}.forgetting" in self.primary]
        few = [replace(suite, items=evenly(suite.items, NOISE_ITEMS)) for suite in few if suite.items]
        if not few:
            return {}
        with self.timed("eval base again"):
            second = evaluate(self.base, self.tokenizer, few, self.folder / "eval/base-again", again, batch_size,
                              self.chat)
        return {suite.name: share(len(suite.items) - len(solved(second[suite.name])), len(suite.items))
                for suite in few}

    @property
    def sequences(self) -> int:
        """The number of sequences decoded at a time for the answers to all suites; on a GPU, those that fit."""
        lengths = [len(encode_prompt(self.tokenizer, item.messages, chat=self.chat)) + suite.max_new_tokens
                   for suite in (*self.suites, self.general) for item in suite.items]
        context = self.base.config.context_length
        return batch_size_for(self.base, [min(length, context) for length in lengths], self.batch_size)

    def of_base(self, measure: str, texts: Sequence[Example], make: Callable[[], T], layers: Sequence[str] = ()) -> T:
        """The result of `make`, a measure of the base model, or of its `layers`, on `texts`. The newest result of each
        measure is kept for the runs that share a memory."""
        with adapter_off(self.base):
            about = fingerprint(self.base), str(self.base.device), examples_fingerprint(texts), tuple(layers)
        if measure not in self.shared or self.shared[measure][0] != about:
            self.shared[measure] = about, make()
        return self.shared[measure][1]

    @cached_property
    def base_answers(self) -> list[Example]:
        """The base model's own answers to the general prompts, on which drift is measured; DRIFT_ANSWERS of them unless
        all is measured."""
        return self.fewer(self.own_answers("base", self.general), DRIFT_ANSWERS)

    @cached_property
    def base_view(self) -> BaseView:
        """The base model's hidden states on these answers, computed before the first arm is compared with it."""
        return self.of_base("view", self.base_answers, lambda: base_view(self.base, self.base_answers))

    def fewer(self, examples: Sequence[T], count: int) -> list[T]:
        """At most `count` examples; all of them with measure = all."""
        return list(examples) if self.measure == "all" else evenly(examples, count)

    def own_answers(self, arm: str, suite: Suite) -> list[Example]:
        """An arm's own answers to a suite, as examples whose targets are the tokens that it chose."""
        return base_answers(self.tokenizer, suite, self.answers[arm][suite.name], self.chat)

    @cached_property
    def task_view(self) -> BaseView | None:
        """The base model's view of its own first answers to the task's test items; None where it answers nothing."""
        answers = self.own_answers("base", self.task.suites[0])[:self.n_probe_texts]
        if not answers:
            return None
        return self.of_base("view on the task", answers, lambda: base_view(self.base, answers))

    @cached_property
    def fisher(self) -> dict[str, Tensor]:
        """The diagonal Fisher information of the matrices that training changes, on the base model's answers."""
        texts, layers = self.base_answers[:self.n_probe_texts], self.matrices
        return self.of_base("fisher", texts, lambda: fisher(self.base, texts, layers), layers)

    @cached_property
    def matrices(self) -> list[str]:
        """The names of the linear layers that are trained, without embedding and head."""
        if self.settings.method == "full":
            return linear_layers(self.base)
        return match_targets(self.base, self.settings.lora_targets)


def sampling(config: Config, max_new_tokens: int = Sampling.max_new_tokens) -> Sampling:
    """Decoding with the run's settings."""
    generate = config.generate
    return Sampling(max_new_tokens=max_new_tokens, temperature=generate.temperature, top_k=generate.top_k,
                    top_p=generate.top_p, repetition_penalty=generate.repetition_penalty, seed=generate.sampling_seed)


def primary_end_points(names: Sequence[str], suites: Sequence[Suite]) -> set[str]:
    """The end points `names` of a run with these suites, of which the first is the task's own, named "task".

    An end point is a suite, for its mean score, or SUITE.forgetting; SUITE.brief and SUITE.long are its parts. Raises
    SdftError for one that no suite has.
    """
    known = {suite.name for suite in (*suites, elaborate_suite(), instruction_suite())} | {"task"}
    known |= {f"{suite}.{part}" for suite in known for part in ("brief", "long")}
    for name in names:
        if (suite := name.removesuffix(".forgetting")) not in known:
            raise SdftError("primary: expected task, a suite, or SUITE.forgetting, got "
                            f"{name!r}{nearest(suite, known)}")
    return {re.sub(r"^task(?=\.|$)", suites[0].name, name) for name in names}


def run_suites(config: Config, task: Task) -> tuple[list[Suite], Suite]:
    """The scored suites of a run, the task's own first, and the general prompts."""
    suites = [*task.suites, *first_items(elaborate_suite(), config.eval.elaborate_items),
              *first_items(instruction_suite(), config.eval.instruction_items)]
    return suites, first_items(general_suite(), config.eval.general_items)[0]


def solved_by(lines: Sequence[AnswerLine], suite: Suite, count: int | None = None) -> Suite:
    """The suite cut to the first `count` items that the answers `lines` (the base model's) solve; None: all of them."""
    ids = solved(lines)
    return replace(suite, items=[item for item in suite.items if item.id in ids][:count])


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spread."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def first_items(suite: Suite, count: int | None) -> list[Suite]:
    """The suite cut to its first `count` items; no suite where that is 0."""
    return [replace(suite, items=suite.items[:count])] if count != 0 else []
