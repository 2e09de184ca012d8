"""A short hash of a model in memory: which model, and which adapter, made a result.

It reads the configuration and about 64 numbers of every weight, so that it is fast enough for every stage. It tells
different models apart, but not copies of a model that differ in a few single weights.
"""
from __future__ import annotations

import hashlib
import json

import torch

from sdft.model.llama import Llama
from sdft.model.lora import lora_layers

SAMPLES = 64          # numbers read from every weight


@torch.no_grad()
def fingerprint(model: Llama) -> str:
    """Return 16 hex digits for configuration, dtypes and weights, including an adapter that is on."""
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
