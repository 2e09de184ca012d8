"""Baselines that weight the cross-entropy, by a target's probability now (dft) or under the base model (stm, flow).

    Σ w·−log p(target)

The loop divides by all targets of the step, also those of weight 0.
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

    The gradient of −log p is 1/p times that of −p; the factor p̄ cancels 1/p, which weights improbable targets most.
    """
    p = token_nll(hidden.trained, hidden.head, hidden.labels).neg_().exp_()                            # (n,)
    return linear_cross_entropy(hidden.trained, hidden.head, hidden.labels, p)


@dataclass(frozen=True)
class Weighted:
    """Cross-entropy with a weight for every target, fixed before training."""

    weights: Mapping[str, Tensor]               # record → (its targets,)

    def __call__(self, batch: Batch, hidden: HiddenStates) -> Tensor:
        weights = torch.cat([self.weights[id] for id in batch.ids]).to(hidden.labels.device)         # (n,)
        return linear_cross_entropy(hidden.trained, hidden.head, hidden.labels, weights)


def stm(start: Start) -> Weighted:
    """Selective token masking: w = 1 where p₀(target) ≥ stm_threshold, else 0 (arXiv 2501.14315).

    p₀ is the base model's probability; the default 0.4 is the paper's token perplexity of 2.5. Raises SdftError where
    every target is masked.
    """
    most = -math.log(start.settings.stm_threshold)
    weights = {id: (nll <= most).to(nll.dtype) for id, nll in _base_nll(start).items()}
    if not any(mask.any() for mask in weights.values()):
        raise SdftError("objective stm: no target has a probability of at least stm_threshold = "
                        f"{start.settings.stm_threshold} under the base model; lower stm_threshold")
    return Weighted(weights)


def flow(start: Start) -> Weighted:
    """w = exp(−ℓ₀/τ), equal for all targets of a record: records easy for the base model count most (arXiv 2502.02797).

    ℓ₀ is the record's mean NLL per target under the base model, τ the median of ℓ₀ over the training records.
    """
    nll = _base_nll(start)
    losses = torch.stack([each.mean() for each in nll.values()])                                     # (records,)
    weights = (-losses / losses.quantile(0.5)).exp()
    return Weighted({id: weight.expand(len(each)) for (id, each), weight in zip(nll.items(), weights, strict=True)})


@torch.no_grad()
def _base_nll(start: Start) -> dict[str, Tensor]:
    """The NLL of every target under the base model in nats: record → (its targets,), on the CPU."""
    model, by_record = start.model, dict[str, Tensor]()
    batches = pack_within(start.examples, start.settings.micro_tokens, may_share(model.device))
    for batch in progress(batches, desc=f"{start.settings.objective}, base model", unit="micro-batch"):
        hidden = HiddenStates(model, batch.to(model.device))
        nll = token_nll(hidden.trained, hidden.head, hidden.labels).cpu()                              # (n,)
        by_record.update(zip(batch.ids, nll.split(batch.counts), strict=True))
    return by_record
