"""The language-model head and its cross-entropy in one, so that no (n, V) array of logits is ever kept.

For a row h with label y and weight w, z = h·Wᵀ and p = softmax(z):

    loss = w · (log Σ_j e^{z_j} − z_y),     dz = w · (p − onehot_y),     dh = dz·W,     dW = Σ_rows dzᵀ·h.

The loss is a sum that ends the graph, so its gradient is known but for one scalar. It is computed at once, in the
forward pass, for a few rows at a time; z becomes p becomes dz/w becomes dh/w, and the (rows, V) array is used again for
the next rows (Wijmans et al. 2024, arXiv 2411.09009, and Liger, arXiv 2410.10989, do so on GPUs). The weight w is laid
on dh, which is V/D times narrower than dz. The backward multiplies dh by the scalar that arrives. The head is frozen
under LoRA: dW is computed only where W asks for it, in fp32.

The logits are rounded to x's dtype, as the head alone would give them; softmax and loss are taken in fp32, on the CPU
for so few rows at a time that they stay in its cache. The last rows are filled up to a multiple of `STEP` there:
oneDNN compiles a product for every size that it has not met.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100          # the label of a row that is no target
ROWS = 256             # rows at a time: 256 × 49152 logits are 25 MB in bf16
CACHED = 16            # of them in fp32 at a time, on the CPU: 3 MB
STEP = 64              # rows of a product, on the CPU


def linear_cross_entropy_plain(x: Tensor, weight: Tensor, labels: Tensor,
                               token_weights: Tensor | None = None) -> Tensor:
    """Return Σ wᵢ · −log softmax(x·Wᵀ)ᵢ[labelᵢ] over the rows whose label is not -100: an fp32 scalar.

    x (n, D), weight (V, D), labels (n,), token_weights (n,) or None for all ones.
    """
    logits = F.linear(x, weight).float()                                        # (n, D) → (n, V)
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")     # (n,)
    return losses.sum() if token_weights is None else (losses * token_weights).sum()


def linear_cross_entropy(x: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """`linear_cross_entropy_plain` a few rows at a time; no row at all gives 0 that still carries a gradient."""
    return _LinearCrossEntropy.apply(x, weight, labels, token_weights)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, labels: Tensor, token_weights: Tensor | None) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        step, cached = (STEP, CACHED) if x.device.type == "cpu" else (1, ROWS)
        counted = (labels != IGNORE).to(wide)                                   # (n,)
        scale = (counted if token_weights is None else counted * token_weights).unsqueeze(1)      # (n, 1)
        targets = labels.clamp_min(0).unsqueeze(1)                              # (n, 1): any column where not counted
        need_x, need_weight = ctx.needs_input_grad[:2]
        dx = torch.empty_like(x) if need_x else None
        dW = torch.zeros_like(weight, dtype=wide) if need_weight else None
        filled = min(ROWS, len(x) + -len(x) % step)
        logits = x.new_empty(filled, len(weight))                               # (rows, V), used again for all
        softmax = torch.empty_like(logits[:cached], dtype=wide)
        loss = x.new_zeros((), dtype=wide)
        for start in range(0, len(x), ROWS):
            x_rows, y_rows, w_rows = (given[start : start + ROWS] for given in (x, targets, scale))
            n = len(x_rows)
            x_filled = F.pad(x_rows, (0, 0, 0, -n % step))
            z_filled = torch.mm(x_filled, weight.t(), out=logits[: len(x_filled)])      # (rows, D) → (rows, V)
            for z, y, w in zip(*(rows.split(cached) for rows in (z_filled[:n], y_rows, w_rows)), strict=True):
                p = softmax[: len(z)].copy_(z)
                torch.softmax(p, 1, out=p)
                # log Σ e^z = z_top − log p_top, exact where p_y itself may underflow: p_top is at least 1/V.
                nll = z.amax(1, True).to(wide) - p.amax(1, True).log() - z.gather(1, y).to(wide)    # (rows, 1)
                loss += (nll * w).sum()
                if need_x or need_weight:
                    z.copy_(p.scatter_add_(1, y, p.new_full((len(z), 1), -1.0)))        # dz / w
            if need_x:
                torch.mul((z_filled @ weight)[:n], w_rows, out=dx[start : start + n])   # (rows, V) → (rows, D)
            if need_weight:
                dW += z_filled[:n].t() @ (x_rows * w_rows).to(x.dtype)          # (V, rows)·(rows, D) → (V, D)
        ctx.save_for_backward(dx, dW)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx, dloss: Tensor):
        dx, dW = ctx.saved_tensors
        dx = None if dx is None else (dx * dloss).to(dx.dtype)
        dW = None if dW is None else (dW * dloss).to(ctx.dtype)
        return dx, dW, None, None
