"""The specification of a study: one question, the runs that answer it, and the end point, named before the first run.

    name = "mix-ratio"
    question = "What does the share of rewritten targets change?"
    plots = [["target_nll", "kl"]]       # x and y, columns of cells.json: drawn, and correlated over the runs
    matched = ["shift"]                  # columns: the end point is also compared where arms have equal values in these
    controls = ["low-lr"]                # arms: end point and task score are also compared with theirs

    [primary]
    column = "elaborate.forgetting"      # the end point: a column of cells.json (columns.py)
    arm = "sdft"
    against = "sft"                      # an arm of the same run; or {mix_ratio = 0}: this arm in the run that has it

    [settings]                           # of every run: any setting of `sdft run`
    train_records = 128

    [grid]                               # one run for every combination; several seeds repeat a comparison
    mix_ratio = [0, 0.5, 1]
    seed = [42, 43, 44]

    [[runs]]                             # for runs that are no grid: each of these × the grid
    name = "sums"                        # replaces these settings in names and figures
    task = "gsm8k"

A study without runs of its own names other studies in `reads`, and has [predict] instead of the rest (predictors.py).

    sdft sweep STUDY.toml
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sdft.errors import SdftError, nearest
from sdft.experiment.run_folder import data_hash
from sdft.experiment.settings import Config, flatten, load_later, make_config, parse, resolve_settings, setting_name
from sdft.files import read_toml
from sdft.studies.results import EndPoint, Settings

SEED = "seed"                               # the setting that repeats a comparison and is no condition of it
TYPES = {"name": str, "question": str, "plots": list, "matched": list, "controls": list, "primary": dict,
         "settings": dict, "grid": dict, "runs": list, "reads": list, "predict": dict}
TYPE_NAMES = {str: "text", list: "list", dict: "table"}
KEYS = {"": tuple(TYPES), "primary": ("column", "arm", "against"), "predict": ("measures", "outcomes")}
MEANING = {"name": "what the study is called", "question": "what it asks",
           "primary": "by which column, and between what, the question is answered",
           "predict": "which measures predict which outcomes"}


@dataclass(frozen=True)
class Study:
    """The content of a study file. runs: the values that distinguish each run from the others, and its own settings."""

    path: Path
    name: str
    question: str
    primary: EndPoint
    plots: list[list[str]]
    matched: list[str]
    controls: list[str]
    settings: Settings
    runs: list[tuple[Settings, Settings]]
    reads: list[str]
    predict: dict[str, list[str]]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study: its name, the values that distinguish it, its resolved settings, the names of those that the
    study sets, and the hash of its data."""

    name: str
    values: Settings
    config: Config
    explicit: frozenset[str]
    data_sha256: str


def read_study(path: Path) -> Study:
    """Read a study file. Raises SdftError, naming the key, where one is missing, unknown or of a wrong type."""
    path = Path(path)
    content = read_toml(path)
    _check_keys(path, "", content)
    for key, kind in TYPES.items():
        if not isinstance(content.setdefault(key, kind()), kind):
            raise SdftError(f"{path}: {key}: expected a {TYPE_NAMES[kind]}, got {content[key]!r}")
    for key in ("name", "question", "predict" if content["reads"] else "primary"):
        if not content[key]:
            raise SdftError(f"{path}: expected {key!r}, which says {MEANING[key]}; it is missing")
    runs = [] if content["reads"] else list(_combinations(path, content))
    study = Study(path, content["name"], content["question"], content["primary"], content["plots"], content["matched"],
                  content["controls"], dict(_leaves(path, content["settings"])), runs, content["reads"],
                  content["predict"])
    _check(study)
    return study


def planned_runs(study: Study, data: str | None = None) -> list[PlannedRun]:
    """Resolve the settings of every run; data: folder with the files of the tasks that need some. Raises SdftError for
    impossible settings, for a task without its files, and for two runs of the same name."""
    runs: list[PlannedRun] = []
    for values, settings in study.runs:
        options = {**study.settings, **settings}
        if data and "data" not in options and (options.get("task", "passages") != "passages" or options.get("then")):
            options["data"] = data
        try:
            config, explicit = make_config(None, options)
            config, task = resolve_settings(config, explicit)
            data_sha256 = data_hash(task, *load_later(config, task))
        except SdftError as error:
            raise SdftError(f"{study.path}: {error}") from error
        name = run_name(values)
        if any(run.name == name for run in runs):
            raise SdftError(f"{study.path}: two runs are named {name!r}; let them differ in a setting, or leave one "
                            "out")
        runs.append(PlannedRun(name, values, config, explicit, data_sha256))
    trained = dict.fromkeys(("base", *(arm for run in runs for arm in run.config.arms.arms)))
    for key, arm in (("primary.arm", study.primary["arm"]), ("primary.against", study.primary["against"]),
                     *(("controls", arm) for arm in study.controls)):
        if isinstance(arm, str) and arm not in trained:
            raise SdftError(f"{study.path}: {key}: expected an arm of a run, of {', '.join(trained)}, got "
                            f"{arm!r}{nearest(arm, trained)}")
    return runs


def run_name(values: Settings) -> str:
    """A folder's name that shows how the run differs: {"mix_ratio": 0.5, "seed": 42} → "mix_ratio=0.5,seed=42"."""
    parts = (f"{name}={shown(value)}" for name, value in values.items())
    return ",".join(re.sub(r"[^\w.+=-]+", "_", part) for part in parts) or "run"


def shown(value: Any) -> str:
    """A setting's value in a few characters."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _combinations(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[Settings, Settings]]:
    """Each of [[runs]] × the product of [grid]: the values that name it (its name, or its settings), its settings."""
    entries: list[tuple[Settings, Settings]] = []
    for run in content["runs"]:
        if not isinstance(run, dict) or not isinstance(run.get("name", ""), str):
            raise SdftError(f"{path}: runs: expected tables of settings, with a text as name, got {run!r}")
        settings = dict(_leaves(path, {key: value for key, value in run.items() if key != "name"}))
        entries.append(({"run": run["name"]} if "name" in run else settings, settings))
    grid = dict(_leaves(path, content["grid"], each=True))
    names = [*dict(_leaves(path, content["settings"])), *grid, *{name for _, settings in entries for name in settings}]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SdftError(f"{path}: {twice[0]} is set twice; set it in one of [settings], [grid] and [[runs]]")
    for label, settings in entries or [({}, {})]:
        for combination in product(*grid.values()):
            point = dict(zip(grid, combination, strict=True))
            yield {**label, **point}, {**settings, **point}


def _leaves(path: Path, values: Mapping[str, Any], each: bool = False) -> Iterator[tuple[str, Any]]:
    """(setting, parsed value) of a table, with or without its sections; each: the table holds lists of values."""
    for key, value in flatten(values, path):
        name = setting_name(key, f"{path}: ")
        if each and not (isinstance(value, list) and value):
            raise SdftError(f"{path}: grid.{key}: expected a list of values, got {value!r}")
        parsed = [parse(name, item, f"{path}: ") for item in (value if each else [value])]
        if any(item in parsed[:index] for index, item in enumerate(parsed)):
            raise SdftError(f"{path}: grid.{key}: expected different values, got {value!r}")
        yield name, parsed if each else parsed[0]


def _check_keys(path: Path, part: str, values: Mapping[str, Any]) -> None:
    for key in values:
        if key not in KEYS[part]:
            where = f"{part}.{key}" if part else key
            raise SdftError(f"{path}: unknown key {where!r}{nearest(key, KEYS[part])}; expected {', '.join(KEYS[part])}"
                            + ("" if part else "; write settings of the runs under [settings]"))


def _check(study: Study) -> None:
    """Refuse mistakes that would otherwise show only when every run has finished."""
    path, primary = study.path, study.primary
    for part, values in (("primary", primary), ("predict", study.predict)):
        _check_keys(path, part, values)
        if values and (missing := [key for key in KEYS[part] if not values.get(key)]):
            raise SdftError(f"{path}: [{part}]: expected {', '.join(KEYS[part])}, but {missing[0]} is missing")
    if primary:
        against = primary["against"]
        if not isinstance(primary["column"], str) or not isinstance(primary["arm"], str):
            raise SdftError(f"{path}: [primary]: expected texts as column and arm, got {primary}")
        if isinstance(against, dict):
            primary["against"] = against = dict(_leaves(path, against))
            if not any(against.items() <= values.items() for values, _ in study.runs):
                raise SdftError(f"{path}: primary.against: expected settings of a run of the grid, got {against}")
        elif not isinstance(against, str):
            raise SdftError(f"{path}: primary.against: expected an arm, or {{setting = value}} of a run, got "
                            f"{against!r}")

    def are_texts(values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(value, str) for value in values)

    if not all(are_texts(pair) and len(pair) == 2 for pair in study.plots):
        raise SdftError(f"{path}: plots: expected pairs of columns [x, y], got {study.plots!r}")
    predict = {f"predict.{key}": texts for key, texts in study.predict.items()}
    for name, texts in {"matched": study.matched, "controls": study.controls, "reads": study.reads, **predict}.items():
        if not are_texts(texts):
            raise SdftError(f"{path}: {name}: expected a list of texts, got {texts!r}")
