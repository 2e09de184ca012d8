"""Attention of newly written tokens over a static, ragged, right-padded cache of keys and values.

    slot →        0 1 2 3 4 5 6 7 ← T slots          A token's slot is its position. Row 0 stands at position 5
    row 0         ■ ■ ■ ■ ■ ■ · ·                    and sees slots 0…5; row 1 stands at 3. What lies behind a
    row 1         ■ ■ ■ ■ · · · ·                    row's position is stale or zero, and masked.

Several tokens of a row at once (t > 1, when drafts are verified) stand at consecutive positions, and each sees one slot
more than the one before. The G = H/K query heads that share a key/value head (Ainslie et al. 2023, arXiv 2305.13245)
become t·G queries of one head against it, so K and V are read once and never repeated: a step waits for reading them, and
three tokens of a row take little longer than one. The sum over the slots is PyTorch's `scaled_dot_product_attention`, which
takes a part of a longer cache as it lies; products on the CPU make a copy of it first, and compile anew for every length.
Inference only: there is no backward.

The kernel makes two products for each row and head, so small that starting them and laying out their operands takes
longer than they do. Few heads may therefore lie side by side as one of width K·C. A query stands in its own head's part,
among zeros, and of what comes out of it its own head's part is kept:

    line of a slot     k₀ │ k₁ │ k₂          q·k is q₁·k₁                v₀ │ v₁ │ v₂  →  o₁ is its sum over the slots
    query of head 1    0  │ q₁ │ 0
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LONG = 512             # tokens from which on causality is faster than a mask (two CPU cores, bf16, behind a prefix of 57)


def cached_attention_plain(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Attend with q (B, t, H, C) at positions (B, t) over keys and values (B, K, T, C); returns q's shape.

    The token at position p sees the slots 0…p of its own row. Query head h reads key/value head h // (H/K).
    """
    group = q.shape[2] // keys.shape[1]
    o = torch.empty_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = int(positions[b, t]) + 1
            k, v = (x[b, :, :seen].repeat_interleave(group, 0) for x in (keys, values))                     # (H, seen, C)
            scores = q[b, t].unsqueeze(1) @ k.transpose(1, 2) * q.shape[-1] ** -0.5                         # (H, 1, seen)
            o[b, t] = (scores.softmax(-1) @ v).squeeze(1)                                                   # (H, C)
    return o


def cache_bias(positions: Tensor, slots: int, group: int, dtype: torch.dtype) -> Tensor:
    """What `cached_attention` adds to its scores, the same in every layer: (B, 1, t·G, T), 0 where seen, else -inf.

    positions (B, t); T = slots; G = group, the query heads that share a key/value head, or a wide one.
    """
    B, t = positions.shape
    hidden = torch.arange(slots, device=positions.device) > positions.unsqueeze(-1)                     # (B, t, T)
    bias = torch.zeros(B, t, slots, dtype=dtype, device=positions.device).masked_fill_(hidden, float("-inf"))
    return bias.repeat_interleave(group, 1).unsqueeze(1)


def cached_attention(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`cached_attention_plain` for all rows at once, over J = K heads of width W = C, or J = 1 of width W = K·C.

    q and what is returned (B, J, Q, W), Q the queries of a row for one head, token by token; keys, values (B, J, T, W);
    `bias` comes from `cache_bias` over the same T slots; scale is 1/√C.
    """
    return F.scaled_dot_product_attention(q, keys, values, bias.expand(*q.shape[:2], -1, -1), scale=scale)


def prompt_bias(t: int, T: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """What `prompt_attention` adds to its scores: (t, T), 0 where seen, else -inf; None where causality says it all.

    So it does for long prompts too, with T - t queries in front that nobody reads: the kernel then leaves out half of all
    T·T scores, which are fewer than t·T where the prompts are longer than what stood before them.
    """
    if t == T or (t >= LONG and 2 * t > T):
        return None
    return torch.full((t, T), float("-inf"), dtype=dtype, device=device).triu_(1 + T - t)


def prompt_attention(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """Attend with the last t tokens q (n, t, H, C) of n prompts over their keys and values (n, K, T, C); returns q's shape.

    Token i sees slots 0…T - t + i; `bias` is `prompt_bias(t, T, …)`. The kernel that saves memory on a GPU wants K and V
    for every query head, so there they are repeated.
    """
    H, K = q.shape[2], keys.shape[1]
    if q.is_cuda:
        keys, values = (x.repeat_interleave(H // K, 1) for x in (keys, values))                         # (n, H, T, C)
    before = 0 if bias is not None else keys.shape[2] - q.shape[1]
    q = F.pad(q, (0, 0, 0, 0, before, 0)) if before else q                                              # (n, T or t, H, C)
    o = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, bias, is_causal=bias is None,
                                       enable_gqa=keys.shape[1] != H)                                   # (n, H, T or t, C)
    return o.transpose(1, 2)[:, before:]
