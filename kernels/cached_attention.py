"""Attention of newly written tokens over a static, ragged, right-padded cache of keys and values.

    slot →        0 1 2 3 4 5 6 7 ← T slots          A token's slot is its position. Row 0 stands at position 5
    row 0         ■ ■ ■ ■ ■ ■ · ·                    and sees slots 0…5; row 1 stands at 3. What lies behind a
    row 1         ■ ■ ■ ■ · · · ·                    row's position is stale or zero, and masked.

Several tokens of a row at once (t > 1, when drafts are verified) stand at consecutive positions, and each sees one slot
more than the one before. The G = H/K query heads that share a key/value head (Ainslie et al. 2023, arXiv 2305.13245)
become G·t rows of one product against it, so K and V are read once and never repeated. Keys have the slots last,
(B, K, C, T), and on the CPU they lie so in memory: the product then reads them without a transpose, which in bf16 takes a
third of the time. On a GPU attention is PyTorch's `scaled_dot_product_attention`, which wants a key's C numbers together.
Inference only: there is no backward.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256            # queries of a prompt at a time


def empty_keys(rows: int, heads: int, width: int, slots: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros (rows, K, C, T) for the keys of a cache, laid out as attention on `device` reads them."""
    if device.type == "cpu":
        return torch.zeros(rows, heads, width, slots, dtype=dtype, device=device)
    return torch.zeros(rows, heads, slots, width, dtype=dtype, device=device).transpose(2, 3)


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
    """`cached_attention_plain` for all rows at once; `bias` comes from `cache_bias` over the same T slots."""
    B, t, H, C = q.shape
    K, T = keys.shape[1], keys.shape[3]
    rows = q.reshape(B, t, K, H // K, C).permute(0, 2, 3, 1, 4).reshape(B * K, -1, C)                  # (B·K, G·t, C)
    o = (_fused_cached if q.is_cuda else _cached)(rows, keys, values, bias)                         # (B·K, G·t, C)
    return o.view(B, K, H // K, t, C).permute(0, 3, 1, 2, 4).reshape(B, t, H, C)


def _cached(rows: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    scores = torch.baddbmm(bias, rows, keys.flatten(0, 1), alpha=rows.shape[-1] ** -0.5)            # (B·K, G·t, T)
    return torch.bmm(scores.softmax(-1), values.flatten(0, 1))


def _fused_cached(rows: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
    q, bias = (x.unflatten(0, keys.shape[:2]) for x in (rows, bias))                                # (B, K, G·t, …)
    return F.scaled_dot_product_attention(q, keys.transpose(2, 3), values, bias).flatten(0, 1)


def prompt_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend with a prompt's last t tokens q (t, H, C) over its keys (K, C, T) and values (K, T, C), T ≥ t; returns q's shape.

    Token i sees slots 0…T - t + i.
    """
    return (_fused_prompt if q.is_cuda else _prompt)(q, keys, values)


def _prompt(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """In blocks of queries, so that little of the future is computed and memory grows with T."""
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


def _fused_prompt(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """With a mask, which PyTorch's memory-saving kernel takes, but only where every query head has its own keys."""
    (t, H, _), (K, _, T) = q.shape, keys.shape
    seen = torch.ones(t, T, dtype=torch.bool, device=q.device).tril_(T - t)
    keys, values = (x.repeat_interleave(H // K, 0) for x in (keys.transpose(1, 2), values))             # (H, T, C)
    return F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys[None], values[None], seen)[0].transpose(0, 1)
