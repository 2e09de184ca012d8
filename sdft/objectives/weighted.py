"""Rivals that weigh the cross-entropy, by a target's probability (dft) or by what the seed gave it (stm, flow).

    Σ w·−log p(target)

The loop still divides by all targets of the step, those of weight 0 included.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.kernels.divergence import token_nll
from sdft.kernels.linear_cross_entropy import linear_cross_entropy
from sdft.model.batches import Batch, may_share, pack_within
from sdft.objectives.hidden_states import HiddenStates, Start
from sdft.progress import progress


def dft(batch: Batch, hidden: HiddenStates) -> Tensor:
    """Σ −p̄·log p(target), p̄ the same p without a gradient (dynamic fine-tuning, arXiv 2508.05629).

    The gradient of −log p is 1/p times that of −p; the factor p̄ takes away what lets improbable targets pull hardest.
    """
    p = token_nll(hidden.trained, hidden.head, hidden.labels).neg_().exp_()                            # (n,)
    return linear_cross_entropy(hidden.trained, hidden.head, hidden.labels, p)


@dataclass(frozen=True)
class Weighted:
    """The cross-entropy with a weight for every target that was known before training."""

    weights: Mapping[str, Tensor]               # record → (its targets,)

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        weights = torch.cat([self.weights[id] for id in batch.ids]).to(hidden.labels.device)         # (n,)
        return linear_cross_entropy(hidden.trained, hidden.head, hidden.labels, weights)


def stm(start: Start) -> Weighted:
    """Selective token masking: w = 1 where p₀(target) ≥ `floor`, else 0 (arXiv 2501.14315).

    p₀ is the seed's probability; the default floor 0.4 is the paper's token perplexity of 2.5. A target below it
    teaches nothing, and is still read as context by those behind it. Raises SdftError where none is above.
    """
    most = -math.log(start.settings.stm_threshold)
    weights = {id: (nll <= most).to(nll.dtype) for id, nll in _base_nll(start).items()}
    if not any(own.any() for own in weights.values()):
        raise SdftError(f"objective stm: no target has a probability of {start.settings.stm_threshold} or more under the seed; "
                        "lower `floor`")
    return Weighted(weights)


def flow(start: Start) -> Weighted:
    """w = exp(−ℓ₀/τ), the same for all targets of a record: the seed's easy records count most (arXiv 2502.02797).

    ℓ₀ is the record's mean NLL per target under the seed, τ the median of ℓ₀ over the records that are trained on.
    """
    nll = _base_nll(start)
    losses = torch.stack([own.mean() for own in nll.values()])                                      # (records,)
    weights = (-losses / losses.quantile(0.5)).exp()
    return Weighted({id: weight.expand(len(own)) for (id, own), weight in zip(nll.items(), weights, strict=True)})


@torch.no_grad()
def _base_nll(start: Start) -> dict[str, Tensor]:
    """Every target's NLL under the seed in nats: record → (its targets,), on the CPU."""
    model, found = start.model, {}
    packs = pack_within(start.examples, start.settings.micro_tokens, may_share(model.device))
    for batch in progress(packs, desc=f"{start.settings.objective}, seed", unit="pack"):
        hidden = HiddenStates(model, batch.to(model.device))
        nll = token_nll(hidden.trained, hidden.head, hidden.labels).cpu()                              # (n,)
        found.update(zip(batch.ids, nll.split(batch.counts), strict=True))
    return found
