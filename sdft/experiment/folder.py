"""The run folder: what a run was made with, so that going on with it never mixes two settings.

    runs/<name>/  config.toml        the resolved settings        rewrites.jsonl  distilled.jsonl
                  environment.json   versions, device, threads    <arm>/…  eval/<arm>/<suite>.jsonl
                  seconds.jsonl      how long each stage took     measures.json  summary.json  report.md  report.html
"""
from __future__ import annotations

import os
import platform
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sdft.distill.resume import differences
from sdft.errors import SdftError
from sdft.experiment.config import Config, to_toml, to_values
from sdft.files import is_temporary, read_json, read_text, write_json, write_text
from sdft.train.settings import FREE

PACKAGES = ("torch", "sentencepiece", "safetensors", "numpy", "tqdm", "matplotlib")
MAY_DIFFER = ("model.device ", "generate.rows ", *(f"train.{name} " for name in FREE))    # how a run goes, not what it is


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


def make_folder(folder: Path, config: Config, model_hash: str) -> None:
    """Write down what the run in `folder` is made with. config.toml comes last: where it is, all of it is."""
    write_json(folder / "environment.json", environment(config, model_hash))
    write_text(folder / "config.toml", to_toml(config))


def check_folder(folder: Path, config: Config, model_hash: str) -> None:
    """Raise SdftError where the run in `folder` was made with other settings or another model, saying which differ."""
    path = folder / "config.toml"
    try:
        old = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise SdftError(f"{path}: malformed TOML: {error}") from error
    differ = [text for text in differences(old, tomllib.loads(to_toml(config))) if not text.startswith(MAY_DIFFER)]
    was = read_json(folder / "environment.json").get("model_sha256")
    if was != model_hash:
        differ.append(f"the model's SHA-256 was {str(was)[:12]}…, is {model_hash[:12]}…")
    if differ:
        raise SdftError(f"{folder} was made with other settings: {'; '.join(differ)}. Use the old ones to go on, or "
                        "another --out to start anew")


def environment(config: Config, model_hash: str) -> dict[str, Any]:
    """What the results may depend on beside the settings."""
    import torch

    versions = {name: _version(name) for name in PACKAGES}
    return {"sdft": _version("sdft"), "python": platform.python_version(), **versions, "platform": platform.platform(),
            "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "device": config.model.device, "dtype": config.model.dtype, "model": config.model.model,
            "model_sha256": model_hash,
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
