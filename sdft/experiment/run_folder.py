"""The run folder: what a run was made with, so that a resumed run never mixes two settings.

    runs/<name>/  config.toml        the resolved settings        rewrites.jsonl  distilled.jsonl
                  environment.json   versions, device, threads,   <arm>/…  eval/<arm>/<suite>.jsonl
                                     hashes of model and data
                  seconds.jsonl      duration of each stage       measures.json  summary.json  report.md  report.html
"""
from __future__ import annotations

import hashlib
import os
import platform
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdft.distill.resume import differences
from sdft.errors import SdftError
from sdft.experiment.settings import Config, to_toml, to_values
from sdft.files import is_temporary, read_json, read_toml, write_json, write_text
from sdft.model.io.fetch import model_hash
from sdft.results import FORMAT
from sdft.tasks import Task
from sdft.train.settings import FREE
from sdft.train.state import describe

PACKAGES = ("torch", "sentencepiece", "safetensors", "numpy", "tqdm", "matplotlib")
SOURCES = {"model_sha256": "model", "data_sha256": "data"}


def default_folder(config: Config) -> Path:
    """runs/<task>-<model>."""
    task, data = config.task.task, config.task.data
    task = Path(data if task == "custom" and data else task).stem
    return Path("runs") / f"{task}-{Path(config.model.model).name.removesuffix('.gguf')}"


def is_new(folder: Path) -> bool:
    """Whether no run has begun in `folder` (SdftError where it holds something else). A process that was killed inside
    `make_folder` leaves environment.json alone, or a temporary file."""
    if (folder / "config.toml").exists():
        return False
    if folder.exists() and (not folder.is_dir() or any(path.name != "environment.json" and not is_temporary(path)
                                                       for path in folder.iterdir())):
        content = "holds other files and no config.toml" if folder.is_dir() else "is a file"
        raise SdftError(f"{folder}: expected a run folder or an empty one, but it {content}; name another with --out")
    return True


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` is complete."""
    return (folder / "summary.json").exists()


def hashes(model: Path, data: str) -> dict[str, str]:
    """The hashes of the model and of the data (`data_hash`), on which a run's results depend besides its settings."""
    return {"model_sha256": model_hash(model), "data_sha256": data}


def data_hash(*tasks: Task) -> str:
    """SHA-256 over the records and the test items of a run's tasks, with everything that scores them."""
    parts = [part for task in tasks for part in (task.train, *(suite.items for suite in task.suites))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def free(config: Config) -> list[str]:
    """The settings, as "section.name", that do not change a run's results: they may differ when it is resumed."""
    fixed = describe(config.train, "", "")
    return ["model.device", "generate.generation_batch_size",
            *(f"train.{name}" for name in FREE if name not in fixed)]


def make_folder(folder: Path, config: Config, made_of: Mapping[str, str]) -> None:
    """Write environment.json and then config.toml: where config.toml exists, the folder is complete."""
    write_json(folder / "environment.json", {"format": FORMAT, **environment(config), **made_of})
    write_text(folder / "config.toml", to_toml(config))


def check_folder(folder: Path, config: Config, made_of: Mapping[str, str]) -> None:
    """Raise SdftError where the run in `folder` has another format, other settings, another model or other data."""
    was = read_json(folder / "environment.json")
    if was.get("format") != FORMAT:
        raise SdftError(f"{folder}: expected a run folder of format {FORMAT}, got one of format {was.get('format', 1)} "
                        "by another version of sdft; name another folder with --out")
    old = read_toml(folder / "config.toml")
    defaults = tomllib.loads(to_toml(Config()))             # of a setting that is newer than the folder
    old |= {section: values | old.get(section, {}) for section, values in defaults.items()}
    ignored = tuple(f"{name} " for name in free(config))
    differ = [text for text in differences(old, tomllib.loads(to_toml(config))) if not text.startswith(ignored)]
    other_task = any(text.startswith("task.") for text in differ)       # explains other data better than their hash
    differ += [f"the {what}'s SHA-256 was {str(was[name])[:12]}…, is {made_of[name][:12]}…"
               for name, what in SOURCES.items()
               if was.get(name, made_of[name]) != made_of[name] and not (what == "data" and other_task)]
    if differ:
        raise SdftError(f"{folder} was made with other settings: {'; '.join(differ)}. Use the old ones to resume, or "
                        "name another folder with --out")


def environment(config: Config) -> dict[str, Any]:
    """The machine, the versions and the seeds of a run."""
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
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
