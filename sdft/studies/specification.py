"""A study: one question, the runs that answer it (its cells), and the end point, named before the first of them starts.

    name = "mix-ratio"
    question = "What does the share of rewritten targets change?"
    plots = [["target_nll", "kl"]]       # columns of cells.json, x and y: drawn and correlated over the cells
    matched = ["shift"]                  # columns: the end point is also compared with arms that are equal in these

    [primary]
    column = "kl"                        # the end point: a column of cells.json, as in summary.json's table
    arm = "sdft"
    against = "sft"                      # an arm of the same cell; or {ratio = 0}: this arm in the cell that has it

    [settings]                           # of every cell: any setting of `sdft run`
    train_records = 128

    [grid]                               # a cell for every combination; over `seed` a comparison is repeated
    ratio = [0, 0.5, 1]
    seed = [42, 43, 44]

    [[cells]]                            # where cells are unequal: each of these × the grid
    name = "sums"                        # stands for these settings in names and figures
    task = "gsm8k"

A study that runs nothing names others in `reads` and has a part [predict] in place of the rest: see predictors.py.

    sdft sweep STUDY.toml
"""
from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from sdft.errors import SdftError, nearest
from sdft.experiment.run_folder import data_hash
from sdft.experiment.settings import (
    SECTION_OF,
    SECTIONS,
    Config,
    load_chosen,
    make_config,
    parse,
    with_machine,
    with_task,
)
from sdft.files import read_text

SEED = "seed"                               # the setting that repeats a comparison and is none of its conditions
KEYS = {"": ("name", "question", "plots", "matched", "primary", "settings", "grid", "cells", "reads", "predict"),
        "primary": ("column", "arm", "against"), "predict": ("measures", "outcomes")}
Values = dict[str, Any]                     # setting → value


@dataclass(frozen=True)
class Study:
    """What a study file says. cells: what tells each from the others, and the settings that are its own."""

    path: Path
    name: str
    question: str
    primary: dict[str, Any]
    plots: list[list[str]]
    matched: list[str]
    settings: Values
    cells: list[tuple[Values, Values]]
    reads: list[str]
    predict: dict[str, list[str]]


@dataclass(frozen=True)
class Cell:
    """One run of a study: its name, what tells it from the others, its settings resolved, the names of those given, the
    hash of its data."""

    name: str
    values: Values
    config: Config
    given: frozenset[str]
    data: str


def read_study(path: Path) -> Study:
    """Read a study file (SdftError with the key where something is missing, unknown or of another type)."""
    path = Path(path)
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise SdftError(f"{path}: malformed TOML: {error}") from error
    _known(path, "", content)
    for key, kind in (("name", str), ("question", str), ("plots", list), ("matched", list), ("primary", dict),
                      ("settings", dict), ("grid", dict), ("cells", list), ("reads", list), ("predict", dict)):
        if not isinstance(content.get(key, kind()), kind):
            raise SdftError(f"{path}: {key}: expected a {_WORDS[kind]}, got {content[key]!r}")
    for key in ("name", "question", *(("predict",) if content.get("reads") else ("primary",))):
        if not content.get(key):
            raise SdftError(f"{path}: expected {key!r}, which says {_MEANING[key]}; it is missing")
    cells = [] if content.get("reads") else list(_cells(path, content))
    study = Study(path, content["name"], content["question"], content.get("primary", {}), content.get("plots", []),
                  content.get("matched", []), dict(_leaves(path, content.get("settings", {}))), cells,
                  content.get("reads", []), content.get("predict", {}))
    _check(study)
    return study


def cells_of(study: Study, data: str | None = None) -> list[Cell]:
    """The cells with their settings resolved; data: folder of the tasks' files, for every cell that reads some.

    Raises SdftError for settings that no run takes, for a task without its files, and for two cells of one name.
    """
    cells: list[Cell] = []
    for values, own in study.cells:
        options = {**study.settings, **own}
        if data and "data" not in options and options.get("task", "passages") != "passages":
            options["data"] = data
        try:
            config, given = make_config(None, options)
            task = load_chosen(config.task)
        except SdftError as error:
            raise SdftError(f"{study.path}: {error}") from error
        name = cell_name(values)
        if any(cell.name == name for cell in cells):
            raise SdftError(f"{study.path}: two cells are named {name!r}; let them differ in a setting, or leave one "
                            "out")
        cells.append(Cell(name, values, with_machine(with_task(config, given, **task.decides)), given, data_hash(task)))
    _check_arms(study, cells)
    return cells


def _check_arms(study: Study, cells: Sequence[Cell]) -> None:
    """Refuse an end point of arms that no cell trains (SdftError)."""
    trained = dict.fromkeys(("base", *(arm for cell in cells for arm in cell.config.arms.arms)))
    for key in ("arm", "against"):
        if isinstance(arm := study.primary[key], str) and arm not in trained:
            raise SdftError(f"{study.path}: primary.{key}: expected an arm that a cell has, of {', '.join(trained)}, got "
                            f"{arm!r}{nearest(arm, trained)}")


def cell_name(values: Values) -> str:
    """A folder's name that shows what the cell is: {"ratio": 0.5, "seed": 42} → "ratio=0.5,seed=42"."""
    parts = (f"{name}={shown(value)}" for name, value in values.items())
    return ",".join(re.sub(r"[^\w.+=-]+", "_", part) for part in parts) or "cell"


def shown(value: Any) -> str:
    """A setting's value in a few characters."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _cells(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[Values, Values]]:
    """Each of [[cells]] × the product of [grid]: what it is called by, and its settings."""
    grid = dict(_leaves(path, content.get("grid", {}), each=True))
    entries = [({}, {})]
    if content.get("cells"):
        entries = [_entry(path, cell) for cell in content["cells"]]
    settings = dict(_leaves(path, content.get("settings", {})))
    named = [*settings, *grid, *{name for _, own in entries for name in own}]
    if twice := [name for name in named if named.count(name) > 1]:
        raise SdftError(f"{path}: {twice[0]} is set twice; it stands in one of [settings], [grid] and [[cells]]")
    for label, own in entries:
        for combination in product(*grid.values()):
            point = dict(zip(grid, combination, strict=True))
            yield {**label, **point}, {**own, **point}


def _entry(path: Path, cell: Any) -> tuple[Values, Values]:
    """One of [[cells]]: shown by its name where it has one, else by its settings."""
    if not isinstance(cell, dict) or not isinstance(cell.get("name", ""), str):
        raise SdftError(f"{path}: cells: expected tables of settings, with a text as name, got {cell!r}")
    own = dict(_leaves(path, {key: value for key, value in cell.items() if key != "name"}))
    return ({"cell": cell["name"]} if "name" in cell else own), own


def _leaves(path: Path, values: Any, each: bool = False) -> Iterator[tuple[str, Any]]:
    """(setting, parsed value) of a table whose keys may stand under their sections; `each`: lists of values."""
    if not isinstance(values, dict):
        raise SdftError(f"{path}: expected a table of settings, got {values!r}")
    for key, value in values.items():
        if key in SECTIONS and isinstance(value, dict):
            yield from _leaves(path, {f"{key}.{name}": inner for name, inner in value.items()}, each)
            continue
        name = key.rpartition(".")[2]
        if name not in SECTION_OF or key not in (name, f"{SECTION_OF[name]}.{name}"):
            raise SdftError(f"{path}: unknown setting {key!r}{nearest(key, SECTION_OF)}; `sdft run --help` lists them "
                            "all")
        if each and not (isinstance(value, list) and value):
            raise SdftError(f"{path}: grid.{key}: expected a list of values, got {value!r}")
        found = [parse(SECTION_OF[name], name, item, f"{path}: ") for item in (value if each else [value])]
        if any(item in found[:index] for index, item in enumerate(found)):
            raise SdftError(f"{path}: grid.{key}: expected different values, got {value!r}")
        yield name, found if each else found[0]


def _known(path: Path, part: str, values: Mapping[str, Any]) -> None:
    for key in values:
        if key not in KEYS[part]:
            where = f"{part}.{key}" if part else key
            raise SdftError(f"{path}: unknown key {where!r}{nearest(key, KEYS[part])}; expected {', '.join(KEYS[part])}"
                            + ("" if part else "; settings of the runs stand in [settings]"))


def _check(study: Study) -> None:
    """Refuse what would only show when everything has run."""
    path, primary = study.path, study.primary
    _known(path, "primary", primary)
    _known(path, "predict", study.predict)
    for part, values in (("primary", primary), ("predict", study.predict)):
        if values and (missing := [key for key in KEYS[part] if not values.get(key)]):
            raise SdftError(f"{path}: [{part}]: expected {', '.join(KEYS[part])}, but {missing[0]} is missing")
    if primary:
        if not all(isinstance(primary[key], str) for key in ("column", "arm")):
            raise SdftError(f"{path}: [primary]: expected texts as column and arm, got {primary}")
        against = primary["against"]
        if not isinstance(against, (str, dict)):
            raise SdftError(f"{path}: primary.against: expected an arm, or {{setting = value}} of a cell, got "
                            f"{against!r}")
        if isinstance(against, dict):
            primary["against"] = against = dict(_leaves(path, against))
            if not any(against.items() <= values.items() for values, _ in study.cells):
                raise SdftError(f"{path}: primary.against: expected settings of a cell of the grid, got {against}")
    if not all(_texts(pair) and len(pair) == 2 for pair in study.plots):
        raise SdftError(f"{path}: plots: expected pairs of columns [x, y], got {study.plots!r}")
    for name, values in (("matched", study.matched), ("reads", study.reads),
                         *((f"predict.{key}", values) for key, values in study.predict.items())):
        if not _texts(values):
            raise SdftError(f"{path}: {name}: expected a list of texts, got {values!r}")


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


_WORDS = {str: "text", list: "list", dict: "table"}
_MEANING = {"name": "what the study is called", "question": "what it asks",
            "primary": "by which column, and between what, the question is answered",
            "predict": "which measures predict which outcomes"}
