"""The settings of a run: one frozen dataclass per section, a TOML file, and `--key=value` on top of it.

    [train]              every setting has a name of its own, so these three say the same:
    lr = 1e-4            a line under its section in the file,  --train.lr=1e-4,  --lr=1e-4

A setting that is not given takes its default; templates, epochs and length of rewrites take the task's. The resolved
settings are written to the run folder as config.toml, which is a valid input again.
"""
from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sdft.errors import SdftError, nearest
from sdft.files import read_toml
from sdft.tasks import Task, load_task
from sdft.train.settings import TrainSettings, option

Values = dict[str, dict[str, Any]]          # section → key → value


@dataclass(frozen=True)
class ModelConfig:
    """The base model and how it computes."""

    model: str = option("smollm2-135m", "Base model: a name, a folder, a .gguf file, or org/name of the hub.")
    dtype: str = option("auto", "Type of the weights: bfloat16, float16 or float32; auto is bfloat16, or float32 on "
                                "a CPU without instructions for it.")
    device: str = option("cpu", "Device of the model: cpu, cuda, cuda:1, ….")
    chat: str | None = option(None, "Chat format: llama2, llama3, llama3.1, chatml, smollm2, qwen2, qwen2.5, qwen3, "
                                    "mistral, mistral-v0.3, zephyr, tinyllama, alpaca or raw; the default is the "
                                    "model's own.")


@dataclass(frozen=True)
class TaskConfig:
    """The data."""

    task: str = option("passages", "Task: passages (built in), gsm8k, openfunctions, alpaca, dolly, or custom.")
    data: str | None = option(None, "Folder of the task's files; for task custom, the file.")
    columns: dict[str, str] | None = option(None, "Names of the file's columns: instruction=NAME,response=NAME,….")
    max_records: int | None = option(None, "Use only the first N training records and max(32, N/2) test items.")
    train_records: int | None = option(None, "Number of training records; the default is the task's.")
    test_records: int | None = option(None, "Number of test items of the task; the default is the task's.")
    data_seed: int = option(0, "Random seed of generated data and of the held-out split.")


@dataclass(frozen=True)
class DistillConfig:
    """Rewriting the reference answers, and choosing among the rewrites."""

    template: str | None = option(None, "Template of the rewriting prompt; the default is the task's.")
    rewrite_tokens: int | None = option(None, "Maximum length of a rewrite in tokens; the default is the task's.")
    mix_ratio: float = option(1.0, "Share of the records that may use their rewrite; the others keep the original.")
    max_repeated_ngrams: float = option(0.5, "Reject a rewrite if a larger share of its word 4-grams occurred before.")
    max_length_ratio: float = option(5.0, "Reject a rewrite with more than X times the words of the reference, if it "
                                          "also exceeds max_words.")
    max_words: int = option(300, "Reject a rewrite with more than N words, if it also exceeds max_length_ratio.")


@dataclass(frozen=True)
class GenerateConfig:
    """Decoding, for rewriting and evaluation alike."""

    generation_batch_size: int = option(128, "Number of sequences generated at the same time.")
    temperature: float = option(0.0, "Sampling temperature; 0 is greedy decoding.")
    top_k: int = option(0, "Sample from the k most probable tokens; 0 is all.")
    top_p: float = option(1.0, "Sample from the most probable tokens that together reach this probability.")
    repetition_penalty: float = option(1.0, "Values above 1 make tokens that occurred before less likely.")
    sampling_seed: int = option(0, "Random seed of sampling; each record has its own random numbers.")


@dataclass(frozen=True)
class EvalConfig:
    """What is measured in addition to the task."""

    train_template: str | None = option(None, "Template of the training prompt; the default is the task's.")
    primary: tuple[str, ...] = option(("task", "elaborate.forgetting"), "Primary end points, named before the run: "
                                      "task or a suite, for its mean score, or SUITE.forgetting. Their p-values are "
                                      "not corrected; those of all other comparisons are, together.")
    measure: str = option("main", "What is measured of an arm: main (what answers the question: abilities, forgetting, "
                                  "gap, forward KL, ‖ΔW‖) or all (also reverse KL, drift on the task, activations, "
                                  "interpolation, Fisher, decompositions; it takes several times as long).")
    eval_every: int = option(0, "Every N optimiser steps, measure task accuracy, forgetting and KL on few items; 0 is "
                                "never.")
    recovery: bool = option(False, "Measure after how many steps of training on the base model's own answers an arm no "
                                   "longer forgets: `sdft measure recovery`.")
    elaborate_items: int | None = option(240, "Number of items of the suite `elaborate`; 0 none.")
    instruction_items: int | None = option(None, "Number of items of the suite `instructions`; default all, 0 none.")
    general_items: int | None = option(None, "Number of general prompts; the default is all.")
    n_probe_texts: int = option(16, "With measure = all, number of texts of each kind for the expensive measures: "
                                    "activations, Fisher, interpolation, drift on the task.")
    svd_layers: int = option(3, "With measure = all, number of layers, evenly spread, whose trained matrices are "
                                "decomposed before and after training: spectral shift, principal cosines, intruder "
                                "dimensions; 0 is none.")


@dataclass(frozen=True)
class ArmsConfig:
    """What is trained and compared, and the settings of single arms."""

    arms: tuple[str, ...] = option(("sft", "sdft"), "Arms to train: sft, sdft, and baselines: self-output, "
                                   "token-matched-sft, replay, wise-ft, low-lr, low-rank, kl, l2-sp, ewc, dft, stm, "
                                   "flow, sdft-onpolicy, also with -reverse, -ema or both.")
    replay_fraction: float = option(0.1, "Arm replay: share of the training examples that the base model wrote.")
    then: tuple[str, ...] = option((), "Tasks that every arm is trained on afterwards, one after the other: names, or "
                                   "paths of files. Tasks that need files read them in the folder `data`.")
    wise_ft_alpha: float = option(0.5, "Arm wise-ft: share of the weight change that remains.")


@dataclass(frozen=True)
class Config:
    """All settings of a run. The name of a setting is unique over all sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainSettings = field(default_factory=TrainSettings)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    arms: ArmsConfig = field(default_factory=ArmsConfig)


# `--quick`: a run on fewer records and items; the built-in one takes some 5 minutes on two cores with AVX2 in fp32. Its
# 64 steps learn one-word answers only at this learning rate: 48 steps at 5e-4 left accuracy below the base model's
# (study 1). A mean over the first kinds of `instructions` alone would mislead; `elaborate` is balanced at any length.
QUICK: Mapping[str, Any] = {"max_records": 96, "batch_size": 3, "lr": 1e-3, "elaborate_items": 60,
                            "instruction_items": 0, "general_items": 24}

SECTIONS: dict[str, type] = typing.get_type_hints(Config)
SECTION_OF = {setting.name: section for section, kind in SECTIONS.items() for setting in fields(kind)}


def make_config(path: Path | None = None, options: Mapping[str, Any] | None = None,
                quick: bool = False) -> tuple[Config, frozenset[str]]:
    """Build the settings from a TOML file, and from options ("lr" or "train.lr" → value or text) that override it.

    quick: settings that neither gives are those of QUICK; `max_records` only where no number of records is given. Where
    this changes nothing, a line on stderr says so. Returns the settings and the names of those that were set. Raises
    SdftError for an unreadable file, an unknown key (naming the nearest known one) and an impossible value.
    """
    explicit: Values = {section: {} for section in SECTIONS}
    items = [(key, value, f"{path}: ") for key, value in flatten(read_toml(path), path)] if path else []
    items += [(key, value, "") for key, value in (options or {}).items()]
    for key, value, where in items:
        name = setting_name(key, where)
        explicit[SECTION_OF[name]][name] = parse(name, value, where)
    if quick:
        given = {name for values in explicit.values() for name in values}
        numbers = {"max_records"} if given & {"train_records", "test_records"} else set()
        if not (preset := {name: value for name, value in QUICK.items() if name not in given | numbers}):
            print("--quick changes nothing: the file and the options give all settings that it would", file=sys.stderr)
        for name, value in preset.items():
            explicit[SECTION_OF[name]][name] = value
    config = Config(**{section: SECTIONS[section](**values) for section, values in explicit.items()})
    for name, (holds, expected) in CHECKS.items():
        value = getattr(getattr(config, SECTION_OF[name]), name)
        if value is not None and not holds(value):
            raise SdftError(f"{SECTION_OF[name]}.{name}: expected {expected}, got {value}")
    return config, frozenset(name for values in explicit.values() for name in values)


def load_chosen(settings: TaskConfig, name: str | None = None) -> Task:
    """Load the task of the settings, or the task `name` with their data. Raises SdftError as `load_task` does."""
    return load_task(name or settings.task, settings.data, settings.columns, settings.max_records,
                     settings.train_records, settings.test_records, settings.data_seed)


def load_later(config: Config, first: Task) -> list[Task]:
    """Load the tasks of the setting `then`, of the same sizes as the first task; their files have the usual columns.

    Raises SdftError as `load_task` does, and for a task that comes twice.
    """
    settings = replace(config.task, columns=None)
    later = [load_chosen(_with_own_data(settings, name), name) for name in config.arms.then]
    names = [task.name for task in (first, *later)]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise SdftError(f"then: expected every task of a run once, got {repeated[0]} twice: results are kept by the "
                        "task's name; rename a file, or set epochs to train longer on one task")
    return later


def _with_own_data(settings: TaskConfig, name: str) -> TaskConfig:
    """The settings of one of several tasks: passages, and a file named by its path, read nothing in the folder."""
    return replace(settings, data=None) if name == "passages" or Path(name).is_file() else settings


def with_task(config: Config, explicit: frozenset[str], epochs: int, distill_template: str, train_template: str,
              rewrite_tokens: int) -> Config:
    """The settings with those that the task decides, where they were not set explicitly."""
    train = config.train if "epochs" in explicit else replace(config.train, epochs=epochs)
    return replace(config, train=train,
                   distill=replace(config.distill, template=config.distill.template or distill_template,
                                   rewrite_tokens=config.distill.rewrite_tokens or rewrite_tokens),
                   eval=replace(config.eval, train_template=config.eval.train_template or train_template))


def with_later_task(config: Config, first: Task, later: Task) -> Config:
    """The settings of a later stage: a setting that is at the default of the first task takes that of the later task.

    So the settings of a finished run, which are all set, say the same as those that it was started with.
    """
    chosen = {name: value for name, value in of_task(config).items() if value != first.default_settings[name]}
    undecided = replace(config, distill=replace(config.distill, template=None, rewrite_tokens=None),
                        eval=replace(config.eval, train_template=None, primary=()))
    return with_task(undecided, frozenset(), **{**later.default_settings, **chosen})


def of_task(config: Config) -> dict[str, Any]:
    """The settings that the task decides, as arguments of `with_task`; kept with distilled.jsonl for `sdft train`."""
    return {"epochs": config.train.epochs, "distill_template": config.distill.template,
            "train_template": config.eval.train_template, "rewrite_tokens": config.distill.rewrite_tokens}


def with_machine(config: Config) -> Config:
    """The settings with those that the machine decides: the dtype, the size of a micro-batch, and absolute paths, valid
    from any folder."""
    from sdft.model.io.checkpoints import as_dtype

    name, data = config.model.model, config.task.data
    model, dtype = Path(name).expanduser(), as_dtype(config.model.dtype, config.model.device)
    return replace(config, model=replace(config.model, model=str(model.resolve()) if model.exists() else name,
                                         dtype=str(dtype).removeprefix("torch.")),
                   arms=replace(config.arms, then=tuple(str(Path(task).resolve()) if Path(task).is_file() else task
                                                        for task in config.arms.then)),
                   task=replace(config.task, data=str(Path(data).resolve()) if data else None),
                   train=config.train.resolved(config.model.device))


def resolve_settings(config: Config, explicit: frozenset[str]) -> tuple[Config, Task]:
    """The settings with those that the task and the machine decide, and the task."""
    task = load_chosen(_with_own_data(config.task, config.task.task) if config.arms.then else config.task)
    return with_machine(with_task(config, explicit, **task.default_settings)), task


def to_values(config: Config) -> Values:
    """The settings as nested plain values, without those that are None."""
    return {section: {setting.name: value for setting in fields(kind)
                      if (value := getattr(getattr(config, section), setting.name)) is not None}
            for section, kind in SECTIONS.items()}


def to_toml(config: Config) -> str:
    """The settings as TOML; `make_config` reads it back."""
    parts = []
    for section, values in to_values(config).items():
        parts.append("\n".join([f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]))
    return "\n\n".join(parts) + "\n"


def parse(name: str, value: Any, where: str = "") -> Any:
    """The value of one setting, from a TOML value or from the command line's text (SdftError for a wrong type)."""
    kind = kind_of(name)
    try:
        return _convert(kind, value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SdftError(f"{where}{SECTION_OF[name]}.{name}: expected {_EXPECTED[kind]}, got {value!r}") from error


def kind_of(name: str) -> type:
    """The type of a setting that is not None: int, float, bool, str, tuple or dict."""
    kind = typing.get_type_hints(SECTIONS[SECTION_OF[name]])[name]
    if isinstance(kind, types.UnionType):
        kind = next(part for part in kind.__args__ if part is not type(None))
    return typing.get_origin(kind) or kind


def _convert(kind: type, value: Any) -> Any:
    if kind is bool:
        words = {"true": True, "1": True, "false": False, "0": False}
        return value if isinstance(value, bool) else words[value.lower()]
    if kind is tuple:
        return tuple(_convert(str, part.strip()) for part in (value.split(",") if isinstance(value, str) else value))
    if kind is dict:
        pairs = dict(part.split("=", 1) for part in value.split(",")) if isinstance(value, str) else dict(value)
        return {_convert(str, ours.strip()): _convert(str, theirs.strip()) for ours, theirs in pairs.items()}
    fits = {int: isinstance(value, (int, str)), float: True, str: isinstance(value, str) and value}
    if isinstance(value, bool) or not fits[kind]:
        raise ValueError
    return kind(value)


_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text",
             tuple: "names, separated by commas", dict: "OURS=THEIRS,… pairs"}


def setting_name(key: str, where: str = "") -> str:
    """The name of a setting, written with or without its section (SdftError where it is unknown)."""
    section, _, name = key.rpartition(".")
    if name not in SECTION_OF or section and SECTION_OF[name] != section:
        full = [f"{section}.{name}" for name, section in SECTION_OF.items()] if section else list(SECTION_OF)
        raise SdftError(f"{where}unknown setting {key!r}{nearest(key, full)}; `sdft run --help` lists them all")
    return name


def flatten(values: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """("section.key", value) of a parsed file; a key outside of any section has only its own name."""
    for key, value in values.items():
        if key in SECTIONS and isinstance(value, dict):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        elif isinstance(value, dict) and key not in SECTION_OF:
            raise SdftError(f"{path}: unknown section [{key}]{nearest(key, SECTIONS)}; expected {', '.join(SECTIONS)}")
        else:
            yield key, value


# Setting → what must hold, and in words. The training settings check themselves.
CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "generation_batch_size": (lambda count: count >= 1, "at least 1"),
    "rewrite_tokens": (lambda count: count >= 1, "at least 1"),
    "mix_ratio": (lambda share: 0 <= share <= 1, "a share from 0 to 1"),
    "max_repeated_ngrams": (lambda share: 0 < share <= 1, "a share above 0, up to 1"),
    "max_length_ratio": (lambda ratio: ratio >= 1, "at least 1"),
    "max_words": (lambda count: count >= 1, "at least 1"),
    "elaborate_items": (lambda count: count >= 0, "0 (none) or more"),
    "measure": (lambda name: name in ("main", "all"), "main or all"),
    "eval_every": (lambda steps: steps >= 0, "0 (never) or more steps"),
    "instruction_items": (lambda count: count >= 0, "0 (none) or more"),
    "general_items": (lambda count: count >= 1, "at least 1, since drift is measured on them"),
    "n_probe_texts": (lambda count: count >= 1, "at least 1"),
    "svd_layers": (lambda count: count >= 0, "0 (none) or more layers"),
    "replay_fraction": (lambda share: 0 < share < 1, "a share above 0 and below 1"),
    "wise_ft_alpha": (lambda share: 0 <= share < 1, "a share from 0, below 1"),
}


def _toml(value: Any) -> str:
    """A value as TOML, which writes texts, truth values, whole numbers and lists as JSON does."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)       # repr: inf, nan
