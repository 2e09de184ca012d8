"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467).

    y = w · x̂,     x̂ = r · x,     r = 1/√(mean(x²) + ε)

Backward. With m = dy · w the gradient that reaches x̂, D the width, and ∂r/∂x_i = −r³·x_i / D,

    dx_i = r·m_i + (Σ_j m_j·x_j) · ∂r/∂x_i,     that is     dx = r · (m − x̂·mean(m · x̂)),     dw = Σ_rows dy · x̂.

LayerNorm's backward (Ba et al. 2016, arXiv 1607.06450), told that the mean was 0, is r · (m − mean(m) − x̂·mean(m · x̂)):
PyTorch computes it in one pass, and r·mean(m), one number a row, is added again. (Its dw is summed in half precision, so
it is not taken.) Likewise x̂ in half precision is what batch normalisation makes of x, again in one pass: the rows are its
channels, 0 is their running mean and mean(x²) their running variance.

Only x, which the residual stream keeps alive anyway, and mean(x²), one number a row, are saved. The statistics are taken
in fp32 and x̂ is rounded to x's dtype *before* it is scaled by w, as transformers' Llama does: in bf16 the order of the
two roundings decides the last bit.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of x (…, D) and scale it by weight (D,); returns (…, D) in x's dtype."""
    wide = _widen(x)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)      # (…, D)
    return weight * normed.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm_plain` that saves x and one number a row instead of every intermediate.

    On a GPU it is PyTorch's own, one operation each way, which rounds once where the plain form rounds twice.
    """
    if x.is_cuda:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _scaled(x, _mean_square(x), weight, eps)


def _widen(x: Tensor) -> Tensor:
    """Half precisions to fp32; fp32 and fp64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _mean_square(x: Tensor) -> Tensor:
    """Of each row of x (…, D): (…, 1), in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.shape[-1])


def _scaled(x: Tensor, mean_square: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w · x̂ of x (…, D) and the mean squares of its rows (…, 1)."""
    if x.dtype == mean_square.dtype:
        return torch.mul(x, (mean_square + eps).rsqrt_()).mul_(weight)
    variance = mean_square.flatten()                                            # (rows,)
    rows = x.reshape(1, len(variance), x.shape[-1])                             # (1, rows, D): a batch of one
    normed = F.batch_norm(rows, torch.zeros_like(variance), variance, eps=eps)
    return normed.view(x.shape).mul_(weight)                                    # rounded before the weight, as the plain form


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = _mean_square(x)                                           # (…, 1)
        ctx.save_for_backward(x, weight, mean_square)
        ctx.eps = eps
        return _scaled(x, mean_square, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight, mean_square = ctx.saved_tensors
        need_x, need_weight, _ = ctx.needs_input_grad
        r, gamma = (mean_square + ctx.eps).rsqrt_(), weight.to(mean_square.dtype)           # (…, 1), (D,)
        dx = dw = None
        if need_weight:
            dw = (_widen(dy) * _widen(x) * r).reshape(-1, len(weight)).sum(0).to(weight.dtype)       # (…, D) → (D,)
        if need_x:
            dx = torch.ops.aten.native_layer_norm_backward(
                dy, x, x.shape[-1:], torch.zeros_like(r), r, gamma, None, (True, False, False))[0]
            mean = (_widen(dy) @ gamma).unsqueeze(-1) / x.shape[-1]                         # mean(m) (…, 1)
            dx.add_((r * mean).to(dx.dtype))
        return dx, dw, None
