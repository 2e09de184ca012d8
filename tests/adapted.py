"""A model with an adapter whose B is not zero, as after training."""
from __future__ import annotations

import torch
from tiny import tiny_llama

from sdft.model.llama import Llama
from sdft.model.lora import add_lora, lora_layers


def adapted(model: Llama | None = None, size: float = 0.1, seed: int = 1, **settings) -> Llama:
    """Add to `model` (default: a tiny one) an adapter of rank 4 with random B, normal with σ = `size`, from `seed`."""
    model = tiny_llama() if model is None else model
    add_lora(model, **{"rank": 4, **settings})
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator) * size
    return model
