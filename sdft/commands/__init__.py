"""The commands, a module for one or two of them; they may import every room above and have no logic of their own.

Each command is a function that adds its arguments to a parser and returns the function that executes it. Options are
made from the dataclasses of sdft/experiment/settings.py: every field is an option under its name and under its section
and name (--lr, --train.lr). Modules that need torch are imported when a command is executed, so that help is instant.
Start reading at run.py; sdft/cli.py dispatches.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sdft.errors import SdftError, nearest
from sdft.experiment.settings import QUICK, SECTIONS, Config, kind_of, load_chosen, make_config

if TYPE_CHECKING:
    from sdft.data.records import Record
    from sdft.model.llama import Llama
    from sdft.tasks import Suite, Task
    from sdft.tokenizers.tokenizer import Tokenizer

Execute = Callable[[argparse.Namespace], None]
METAVARS = {int: "N", float: "X", bool: "true|false", str: "TEXT", tuple: "A,B,…", dict: "OURS=THEIRS,…"}


def add_settings(parser: argparse.ArgumentParser, sections: Mapping[str, tuple[str, ...]]) -> None:
    """Add the settings of `sections` as options: section → names of its fields, () for all of them."""
    for section, names in sections.items():
        group = parser.add_argument_group(f"[{section}]")
        for setting in fields(SECTIONS[section]):
            if names and setting.name not in names:
                continue
            kind, default = kind_of(setting.name), cast(Any, setting.default)
            shown = ",".join(default) if kind is tuple else str(default).lower() if kind is bool else default
            text = setting.metadata["help"] + ("" if default is None else f" (default: {shown})")
            special: dict[type, dict[str, Any]] = {bool: {"nargs": "?", "const": "true"}, tuple: {"action": "append"}}
            group.add_argument(f"--{setting.name}", f"--{section}.{setting.name}", dest=f"{section}.{setting.name}",
                               metavar=METAVARS[kind], default=argparse.SUPPRESS, help=text.replace("%", "%%"),
                               **special.get(kind, {}))


def add_quick(parser: argparse.ArgumentParser) -> None:
    """Add the option --quick."""
    parser.add_argument("--quick", action="store_true", help="Use fewer records and items; the built-in run then takes "
                        f"some 5 minutes: {', '.join(f'{name} = {value}' for name, value in QUICK.items())}. "
                        "CONFIG.toml and options override these; a number of records replaces max_records.")


def settings(options: argparse.Namespace, path: str | None = None) -> tuple[Config, frozenset[str]]:
    """The settings of the TOML file `path`, overridden by the parsed options; and the names of those that were set.
    What neither gives is that of a quick run where --quick is an option and was given."""
    given = {key: ",".join(value) if isinstance(value, list) else value         # a list: names, given one by one
             for key, value in vars(options).items() if "." in key}
    return make_config(Path(path) if path else None, given, getattr(options, "quick", False))


def load_with_adapter(config: Config, adapter: str | None) -> tuple[Llama, Tokenizer]:
    """Load the model of the settings, and the adapter of a folder onto it where one is named."""
    import sdft.model
    from sdft.model.io.adapters import load_adapter

    model, tokenizer = sdft.model.load(config.model.model, config.model.dtype, config.model.device)
    if adapter:
        load_adapter(model, Path(adapter))
    return model, tokenizer


def task_of(config: Config) -> Task:
    """Load the task of the settings; a file of records is the task `custom`."""
    data = config.task.data
    return load_chosen(config.task, "custom" if data and Path(data).is_file() else None)


def records_of(config: Config) -> list[Record]:
    """The records of --data (a file), or those that the task trains on."""
    from sdft.data.records import read_records

    data = config.task.data
    if data and (Path(data).is_file() or Path(data).suffix in (".json", ".jsonl", ".csv", ".gz")):
        return read_records(data, config.task.columns, config.task.max_records)
    return task_of(config).train


def suites_of(config: Config, names: Iterable[str]) -> list[Suite]:
    """The suites `general`, `elaborate`, `instructions`, or of the task, by name (SdftError where none has a name)."""
    from sdft.tasks import elaborate_suite, general_suite, instruction_suite

    known = {suite.name: suite for suite in (general_suite(), elaborate_suite(), instruction_suite())}
    names = list(dict.fromkeys(names))
    if not set(names) <= known.keys():
        known |= {suite.name: suite for suite in task_of(config).suites}
    for name in names:
        if name not in known:
            raise SdftError(f"--suite: expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return [known[name] for name in names]


def existing(path: str, what: str) -> Path:
    """`path` as a Path (SdftError where it does not exist)."""
    if not Path(path).exists():
        raise SdftError(f"{path}: expected {what}, found nothing there")
    return Path(path)
