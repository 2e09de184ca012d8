"""Rivals that hold the model near its seed by a penalty: on the outputs (kl), or on the weights (l2-sp, ewc).

    −Σ log p(target) + λ·penalty

λ is the setting `strength`. The seed is the same model with its adapter off, so all of them need method = lora.
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
    """−Σ log p(target) + λ·Σ KL(π₀ ‖ π): at every target, over the whole vocabulary, the divergence from the seed.

    Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282) on the new targets. λ = 0.5 by default, which arXiv
    2509.03934 uses on prompt tokens. Costs a forward pass of the seed at every step.
    """

    strength: float

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        return cross_entropy(batch, hidden) + self.strength * kl(hidden.trained, hidden.base, hidden.head)

    @classmethod
    def prepare(cls, start: Start) -> KL:
        return cls(start.strength(0.5))


@dataclass(frozen=True)
class L2SP:
    """−Σ log p(target), and to its mean λ·Σ_layers ‖s·B·A‖_F²: L²-SP (Li et al. 2018, arXiv 1802.01483).

    The squared distance from the seed's weights, by Gram matrices. λ = 1 by default: 1 nat where ‖ΔW‖ is 1. On twelve
    passages (SmolLM2-135M, six steps of four records, lr 2e-3) λ = 0, 0.1, 1, 10 left ‖ΔW‖ at 2.41, 1.78, 0.86, 0.35 and
    the KL on general answers at 0.0133, 0.0126, 0.0078, 0.0013.
    """

    strength: float

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        return cross_entropy(batch, hidden) + once(batch, self.strength * squared_shift(lora_layers(hidden.model)))

    @classmethod
    def prepare(cls, start: Start) -> L2SP:
        return cls(start.strength(1.0))


@dataclass(frozen=True)
class EWC:
    """−Σ log p(target), and to its mean (λ/2)·Σ_i F_i·Δ_i² with Δ = s·B·A (Kirkpatrick et al. 2017, arXiv 1612.00796).

    F is the diagonal Fisher of the adapted weights on texts that the seed wrote (`sdft.objectives.fisher`). Half the sum is 10
    to 30 times below the KL of such a text (`sdft.measure.weights.fisher`), so λ must be large: 10 by default. On the
    passages of L2SP λ = 0, 1, 10, 100 left the KL on general answers at 0.0133, 0.0129, 0.0098, 0.0024, and ‖ΔW‖ at 2.41,
    2.41, 2.35, 2.10.
    """

    strength: float
    fisher: Mapping[str, Tensor]                # layer → (O, D)

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        # A layer's Δ (O, D) is made again in the backward pass, not kept.
        squares = [recompute(_weighted_square, layer.lora_A, layer.lora_B, layer.scale, self.fisher[name],
                             use_reentrant=False, preserve_rng_state=False)
                   for name, layer in lora_layers(hidden.model).items()]
        return cross_entropy(batch, hidden) + once(batch, self.strength / 2 * torch.stack(squares).sum())

    @classmethod
    def prepare(cls, start: Start) -> EWC:
        if not start.inputs.base_text:
            raise SdftError("objective ewc needs texts that the seed wrote: have them made by an arm, as in "
                            "`sdft run --arms=sft,ewc`")
        path = start.folder and start.folder / "fisher.safetensors"
        return cls(start.strength(10.0), saved_fisher(path, start.model, start.inputs.base_text))


def _weighted_square(A: Tensor, B: Tensor, scale: float, weights: Tensor) -> Tensor:
    """Σ weights ⊙ (s·B·A)², with A (R, D), B (O, R) and weights (O, D)."""
    return (weights * (scale * (B @ A)).square()).sum()


def once(batch: Batch, penalty: Tensor) -> Tensor:
    """A penalty on the weights, so weighed that it counts once a step however the step is cut into packs.

    The loop divides the sum over the packs by the targets of them all; so each gives the penalty once for every target.
    """
    return batch.targets * penalty
