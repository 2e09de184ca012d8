"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split as in Hugging Face's Llama.

Each pair (x_i, x_{i + C/2}) of a head is rotated by the angle a_i = position · θ_i:

    y_i         = x_i         · cos a_i  −  x_{i + C/2} · sin a_i
    y_{i + C/2} = x_{i + C/2} · cos a_i  +  x_i         · sin a_i

The transpose of a rotation is its inverse, so the backward is the rotation by −a: the same code with −sin.
"""
from __future__ import annotations

import torch
from torch import Tensor


def rope_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (N, H, C) by the angles with cos and sin (N, C), whose two halves are equal; returns x's dtype."""
    first, second = x.chunk(2, dim=-1)                                          # (N, H, C/2) each
    quarter_turn = torch.cat((-second, first), dim=-1)                          # (N, H, C), x rotated by 90°
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)     # (N, 1, C)
    return x * cos + quarter_turn * sin


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute `rope_plain` without the concatenation, saving cos and sin alone."""
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)     # (N, 1, C)
    return _RoPE.apply(x, cos, sin) if torch.is_grad_enabled() else _rotate(x, cos, sin, 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """Rotate x (N, H, C) by direction · angle, with cos and sin (N, 1, C) and direction 1 or −1."""
    half = x.shape[-1] // 2
    y = x * cos                                                                 # (N, H, C)
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-direction)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:], value=direction)
    return y


class _RoPE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, dy: Tensor):
        cos, sin = ctx.saved_tensors
        return _rotate(dy, cos, sin, -1), None, None
