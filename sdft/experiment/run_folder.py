"""The run folder: what a run was made with, so that going on with it never mixes two settings.

    runs/<name>/  config.toml        the resolved settings        rewrites.jsonl  distilled.jsonl
                  environment.json   versions, device, threads,   <arm>/…  eval/<arm>/<suite>.jsonl
                                     hashes of model and data
                  seconds.jsonl      how long each stage took     measures.json  summary.json  report.md  report.html
"""
from __future__ import annotations

import hashlib
import os
import platform
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.distill.resume import differences
from sdft.errors import SdftError
from sdft.experiment.context import FORMAT
from sdft.experiment.settings import Config, to_toml, to_values
from sdft.files import is_temporary, read_json, read_text, write_json, write_text
from sdft.model.io.fetch import model_hash
from sdft.train.settings import FREE
from sdft.train.state import describe

if TYPE_CHECKING:
    from sdft.tasks import Task

PACKAGES = ("torch", "sentencepiece", "safetensors", "numpy", "tqdm", "matplotlib")
SOURCES = {"model_sha256": "model", "data_sha256": "data"}


def default_folder(config: Config) -> Path:
    """runs/<task>-<model>."""
    task, data = config.task.task, config.task.data
    task = Path(data if task == "custom" and data else task).stem
    return Path("runs") / f"{task}-{Path(config.model.model).name.removesuffix('.gguf')}"


def is_new(folder: Path) -> bool:
    """Whether no run has begun in `folder` (SdftError where it holds something else).

    One that was killed inside `make_folder` left environment.json alone, or a temporary file; it has not begun.
    """
    if (folder / "config.toml").exists():
        return False
    if folder.exists() and (not folder.is_dir() or any(path.name != "environment.json" and not is_temporary(path)
                                                       for path in folder.iterdir())):
        found = "holds other files and no config.toml" if folder.is_dir() else "is a file"
        raise SdftError(f"{folder}: expected a run folder or an empty one, but it {found}; name another with --out")
    return True


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` is complete, and its measures are those of this version."""
    path = folder / "summary.json"
    return path.exists() and format_of(read_json(path)) == FORMAT


def format_of(summary: Mapping[str, Any]) -> int:
    """The FORMAT (lab.py) of the measures of a finished run; summary.json names it since the second."""
    return summary.get("format", 1)


def sources(model: Path, data: str) -> dict[str, str]:
    """What a run's results depend on beside its settings: hashes of the model and of the data (`data_hash`)."""
    return {"model_sha256": model_hash(model), "data_sha256": data}


def data_hash(task: Task) -> str:
    """SHA-256 over the records and the test items, with all that they are scored by."""
    return hashlib.sha256(repr([task.train, *(suite.items for suite in task.suites)]).encode()).hexdigest()


def free(config: Config) -> list[str]:
    """The settings, as "section.name", that say how a run goes and not what it is: they may change in mid-run."""
    fixed = describe(config.train, "", "")
    return ["model.device", "generate.generation_batch_size", *(f"train.{name}" for name in FREE if name not in fixed)]


def make_folder(folder: Path, config: Config, made_of: Mapping[str, str]) -> None:
    """Write down what the run in `folder` is made with. config.toml comes last: where it is, all of it is."""
    write_json(folder / "environment.json", environment(config) | dict(made_of))
    write_text(folder / "config.toml", to_toml(config))


def check_folder(folder: Path, config: Config, made_of: Mapping[str, str]) -> None:
    """Raise SdftError where the run in `folder` was made with other settings, another model or other data, saying which
    differ. What a folder of an older version does not tell is not compared; a newer setting was at its default."""
    path = folder / "config.toml"
    try:
        old = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise SdftError(f"{path}: malformed TOML: {error}") from error
    old |= {part: values | old.get(part, {}) for part, values in tomllib.loads(to_toml(Config())).items()}
    ignored = tuple(f"{name} " for name in free(config))
    differ = [text for text in differences(old, tomllib.loads(to_toml(config))) if not text.startswith(ignored)]
    asked = any(text.startswith("task.") for text in differ)            # for other data: that says it better
    was = read_json(folder / "environment.json")
    differ += [f"the {what}'s SHA-256 was {str(was[name])[:12]}…, is {made_of[name][:12]}…"
               for name, what in SOURCES.items()
               if was.get(name, made_of[name]) != made_of[name] and not (what == "data" and asked)]
    if differ:
        raise SdftError(f"{folder} was made with other settings: {'; '.join(differ)}. Use the old ones to go on, or "
                        "another --out to start anew")


def environment(config: Config) -> dict[str, Any]:
    """Where and by which versions a run is made."""
    import torch

    versions = {name: _version(name) for name in PACKAGES}
    return {"sdft": _version("sdft"), "python": platform.python_version(), **versions, "platform": platform.platform(),
            "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "device": config.model.device, "dtype": config.model.dtype, "model": config.model.model,
            "seeds": {name: to_values(config)[section][name] for section, name in
                      (("train", "seed"), ("task", "data_seed"), ("generate", "sampling_seed"))},
            "command": " ".join(["sdft", *sys.argv[1:]])}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
