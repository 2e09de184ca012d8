"""Rotary position embedding, half-split: pairs (i, i + C/2) of a head turn by the angle position · θ_i."""
from __future__ import annotations

import torch
from torch import Tensor


def rope_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the heads of x (N, H, C) by cos and sin (N, C), whose two halves are equal; returns x's dtype."""
    first, second = x.chunk(2, dim=-1)                                          # (N, H, C/2) each
    turned = torch.cat((-second, first), dim=-1)                                # (N, H, C)
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)     # (N, 1, C)
    return x * cos + turned * sin


rope = rope_plain
