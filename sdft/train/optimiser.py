"""AdamW on named fp32 tensors, its learning rate by step, and a step that leaves out what is not finite."""
from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sdft.train.settings import TrainSettings


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """The learning rate of step `step` (from 0) of `total`: linear over the warm-up, then half a cosine down to 0."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup                       # lr · (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (step - settings.warmup) / max(1, total - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))               # lr · ½ · (1 + cos(π · progress))


def adamw(parameters: Mapping[str, Tensor], settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with β 0.9 and 0.999, ε 1e-8; fused: one call for all."""
    return torch.optim.AdamW(list(parameters.values()), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def step_if_finite(optimiser: torch.optim.AdamW, values: Tensor) -> None:
    """Take a step where all `values` are finite, and none otherwise. The device decides: the host does not wait."""
    vars(optimiser)["found_inf"] = values.isfinite().all().logical_not().float()    # as torch.amp.GradScaler sets it
    optimiser.step()
