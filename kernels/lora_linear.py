"""A frozen linear layer with a low-rank adapter (Hu et al. 2021, arXiv 2106.09685): Y = X·Wᵀ + b + s·(X·Aᵀ)·Bᵀ.

           ┌──────── W (O, D), frozen ────────┐
    X (N, D)                                   + → Y (N, O)
           └── A (R, D) ── Z (N, R) ── B (O, R) · s ┘

Backward, with Z = X·Aᵀ (N, R) and dZ = s·dY·B (N, R):

    dB = s·dYᵀ·Z,     dA = dZᵀ·X,     dX = dY·W + dZ·A,     db = Σ_rows dY,     dW = dYᵀ·X where W is trained too.

The narrow product is added to the wide one in place, so the adapter needs no second (N, O) or (N, D) array. X, Z, W and
the factors are saved. Only the gradients that are needed are computed: the first adapted layer needs no dX.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lora_linear_plain(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Apply W (O, D), bias (O,) or None, and the adapter s·B·A with A (R, D), B (O, R) to x (…, D); returns (…, O).

    A and B are fp32 masters, cast to x's dtype for the products.
    """
    low = F.linear(x, A.to(x.dtype))                                            # (…, D) → (…, R)
    return F.linear(x, weight, bias) + scale * F.linear(low, B.to(x.dtype))     # (…, R) → (…, O)


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Compute `lora_linear_plain`, adding the narrow product in place and computing only the gradients needed."""
    y = _LoRALinear.apply(x.reshape(-1, x.shape[-1]), weight, bias, A, B, scale)     # (…, D) → (N, D) → (N, O)
    return y.view(*x.shape[:-1], y.shape[-1])


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        A, B = A.to(x.dtype), B.to(x.dtype)
        low = x @ A.t()                                                         # (N, D) → (N, R)
        ctx.save_for_backward(x, weight, A, B, low)
        ctx.scale = scale
        return F.linear(x, weight, bias).addmm_(low, B.t(), alpha=scale)        # (N, O)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, A, B, low = ctx.saved_tensors
        need_x, need_weight, need_bias, need_A, need_B, _ = ctx.needs_input_grad
        dx = dW = db = dA = dB = None
        if need_x or need_A:
            dlow = (dy @ B).mul_(ctx.scale)                                     # (N, O) → (N, R)
        if need_x:
            dx = (dy @ weight).addmm_(dlow, A)                                  # (N, D)
        if need_weight:
            dW = dy.t() @ x                                                     # (O, D)
        if need_bias:
            db = dy.sum(0)
        if need_A:
            dA = dlow.t() @ x                                                   # (R, D); autograd casts it to fp32
        if need_B:
            dB = (dy.t() @ low).mul_(ctx.scale)                                 # (O, R)
        return dx, dW, db, dA, dB, None
