"""The settings of a run: one frozen dataclass per part, a TOML file, and `--key=value` on top of it.

    [train]              every key has one name of its own, so these three say the same:
    lr = 1e-4            a line under its section in the file,  --train.lr=1e-4,  --lr=1e-4

What is not set takes its default; templates and epochs take the task's. The resolved settings are written to the run
folder as config.toml, which is a valid input again.
"""
from __future__ import annotations

import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.errors import SdftError, nearest
from sdft.files import read_text
from sdft.train.settings import TrainSettings, option

if TYPE_CHECKING:
    from sdft.tasks import Task

Values = dict[str, dict[str, Any]]          # section → key → value


@dataclass(frozen=True)
class ModelConfig:
    """The seed model and how it computes."""

    model: str = option("smollm2-135m", "seed model: a name, a folder, a .gguf file, or org/name of the hub")
    dtype: str = option("auto", "of the weights: bfloat16, float16, float32; auto: bfloat16, or float32 on a "
                                "CPU without instructions for it")
    device: str = option("cpu", "cpu, cuda, cuda:1, …")
    chat: str | None = option(None, "chat format (default: the model's own)")


@dataclass(frozen=True)
class TaskConfig:
    """The data."""

    task: str = option("passages", "passages (built in), gsm8k, openfunctions, alpaca, dolly, or custom")
    data: str | None = option(None, "folder of the task's files; for custom, the file")
    columns: dict[str, str] | None = option(None, "instruction=NAME,response=NAME,…: the file's names of our columns")
    max_records: int | None = option(None, "only the first N training records, and fewer test items with them")
    train_records: int | None = option(None, "training records")
    test_records: int | None = option(None, "test items of the task")
    data_seed: int = option(0, "seeds generated data and the held-out split")


@dataclass(frozen=True)
class DistillConfig:
    """Rewriting the reference answers, and choosing among the rewrites."""

    template: str | None = option(None, "template of the rewriting prompt (default: the task's)")
    rewrite_tokens: int | None = option(None, "longest rewrite, in tokens (default: the task's)")
    mix_ratio: float = option(1.0, "share of the records that may take their rewrite")
    max_repeated_ngrams: float = option(0.5, "a rewrite is rejected when more of its word 4-grams occurred before")
    max_length_ratio: float = option(5.0, "… when it has so many times the reference's words")
    max_words: int = option(300, "    and more words than this")


@dataclass(frozen=True)
class GenerateConfig:
    """Decoding, for rewriting and evaluation alike."""

    generation_batch_size: int = option(128, "responses written at a time")
    temperature: float = option(0.0, "0: greedy")
    top_k: int = option(0, "sample among the k most probable tokens; 0: all")
    top_p: float = option(1.0, "sample among the most probable tokens that make up this share")
    repetition_penalty: float = option(1.0, "above 1: tokens that occurred before are less likely")
    sampling_seed: int = option(0, "seeds sampling, record by record")


@dataclass(frozen=True)
class EvalConfig:
    """What is measured beside the task itself."""

    train_template: str | None = option(None, "template of the training prompt (default: the task's)")
    instruction_items: int | None = option(None, "prompts of the suite `instructions` (default: all; 0: none)")
    general_items: int | None = option(None, "general prompts (default: all)")
    n_probe_texts: int = option(16, "texts of each kind that the dear measures take: activations, Fisher, loss along the "
                             "way, drift on the task")
    svd_layers: int = option(3, "layers, evenly spread, whose trained matrices are decomposed before and after: spectral "
                             "shift, principal cosines, intruder dimensions; 0: none")


@dataclass(frozen=True)
class ArmsConfig:
    """What is trained and compared, and what single arms need."""

    arms: tuple[str, ...] = option(("sft", "sdft"), "what to train: sft, sdft, and rivals: self-output, "
                                   "token-matched-sft, replay, wise-ft, low-lr, low-rank, kl, l2-sp, ewc, dft, stm, "
                                   "flow, sdft-onpolicy with -reverse, -ema or both behind it")
    replay_fraction: float = option(0.1, "replay: share of dialogues that the seed wrote by itself")
    wise_ft_alpha: float = option(0.5, "wise-ft: share of the change of the weights that stays")


@dataclass(frozen=True)
class Config:
    """All settings of a run. Every leaf's name is unique over the sections."""

    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    train: TrainSettings = field(default_factory=TrainSettings)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    arms: ArmsConfig = field(default_factory=ArmsConfig)


SECTIONS: dict[str, type] = {"model": ModelConfig, "task": TaskConfig, "distill": DistillConfig, "train": TrainSettings,
                             "generate": GenerateConfig, "eval": EvalConfig, "arms": ArmsConfig}
SECTION_OF = {knob.name: section for section, kind in SECTIONS.items() for knob in fields(kind)}


def make_config(path: Path | None = None, options: Mapping[str, Any] | None = None) -> tuple[Config, frozenset[str]]:
    """Build the settings from a TOML file and from options ("lr" or "train.lr" → value or text) that go over it.

    Returns the settings and the names of those that were given. Raises SdftError for an unreadable file, an unknown key
    (naming the nearest known one) and an impossible value.
    """
    given: Values = {section: {} for section in SECTIONS}
    if path is not None:
        for key, value in _flatten(_read_toml(path), path):
            _set(given, key, value, f"{path}: ")
    for key, value in (options or {}).items():
        _set(given, key, value, "")
    config = Config(**{section: SECTIONS[section](**values) for section, values in given.items()})
    _check(config)
    return config, frozenset(name for values in given.values() for name in values)


def load_chosen(asked: TaskConfig, name: str | None = None) -> Task:
    """The task that the settings name, or the one named here, with their data (SdftError as `load_task` has it)."""
    from sdft.tasks import load_task

    return load_task(name or asked.task, asked.data, asked.columns, asked.max_records, asked.train_records,
                     asked.test_records, asked.data_seed)


def with_task(config: Config, given: frozenset[str], epochs: int, distill_template: str, train_template: str,
              rewrite_tokens: int) -> Config:
    """Fill what the task decides where nobody has set it."""
    train = config.train if "epochs" in given else replace(config.train, epochs=epochs)
    return replace(config, train=train,
                   distill=replace(config.distill, template=config.distill.template or distill_template,
                                   rewrite_tokens=config.distill.rewrite_tokens or rewrite_tokens),
                   eval=replace(config.eval, train_template=config.eval.train_template or train_template))


def of_task(config: Config) -> dict[str, Any]:
    """What `with_task` has filled in, as its arguments; it stands beside distilled.jsonl for `sdft train`."""
    return {"epochs": config.train.epochs, "distill_template": config.distill.template,
            "train_template": config.eval.train_template, "rewrite_tokens": config.distill.rewrite_tokens}


def with_machine(config: Config) -> Config:
    """Fill what this machine decides: the dtype, and absolute paths, so that a run can be gone on with from any folder."""
    from sdft.model.io.loading import as_dtype

    name, data = config.model.model, config.task.data
    model, dtype = Path(name).expanduser(), as_dtype(config.model.dtype, config.model.device)
    return replace(config, model=replace(config.model, model=str(model.resolve()) if model.exists() else name,
                                         dtype=str(dtype).removeprefix("torch.")),
                   task=replace(config.task, data=str(Path(data).resolve()) if data else None))


def to_values(config: Config) -> Values:
    """The settings as nested plain values, unset ones left out."""
    return {section: {knob.name: getattr(getattr(config, section), knob.name) for knob in fields(kind)
                      if getattr(getattr(config, section), knob.name) is not None}
            for section, kind in SECTIONS.items()}


def to_toml(config: Config) -> str:
    """The settings as TOML; `make_config` reads it back."""
    parts = []
    for section, values in to_values(config).items():
        parts.append("\n".join([f"[{section}]", *(f"{name} = {_toml(value)}" for name, value in values.items())]))
    return "\n\n".join(parts) + "\n"


def parse(section: str, name: str, value: Any, where: str = "") -> Any:
    """The value of one setting, from TOML's type or from the command line's text (SdftError where it is none)."""
    kind = kind_of(section, name)
    try:
        return _PARSERS[kind](value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SdftError(f"{where}{section}.{name}: expected {_EXPECTED[kind]}, got {value!r}") from error


def kind_of(section: str, name: str) -> type:
    """int, float, bool, str, tuple or dict: what a setting holds where it is set."""
    kind = typing.get_type_hints(SECTIONS[section])[name]
    if isinstance(kind, types.UnionType):
        kind = next(part for part in kind.__args__ if part is not type(None))
    return typing.get_origin(kind) or kind


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else {"true": True, "1": True, "false": False, "0": False}[value.lower()]


def _string(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _list(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(_string(part.strip()) for part in parts)


def _pairs(value: Any) -> dict[str, str]:
    pairs = dict(part.split("=", 1) for part in value.split(",")) if isinstance(value, str) else dict(value)
    return {_string(ours.strip()): _string(theirs.strip()) for ours, theirs in pairs.items()}


_PARSERS = {int: _whole, float: _number, bool: _truth, str: _string, tuple: _list, dict: _pairs}
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text",
             tuple: "names, separated by commas", dict: "OURS=THEIRS,… pairs"}


def _set(given: Values, key: str, value: Any, where: str) -> None:
    section, _, name = key.rpartition(".")
    if name not in SECTION_OF or section and SECTION_OF[name] != section:
        full = [f"{section}.{name}" for name, section in SECTION_OF.items()] if section else list(SECTION_OF)
        raise SdftError(f"{where}unknown setting {key!r}{nearest(key, full)}; `sdft run --help` lists them all")
    section = SECTION_OF[name]
    given[section][name] = parse(section, name, value, where)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise SdftError(f"{path}: malformed TOML: {error}") from error


def _flatten(values: Mapping[str, Any], path: Path) -> list[tuple[str, Any]]:
    """("section.key", value) of a parsed file; a key outside of any section counts by its own name."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if key in SECTIONS and isinstance(value, dict):
            found += [(f"{key}.{name}", each) for name, each in value.items()]
        elif isinstance(value, dict) and key not in SECTION_OF:
            raise SdftError(f"{path}: unknown section [{key}]{nearest(key, SECTIONS)}; expected {', '.join(SECTIONS)}")
        else:
            found.append((key, value))
    return found


def _check(config: Config) -> None:
    """Refuse what no stage could do, before any of them starts (training's own settings check themselves)."""
    generate, distill, counted, arms = config.generate, config.distill, config.eval, config.arms
    for holds, text in (
        (generate.generation_batch_size >= 1, f"generate.generation_batch_size: expected at least 1, got {generate.generation_batch_size}"),
        (distill.rewrite_tokens is None or distill.rewrite_tokens >= 1,
         f"distill.rewrite_tokens: expected at least 1, got {distill.rewrite_tokens}"),
        (0 <= distill.mix_ratio <= 1, f"distill.mix_ratio: expected a share from 0 to 1, got {distill.mix_ratio}"),
        (0 < distill.max_repeated_ngrams <= 1,
         f"distill.max_repeated_ngrams: expected a share above 0, up to 1, got {distill.max_repeated_ngrams}"),
        (distill.max_length_ratio >= 1, f"distill.max_length_ratio: expected at least 1, got {distill.max_length_ratio}"),
        (distill.max_words >= 1, f"distill.max_words: expected at least 1, got {distill.max_words}"),
        (counted.instruction_items is None or counted.instruction_items >= 0,
         f"eval.instruction_items: expected 0 (none) or more, got {counted.instruction_items}"),
        (counted.general_items is None or counted.general_items >= 1,
         f"eval.general_items: expected at least 1, since drift is measured on them; got {counted.general_items}"),
        (counted.n_probe_texts >= 1, f"eval.n_probe_texts: expected at least 1, got {counted.n_probe_texts}"),
        (counted.svd_layers >= 0, f"eval.svd_layers: expected 0 (none) or more layers, got {counted.svd_layers}"),
        (0 < arms.replay_fraction < 1, f"arms.replay_fraction: expected a share above 0 and below 1, got {arms.replay_fraction}"),
        (0 <= arms.wise_ft_alpha < 1, f"arms.wise_ft_alpha: expected a share from 0, below 1, got {arms.wise_ft_alpha}"),
    ):
        if not holds:
            raise SdftError(text)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + "}"
    return "[" + ", ".join(_toml(each) for each in value) + "]"


def default_of(knob: Any) -> Any:
    """The default of a dataclass field."""
    return knob.default if knob.default is not MISSING else knob.default_factory()
