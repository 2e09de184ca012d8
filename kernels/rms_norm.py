"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467).

    y = w · x̂,     x̂ = r · x,     r = 1/√(mean(x²) + ε)

Backward. With m = dy · w the gradient that reaches x̂, D the width, and ∂r/∂x_i = −r³·x_i / D,

    dx_i = r·m_i + (Σ_j m_j·x_j) · ∂r/∂x_i,     that is     dx = r · (m − x · r²·mean(m · x)),     dw = Σ_rows dy · x̂.

Only x, which the residual stream keeps alive anyway, and r, one number a row, are saved. The statistics are taken
in fp32 and x̂ is rounded to x's dtype *before* it is scaled by w, as transformers' Llama does: in bf16 the order of the
two roundings decides the last bit.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of x (…, D) and scale it by weight (D,); returns (…, D) in x's dtype."""
    wide = _widen(x)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)      # (…, D)
    return weight * normed.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm_plain` that saves x and one number a row instead of every intermediate.

    On a GPU it is PyTorch's own, one operation each way, which rounds once where the plain form rounds twice. Where
    nothing is to be saved, PyTorch's own without its weight rounds as the plain form, and starts in half the time.
    """
    if x.is_cuda:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    if not torch.is_grad_enabled():
        return F.rms_norm(x, (x.shape[-1],), None, eps).mul_(weight)
    return _RMSNorm.apply(x, weight, eps)


def _widen(x: Tensor) -> Tensor:
    """Half precisions to fp32; fp32 and fp64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.shape[-1])
        r = mean_square.add_(eps).rsqrt_()                                      # (…, 1)
        ctx.save_for_backward(x, weight, r)
        return torch.mul(x, r, out=torch.empty_like(x)).mul_(weight)            # rounded before the weight, as the plain form

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, r = ctx.saved_tensors
        need_x, need_weight, _ = ctx.needs_input_grad
        wide = _widen(x)                                                        # (…, D)
        dx = dw = None
        if need_weight:
            dw = (_widen(dy) * wide * r).flatten(0, -2).sum(0).to(weight.dtype)         # (…, D) → (D,)
        if need_x:
            m = _widen(dy * weight)
            pull = (m * wide).mean(-1, keepdim=True).mul_(r).mul_(r)            # r²·mean(m · x) (…, 1)
            dx = m.addcmul_(wide, pull, value=-1).mul_(r).to(x.dtype)
        return dx, dw, None
