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
from sdft.kernels.linear_cross_entropy import linear_cross_entropy
from sdft.progress import progress
from sdft.train.batches import Batch, may_share, pack_within
from sdft.train.divergence import token_nll
from sdft.train.objectives.views import Start, Views


def dft(batch: Batch, views: Views) -> Tensor:
    """Σ −p̄·log p(target), p̄ the same p without a gradient (dynamic fine-tuning, arXiv 2508.05629).

    The gradient of −log p is 1/p times that of −p; the factor p̄ takes away what lets improbable targets pull hardest.
    """
    p = token_nll(views.trained, views.head, views.labels).neg_().exp_()                            # (n,)
    return linear_cross_entropy(views.trained, views.head, views.labels, p)


@dataclass(frozen=True)
class Weighted:
    """The cross-entropy with a weight for every target that was known before training."""

    weights: Mapping[str, Tensor]               # record → (its targets,)

    def __call__(self, batch: Batch, views: Views) -> Tensor:
        weights = torch.cat([self.weights[id] for id in batch.ids]).to(views.labels.device)         # (n,)
        return linear_cross_entropy(views.trained, views.head, views.labels, weights)


def stm(start: Start) -> Weighted:
    """Selective token masking: w = 1 where p₀(target) ≥ `floor`, else 0 (arXiv 2501.14315).

    p₀ is the seed's probability; the default floor 0.4 is the paper's token perplexity of 2.5. A target below it
    teaches nothing, and is still read as context by those behind it. Raises SdftError where none is above.
    """
    most = -math.log(start.settings.floor)
    weights = {id: (nll <= most).to(nll.dtype) for id, nll in _seed_nll(start).items()}
    if not any(own.any() for own in weights.values()):
        raise SdftError(f"objective stm: no target has a probability of {start.settings.floor} or more under the seed; "
                        "lower `floor`")
    return Weighted(weights)


def flow(start: Start) -> Weighted:
    """w = exp(−ℓ₀/τ), the same for all targets of a record: the seed's easy records count most (arXiv 2502.02797).

    ℓ₀ is the record's mean NLL per target under the seed, τ the median of ℓ₀ over the records that are trained on.
    """
    nll = _seed_nll(start)
    losses = torch.stack([own.mean() for own in nll.values()])                                      # (records,)
    weights = (-losses / losses.quantile(0.5)).exp()
    return Weighted({id: weight.expand(len(own)) for (id, own), weight in zip(nll.items(), weights, strict=True)})


@torch.no_grad()
def _seed_nll(start: Start) -> dict[str, Tensor]:
    """Every target's NLL under the seed in nats: record → (its targets,), on the CPU."""
    model, found = start.model, {}
    packs = pack_within(start.examples, start.settings.micro_tokens, may_share(model.device))
    for batch in progress(packs, desc=f"{start.settings.objective}, seed", unit="pack"):
        views = Views(model, batch.to(model.device))
        nll = token_nll(views.trained, views.head, views.labels).cpu()                              # (n,)
        found.update(zip(batch.ids, nll.split(batch.counts), strict=True))
    return found
