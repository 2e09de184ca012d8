"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), half-split as in Hugging Face's Llama.

The pair (x_i, x_{i + C/2}) of a head turns by the angle a_i = position · θ_i:

    y_i         = x_i         · cos a_i  −  x_{i + C/2} · sin a_i
    y_{i + C/2} = x_{i + C/2} · cos a_i  +  x_i         · sin a_i

A rotation's transpose is its inverse, so the backward is the rotation by −a: the same code with −sin, and nothing of x
is saved.
"""
from __future__ import annotations

import torch
from torch import Tensor


def rope_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the heads of x (N, H, C) by cos and sin (N, C), whose two halves are equal; returns x's dtype."""
    first, second = x.chunk(2, dim=-1)                                          # (N, H, C/2) each
    turned = torch.cat((-second, first), dim=-1)                                # (N, H, C)
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)     # (N, 1, C)
    return x * cos + turned * sin


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rope_plain` without the concatenation, and with a backward that saves cos and sin alone."""
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)     # (N, 1, C)
    return _RoPE.apply(x, cos, sin) if torch.is_grad_enabled() else _rotate(x, cos, sin, 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """Turn x (N, H, C) by ±angle, with cos and sin (N, 1, C)."""
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
        return _rotate(dy, *ctx.saved_tensors, -1), None, None
