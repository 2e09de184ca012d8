"""Adapters on disk, in PEFT's format: adapter_model.safetensors and adapter_config.json.

PEFT loads our adapters, and we load PEFT's plain LoRA adapters with one rank and alpha for all layers.
"""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from sdft.errors import SdftError
from sdft.files import read_json, read_tensors, save_tensors, write_json
from sdft.model.llama import Llama
from sdft.model.lora import adapt, lora_layers, match_targets, remove_lora

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "modules_to_save", "lora_bias", "layer_replication",
               "trainable_token_indices", "rank_pattern", "alpha_pattern", "target_parameters", "use_qalora")
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")     # initialisations that change W itself
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]                # layer name → A (R, D), B (O, R)


def save_adapter(model: Llama, folder: Path | str, base_name: str = "") -> None:
    """Write the model's adapter to `folder`, each file atomically; the configuration last."""
    layers = lora_layers(model)
    if not layers:
        raise SdftError("the model has no adapter to save: train one, or add it with add_lora")
    tensors = {f"{PREFIX}{name}.{factor}.weight": getattr(layer, factor)
               for name, layer in layers.items() for factor in ("lora_A", "lora_B")}
    save_tensors(Path(folder) / WEIGHTS, tensors, {"format": "pt"})
    layer = next(iter(layers.values()))
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    targets = leaves if match_targets(model, leaves) == list(layers) else list(layers)
    write_json(Path(folder) / CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_name, "r": layer.rank,
        "lora_alpha": layer.alpha, "use_rslora": layer.rslora, "lora_dropout": layer.dropout,
        "target_modules": targets, "bias": "none", "inference_mode": True})


def load_adapter(model: Llama, folder: Path | str) -> None:
    """Add the adapter in `folder` to the model; it replaces the adapter that the model has.

    An adapter that is incomplete, damaged, not supported or for another model raises SdftError; the model is unchanged.
    """
    config, factors = read_adapter(Path(folder))
    modules = dict(model.named_modules())
    for name, (A, B) in factors.items():
        base = modules.get(name)
        if name == "lm_head":
            raise SdftError(f"{folder}: the adapter changes lm_head, which is not supported; expected linear layers of "
                            "the decoder alone")
        if not isinstance(base, torch.nn.Linear):
            raise SdftError(f"{folder}: the adapter is for another model: it changes {name}, which this model lacks")
        shape, adapter_shape = tuple(base.weight.shape), (B.shape[0], A.shape[1])
        if shape != adapter_shape:
            raise SdftError(f"{folder}: the adapter is for another model: for {name} it expects a weight of "
                            f"{adapter_shape}, this model has {shape}")
    remove_lora(model)
    model.requires_grad_(False)
    for name, (A, B) in factors.items():
        layer = adapt(model, name, rank=A.shape[0], alpha=config["lora_alpha"],
                      dropout=config.get("lora_dropout") or 0.0, rslora=bool(config.get("use_rslora")))
        layer.lora_A.data.copy_(A)
        layer.lora_B.data.copy_(B)


def read_adapter(folder: Path) -> tuple[dict[str, Any], Factors]:
    """Read the configuration and factors of an adapter (SdftError if it is incomplete, damaged or not supported)."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise SdftError(f"{folder}: expected an adapter with {CONFIG} and {WEIGHTS}, found no {CONFIG}")
    config, tensors = read_json(folder / CONFIG), read_tensors(folder / WEIGHTS)
    _check_config(config, folder / CONFIG)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, factor = key.removeprefix(PREFIX).rpartition(".lora_")
        if factor not in ("A.weight", "B.weight") or tensor.dim() != 2:
            raise SdftError(f"{folder / WEIGHTS}: unexpected tensor {key}; expected lora_A and lora_B matrices alone")
        pairs.setdefault(name, {})[factor[0]] = tensor
    if not pairs:
        raise SdftError(f"{folder / WEIGHTS}: expected the lora_A and lora_B matrices of an adapter, found none")
    for name, pair in pairs.items():
        if len(pair) < 2:
            raise SdftError(f"{folder / WEIGHTS}: expected lora_A and lora_B of {name}, found lora_{min(pair)} alone")
    factors = {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}
    for name, (A, B) in factors.items():
        if not A.shape[0] == B.shape[1] == config["r"]:
            raise SdftError(f"{folder}: expected lora_A and lora_B of {name} to have rank {config['r']}, as {CONFIG} "
                            f"says, got {A.shape[0]} and {B.shape[1]}")
    return config, factors


def _check_config(config: dict[str, Any], path: Path) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise SdftError(f"{path}: expected a PEFT configuration with peft_type LORA")
    for name in UNSUPPORTED:
        if config.get(name):
            raise SdftError(f"{path}: {name} is not supported; expected a plain LoRA adapter")
    if str(config.get("init_lora_weights")).startswith(CHANGE_THE_BASE):
        raise SdftError(f"{path}: init_lora_weights = {config['init_lora_weights']!r} is not supported: it changes the "
                        "base weights too; convert the adapter to plain LoRA with peft")
    if config.get("bias", "none") != "none":
        raise SdftError(f"{path}: bias = {config['bias']!r} is not supported; expected 'none'")
    values: list[Any] = [config.get("r"), config.get("lora_alpha"), config.get("lora_dropout") or 0.0]
    rank, alpha, dropout = values
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if not numbers or rank < 1 or not 0 <= dropout < 1:
        raise SdftError(f"{path}: expected r of at least 1, a number lora_alpha and lora_dropout in [0, 1), got "
                        f"{rank!r}, {alpha!r} and {dropout!r}")
