"""Attention of newly written tokens over a static, ragged, right-padded cache of keys and values.

    slot →        0 1 2 3 4 5 6 7 ← T slots          A token's slot is its position. Row 0 stands at position 5
    row 0         ■ ■ ■ ■ ■ ■ · ·                    and sees slots 0…5; row 1 stands at 3. What lies behind a
    row 1         ■ ■ ■ ■ · · · ·                    row's position is stale or zero, and masked.

Several tokens of a row at once (t > 1, when drafts are verified) stand at consecutive positions, and each sees one slot
more than the one before. The G = H/K query heads that share a key/value head (Ainslie et al. 2023, arXiv 2305.13245)
become G·t rows of one product against it, so K and V are read once and never repeated. Keys are stored with the slots
last, (B, K, C, T): the product then reads them without a transpose, which on the CPU in bf16 takes a third of the time.
Inference only: there is no backward.
"""
from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256            # queries of a prompt at a time


def cached_attention_plain(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Attend with q (B, t, H, C) at positions (B, t) over keys (B, K, C, T) and values (B, K, T, C); returns q's shape.

    The token at position p sees the slots 0…p of its own row. Query head h reads key/value head h // (H/K).
    """
    group = q.shape[2] // keys.shape[1]
    o = torch.empty_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = int(positions[b, t]) + 1
            k = keys[b, :, :, :seen].repeat_interleave(group, 0)                # (K, C, T) → (H, C, seen)
            v = values[b, :, :seen].repeat_interleave(group, 0)                 # (K, T, C) → (H, seen, C)
            scores = q[b, t].unsqueeze(1) @ k * q.shape[-1] ** -0.5             # (H, 1, seen)
            o[b, t] = (scores.softmax(-1) @ v).squeeze(1)                       # (H, C)
    return o


def cache_bias(positions: Tensor, slots: int, heads: int, group: int, dtype: torch.dtype) -> Tensor:
    """What `cached_attention` adds to its scores, the same in every layer: (B·K, G·t, T), 0 where seen, else -inf.

    positions (B, t); T = slots; K = heads, the key/value heads; G = group, the query heads that share one.
    """
    B, t = positions.shape
    hidden = torch.arange(slots, device=positions.device) > positions.unsqueeze(-1)                 # (B, t, T)
    bias = torch.zeros(B, t, slots, dtype=dtype, device=positions.device).masked_fill_(hidden, float("-inf"))
    return bias.view(B, 1, 1, t, slots).expand(B, heads, group, t, slots).reshape(B * heads, group * t, slots)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    """`cached_attention_plain` as two batched products; `bias` comes from `cache_bias` over the same T slots."""
    B, t, H, C = q.shape
    K, T = keys.shape[1], keys.shape[3]
    rows = q.reshape(B, t, K, H // K, C).permute(0, 2, 3, 1, 4).reshape(B * K, -1, C)                  # (B·K, G·t, C)
    scores = torch.baddbmm(bias, rows, keys.flatten(0, 1), alpha=C**-0.5)                           # (B·K, G·t, T)
    o = torch.bmm(scores.softmax(-1), values.flatten(0, 1))                                         # (B·K, G·t, C)
    return o.view(B, K, H // K, t, C).permute(0, 3, 1, 2, 4).reshape(B, t, H, C)


def prompt_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend with a prompt's last t tokens q (t, H, C) over its keys (K, C, T) and values (K, T, C), T ≥ t; returns q's shape.

    Token i sees slots 0…T - t + i. In blocks of queries, so that little of the future is computed and memory grows with T.
    """
    t, H, C = q.shape
    K, T = keys.shape[0], keys.shape[2]
    o = torch.empty_like(q)
    for start in range(0, t, BLOCK):
        end = min(start + BLOCK, t)
        b, seen = end - start, T - t + end
        rows = q[start:end].reshape(b, K, H // K, C).permute(1, 2, 0, 3).reshape(K, -1, C)              # (K, G·b, C)
        scores = (rows @ keys[..., :seen]).mul_(C**-0.5)                                                # (K, G·b, seen)
        future = torch.ones(b, b, dtype=torch.bool, device=q.device).triu_(1)                           # the block's own square
        scores.view(K, -1, b, seen)[..., seen - b :].masked_fill_(future, float("-inf"))
        part = scores.softmax(-1) @ values[:, :seen]                                                    # (K, G·b, C)
        o[start:end] = part.view(K, -1, b, C).permute(2, 0, 1, 3).reshape(b, H, C)
    return o
