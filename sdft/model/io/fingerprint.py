"""Which model made a result: a short hash that tells two models, or two adapters of one model, apart.

Cheap enough to take before every stage: it reads the configuration and 64 numbers spread over every weight, so it tells
different models apart, not a model from a copy that was changed in a few single weights.
"""
from __future__ import annotations

import hashlib
import json

import torch

from sdft.model.llama import Llama
from sdft.model.lora import lora_layers

SAMPLES = 64          # numbers read of every weight


@torch.no_grad()
def fingerprint(model: Llama) -> str:
    """16 hex digits of configuration, dtypes and weights; an adapter counts unless it is off or absent."""
    adapters = lora_layers(model)
    off = tuple(f"{name}.lora_" for name, layer in adapters.items() if not layer.enabled)
    scales = {name: layer.scale for name, layer in adapters.items() if layer.enabled}
    digest = hashlib.sha256(json.dumps([model.config.to_hf(), scales], sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        if name.startswith(off):
            continue
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLES)].double().cpu()
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]
