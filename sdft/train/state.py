"""The saved state of a training run, from which training resumes bit for bit (on a GPU with `deterministic`).

`state.safetensors` holds the trained tensors, the EMA teacher's and AdamW's moments; its header holds the number of
steps done, the settings, and fingerprints of the data and the base model. Nothing else needs saving: the step *is* the
position in the data and in the random numbers. The file is replaced atomically: at any time a complete state exists.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sdft.errors import SdftError
from sdft.files import Journal, read_tensors, save_tensors, write_text
from sdft.train.settings import FREE, TrainSettings

NAME = "state.safetensors"


def describe(settings: TrainSettings, data: str, model: str) -> dict[str, str]:
    """All that must be equal before a state can be resumed: each setting, the data and the model, as JSON text."""
    free = [name for name in FREE if not (name == "micro_tokens" and settings.lora_dropout)]     # drawn by micro-batch
    fixed = {name: json.dumps(value) for name, value in asdict(settings).items() if name not in free}
    return {**fixed, "data": data, "model": model}


def save_state(folder: Path | None, step: int, about: Mapping[str, str], parameters: Mapping[str, Tensor],
               optimiser: torch.optim.AdamW, teacher: Mapping[str, Tensor]) -> None:
    """Save the state after `step` steps; `teacher` holds the tensors of the EMA teacher ({} without one)."""
    if folder is None:
        return
    tensors = {f"weight.{name}": parameter for name, parameter in parameters.items()}
    tensors |= {f"teacher.{name}": value for name, value in teacher.items()}
    tensors |= {f"{key}.{name}": value for name, parameter in parameters.items()
                for key, value in optimiser.state.get(parameter, {}).items()}
    save_tensors(folder / NAME, tensors, {**about, "step": str(step)})


@torch.no_grad()
def load_state(folder: Path | None, about: Mapping[str, str], parameters: Mapping[str, Tensor],
               optimiser: torch.optim.AdamW, teacher: Mapping[str, Tensor]) -> int:
    """Restore a saved state in place; return its step, 0 without a state (SdftError names what differs)."""
    if folder is None or not (path := folder / NAME).exists():
        return 0
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        saved = file.metadata() or {}
    differ = [f"{key} was {_short(saved.get(key))}, is {_short(value)}" for key, value in about.items()
              if saved.get(key) != value]
    if differ:
        raise SdftError(f"{path} belongs to a run with other settings: {'; '.join(differ)}. Use the old settings to "
                        "resume, or another folder to start again")
    step = int(saved["step"])
    for name, parameter in parameters.items():
        parameter.copy_(tensors[f"weight.{name}"])
        if step:
            optimiser.state[parameter] = {key: tensors[f"{key}.{name}"].to(parameter.device)
                                          for key in ("step", "exp_avg", "exp_avg_sq")}
    for name, value in teacher.items():
        value.copy_(tensors[f"teacher.{name}"])
    return step


def _short(value: str | None) -> str:
    return "absent" if value is None else value if len(value) <= 60 else value[:8] + "…"


def open_log(folder: Path | None, step: int) -> Journal:
    """The journal of steps, without those after the saved state, which run again; SdftError where a step is missing."""
    if folder is None:
        return Journal(None)
    path = folder / "log.jsonl"
    lines = Journal(path).read()
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise SdftError(f"{path}, line {number}: expected an object with the number of its step, as training "
                            "writes it; remove the line, or train again in another folder")
    kept = [line for line in lines if line["step"] <= step]
    if [line["step"] for line in kept] != list(range(1, step + 1)):
        raise SdftError(f"{path}: expected a line for each of the {step} steps in {NAME}, found {len(kept)}; bring the "
                        "log back, or train again in another folder")
    if len(kept) < len(lines):
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return Journal(path)
