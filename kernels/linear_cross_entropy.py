"""The language-model head and its cross-entropy in one operation, without an (n, V) array of logits.

For a hidden state h with label y and weight w, z = h·Wᵀ and p = softmax(z):

    loss = w · (log Σ_j e^{z_j} − z_y),     dz = w · (p − onehot_y),     dh = dz·W,     dW = Σ_rows dzᵀ·h.

The loss is a sum that ends the graph, so its gradient is known up to one scalar. The forward pass therefore computes
the gradient at once, a few rows at a time, in one (rows, V) buffer (Wijmans et al. 2024, arXiv 2411.09009, and Liger,
arXiv 2410.10989, do so on GPUs). The weight w multiplies dh, which is V/D times narrower than dz. dW, in fp32, is
computed only if W is trained. The logits are rounded to x's dtype, as the head alone returns them; softmax and loss
are computed in fp32.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100          # the label of a row that is not a target
ROWS = 256             # logits computed at a time: 256 × 49152 are 25 MB in bf16
CACHED = 16            # rows that the CPU widens to fp32 at a time: 3 MB, which stay in its cache
STEP = 64              # The CPU pads the last rows to a multiple of this: oneDNN compiles a product for every new size.


def linear_cross_entropy_plain(x: Tensor, weight: Tensor, labels: Tensor,
                               token_weights: Tensor | None = None) -> Tensor:
    """Return Σ wᵢ · −log softmax(x·Wᵀ)ᵢ[labelᵢ] over the rows whose label is not -100: an fp32 scalar.

    x (n, D), weight (V, D), labels (n,), token_weights (n,) or None for all ones.
    """
    logits = F.linear(x, weight).float()                                        # (n, D) → (n, V)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")     # (n,)
    return losses.sum() if token_weights is None else (losses * token_weights).sum()


def linear_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """Compute `linear_cross_entropy_plain` a few rows at a time. Without any row it is 0, still with a gradient."""
    return _LinearCrossEntropy.apply(x, weight, labels, token_weights)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        step, cached = (STEP, CACHED) if x.device.type == "cpu" else (1, ROWS)
        counted = (labels != IGNORE).to(wide)                                   # (n,)
        scale = (counted if token_weights is None else counted * token_weights).unsqueeze(1)      # (n, 1)
        targets = labels.clamp_min(0).unsqueeze(1)                              # (n, 1): column 0 where not counted
        need_x, need_weight = ctx.needs_input_grad[:2]
        dx = torch.empty_like(x) if need_x else None
        dW = torch.zeros_like(weight, dtype=wide) if need_weight else None
        logits = x.new_empty(min(ROWS, len(x) + -len(x) % step), len(weight))   # (rows, V), reused by every chunk
        softmax = torch.empty_like(logits[:cached], dtype=wide)
        loss = x.new_zeros((), dtype=wide)
        for start in range(0, len(x), ROWS):
            x_rows, y_rows, w_rows = (full[start : start + ROWS] for full in (x, targets, scale))
            n = len(x_rows)
            x_padded = F.pad(x_rows, (0, 0, 0, -n % step))
            z_padded = torch.mm(x_padded, weight.t(), out=logits[: len(x_padded)])      # (rows, D) → (rows, V)
            for z, y, w in zip(*(rows.split(cached) for rows in (z_padded[:n], y_rows, w_rows)), strict=True):
                p = softmax[: len(z)].copy_(z)
                torch.softmax(p, 1, out=p)
                # log Σ e^z = z_max − log p_max. p_y may underflow, p_max is at least 1/V.
                nll = z.amax(1, True).to(wide) - p.amax(1, True).log() - z.gather(1, y).to(wide)    # (rows, 1)
                loss += (nll * w).sum()
                if need_x or need_weight:
                    z.copy_(p.scatter_add_(1, y, p.new_full((len(z), 1), -1.0)))        # dz/w = p − onehot_y
            if dx is not None:
                torch.mul((z_padded @ weight)[:n], w_rows, out=dx[start : start + n])   # (rows, V) → (rows, D)
            if dW is not None:
                dW += z_padded[:n].t() @ (x_rows * w_rows).to(x.dtype)          # (V, rows)·(rows, D) → (V, D)
        ctx.save_for_backward(dx, dW)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx, dloss: Tensor):
        dx, dW = ctx.saved_tensors
        dx = None if dx is None else (dx * dloss).to(dx.dtype)
        dW = None if dW is None else (dW * dloss).to(ctx.dtype)
        return dx, dW, None, None
