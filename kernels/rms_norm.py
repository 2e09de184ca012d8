"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467).

    y = w · x̂,     x̂ = r · x,     r = 1/√(mean(x²) + ε)

Backward. With m = dy · w, the gradient at x̂:     dx = r · (m − x̂·mean(m · x̂)),     dw = Σ_rows dy · x̂.

Only x and mean(x²), one number per row, are saved. In half precision the statistics are computed in fp32 and x̂ is
rounded to x's dtype *before* it is scaled by w, as in transformers' Llama: the order of the two roundings decides the
last bit. Two of PyTorch's one-pass operations do the work on the CPU:

- Batch normalisation, with the rows as its channels, 0 as their mean and mean(x²) as their variance, computes x̂.
- LayerNorm's backward (Ba et al. 2016, arXiv 1607.06450) with a mean of 0 computes r · (m − mean(m) − x̂·mean(m · x̂));
  r·mean(m), one number per row, is added back. Its dw is not used, since it is summed in half precision.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of x (…, D) and scale it by weight (D,); returns (…, D) in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)      # (…, D)
    return weight * normed.to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm_plain`, saving x and one number per row."""
    if x.is_cuda:                                                   # rounds once where the plain form rounds twice
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _scaled(x, _mean_square(x), weight, eps)


def _mean_square(x: Tensor) -> Tensor:
    """Return mean(x²) of each row of x (…, D): (…, 1), in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.shape[-1])


def _scaled(x: Tensor, mean_square: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return w · x̂, given x (…, D) and mean(x²) of its rows (…, 1)."""
    if x.dtype == mean_square.dtype:
        return torch.mul(x, (mean_square + eps).rsqrt_()).mul_(weight)
    variance = mean_square.flatten()                                            # (rows,)
    rows = x.reshape(1, len(variance), x.shape[-1])                             # (1, rows, D): a batch of one
    normed = F.batch_norm(rows, torch.zeros_like(variance), variance, eps=eps)
    return normed.view(x.shape).mul_(weight)                                    # rounded before it is scaled


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
            dw = (dy.to(r.dtype) * x.to(r.dtype) * r).reshape(-1, len(weight)).sum(0).to(weight.dtype)   # (…, D) → (D,)
        if need_x:                                                                          # dx = r·(m − x̂·mean(m·x̂))
            dx = torch.ops.aten.native_layer_norm_backward(
                dy, x, x.shape[-1:], torch.zeros_like(r), r, gamma, None, (True, False, False))[0]
            mean = (dy.to(r.dtype) @ gamma).unsqueeze(-1) / x.shape[-1]                     # mean(m) (…, 1)
            dx.add_((r * mean).to(dx.dtype))
        return dx, dw, None
