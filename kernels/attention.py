"""Causal attention over packed documents: each token sees the earlier tokens of its own document."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def causal_attention_plain(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attend with q (N, H, C) over k, v (N, K, C), N = Σ lengths packed tokens; returns (N, H, C).

    Query head h reads key/value head h // (H/K); scores are scaled by 1/√C.
    """
    outputs = []
    group = q.shape[1] // k.shape[1]
    for q_doc, k_doc, v_doc in zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True):
        length, _, width = q_doc.shape
        q_HTC = q_doc.transpose(0, 1)                                           # (T, H, C) → (H, T, C)
        k_HTC, v_HTC = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k_doc, v_doc))
        scores = q_HTC @ k_HTC.transpose(1, 2) * width**-0.5                    # (H, T, T)
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
        outputs.append((weights @ v_HTC).transpose(0, 1))                       # (H, T, C) → (T, H, C)
    return torch.cat(outputs)


causal_attention = causal_attention_plain


class DocumentAttention:
    """An `attend` for packed documents: called as (layer, q, k, v), it ignores the layer."""

    def __init__(self, lengths: Sequence[int]):
        self.lengths = list(lengths)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, self.lengths)
