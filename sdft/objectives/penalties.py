"""Baselines that hold the model near its base model by a penalty, on outputs (kl) or on weights (l2-sp, ewc).

    −Σ log p(target) + λ·penalty

λ is the setting penalty_weight. The base model is the same model with its adapter off, so all need method = lora.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from sdft.errors import SdftError
from sdft.kernels.divergence import kl
from sdft.model.batches import Batch
from sdft.model.lora import lora_layers, squared_shift
from sdft.objectives.fisher import saved_fisher
from sdft.objectives.hidden_states import HiddenStates, Start, cross_entropy


@dataclass(frozen=True)
class KL:
    """−Σ log p(target) + λ·Σ KL(π₀ ‖ π): at every target, the divergence from the base model over the whole vocabulary.

    Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282) on the new targets. Every step costs a forward pass
    of the base model.
    """

    strength: float

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        return cross_entropy(batch, hidden) + self.strength * kl(hidden.trained, hidden.base, hidden.head)


@dataclass(frozen=True)
class L2SP:
    """The mean of −log p(target) plus λ·Σ_layers ‖s·B·A‖_F²: L²-SP (Li et al. 2018, arXiv 1802.01483)."""

    strength: float

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        return cross_entropy(batch, hidden) + once(batch, self.strength * squared_shift(lora_layers(hidden.model)))


@dataclass(frozen=True)
class EWC:
    """The mean of −log p(target) plus (λ/2)·Σ_i F_i·Δ_i², Δ = s·B·A (Kirkpatrick et al. 2017, arXiv 1612.00796).

    F is the diagonal Fisher of the adapted weights on texts that the base model wrote (fisher.py). Half the sum is far
    below the KL of such a text (sdft/measure/weights/fisher.py), so λ must be large: 10 by default.
    """

    strength: float
    fisher: Mapping[str, Tensor]                # layer → (O, D)

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        # The backward pass recomputes each layer's Δ (O, D) instead of keeping it.
        squares = [recompute(_weighted_square, layer.lora_A, layer.lora_B, layer.scale, self.fisher[name],
                             use_reentrant=False, preserve_rng_state=False)
                   for name, layer in lora_layers(hidden.model).items()]
        return cross_entropy(batch, hidden) + once(batch, self.strength / 2 * torch.stack(squares).sum())

    @classmethod
    def prepare(cls, start: Start) -> EWC:
        if not start.inputs.base_text:
            raise SdftError("objective ewc needs texts that the base model wrote: train it as an arm, as in "
                            "`sdft run --arms=sft,ewc`")
        path = start.folder and start.folder / "fisher.safetensors"
        return cls(start.strength(10.0), saved_fisher(path, start.model, start.inputs.base_text))


def _weighted_square(A: Tensor, B: Tensor, scale: float, weights: Tensor) -> Tensor:
    return (weights * (scale * (B @ A)).square()).sum()             # (O, D) ⊙ (s · (O, R)·(R, D))²


def once(batch: Batch, penalty: Tensor) -> Tensor:
    """Scale a penalty on the weights so that it counts once per step, however the step is cut into micro-batches."""
    return batch.targets * penalty                      # the loop divides by the targets of all micro-batches
