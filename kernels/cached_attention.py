"""Attention of new tokens to a static, ragged, right-padded cache of keys and values. Inference only: no backward.

    slot →        0 1 2 3 4 5 6 7 ← T slots          A token's slot is its position. The newest token of sequence 0 has
    sequence 0    ■ ■ ■ ■ ■ ■ · ·                    position 5 and sees slots 0…5; that of sequence 1 has position 3.
    sequence 1    ■ ■ ■ ■ · · · ·                    Later slots are stale or zero, and masked.

A sequence may have several new tokens (t > 1, when drafts are verified). They have consecutive positions, and each sees
one slot more than the one before. The G = H/K query heads that share a key/value head (Ainslie et al. 2023, arXiv
2305.13245) become t·G queries of one head, so K and V are read once and never repeated: reading them takes most of the
time of a step. `scaled_dot_product_attention` reads part of a longer cache in place, whereas matrix products on the
CPU would copy it first.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LONG = 512             # new tokens from which is_causal is faster than a mask, measured on two CPU cores in bf16


def cached_attention_plain(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Attend with q (B, t, H, C) at positions (B, t) over keys and values (B, K, T, C); returns q's shape.

    The token at position p sees slots 0…p of its own sequence. Query head h reads key/value head h // (H/K).
    """
    group = q.shape[2] // keys.shape[1]
    o = torch.empty_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = int(positions[b, t]) + 1
            k, v = (x[b, :, :seen].repeat_interleave(group, 0) for x in (keys, values))                # (H, seen, C)
            scores = q[b, t].unsqueeze(1) @ k.transpose(1, 2) * q.shape[-1] ** -0.5                    # (H, 1, seen)
            o[b, t] = (scores.softmax(-1) @ v).squeeze(1)                                              # (H, C)
    return o


def cache_bias(positions: Tensor, slots: int, group: int, dtype: torch.dtype) -> Tensor:
    """Return the bias of `cached_attention`'s scores, (B, 1, t·G, T): 0 where a slot is seen, else −∞.

    positions (B, t); T = slots; G = group, the query heads per key/value head. Every layer uses the same bias.
    """
    B, t = positions.shape
    masked = torch.arange(slots, device=positions.device) > positions.unsqueeze(-1)                     # (B, t, T)
    bias = torch.zeros(B, t, slots, dtype=dtype, device=positions.device).masked_fill_(masked, float("-inf"))
    return bias.repeat_interleave(group, 1).unsqueeze(1)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """Compute `cached_attention_plain` of all sequences at once: q (B, t, H, C), keys and values (B, K, T, C).

    `bias` comes from `cache_bias` for the same T slots.
    """
    heads = (keys.shape[1], q.shape[2] // keys.shape[1])                                                # K, G
    queries = q.unflatten(2, heads).transpose(1, 2).flatten(2, 3)                                       # (B, K, t·G, C)
    o = F.scaled_dot_product_attention(queries, keys, values, bias.expand(*queries.shape[:2], -1, -1))
    return o.unflatten(2, (-1, heads[1])).transpose(1, 2).reshape(q.shape)                              # (B, t, H, C)


def prompt_bias(t: int, T: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Return the bias of `prompt_attention`'s scores, (t, T): 0 where a slot is seen, else −∞. None: use is_causal.

    is_causal needs as many queries as keys, so `prompt_attention` adds T − t unused queries. This computes half of T·T
    scores instead of t·T, which is less where more than half of the tokens are new.
    """
    if t == T or (t >= LONG and 2 * t > T):
        return None
    return torch.full((t, T), float("-inf"), dtype=dtype, device=device).triu_(1 + T - t)


def prompt_attention(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attend with the last t tokens q (n, t, H, C) of n prompts over keys and values (n, K, T, C); returns q's shape.

    Token i sees slots 0…T − t + i; `bias` is `prompt_bias(t, T, …)`. On a GPU, K and V are repeated for every query
    head, since the memory-efficient kernel takes no grouped queries.
    """
    H, K = q.shape[2], keys.shape[1]
    if q.is_cuda:
        keys, values = (x.repeat_interleave(H // K, 1) for x in (keys, values))                     # (n, H, T, C)
    unused = 0 if bias is not None else keys.shape[2] - q.shape[1]
    q = F.pad(q, (0, 0, 0, 0, unused, 0)) if unused else q                                          # (n, T or t, H, C)
    o = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, bias, is_causal=bias is None,
                                       enable_gqa=keys.shape[1] != H)                               # (n, H, T or t, C)
    return o.transpose(1, 2)[:, unused:]
