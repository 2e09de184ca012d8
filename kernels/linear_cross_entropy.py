"""The language-model head and its cross-entropy in one."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100          # the label of a row that is no target


def linear_cross_entropy_plain(x: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """Return Σ wᵢ · −log softmax(x·Wᵀ)ᵢ[labelᵢ] over the rows whose label is not -100: an fp32 scalar.

    x (n, D), weight (V, D), labels (n,), token_weights (n,) or None for all ones.
    """
    logits = F.linear(x, weight).float()                                        # (n, D) → (n, V)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")     # (n,)
    return losses.sum() if token_weights is None else (losses * token_weights).sum()


linear_cross_entropy = linear_cross_entropy_plain
