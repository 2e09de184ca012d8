"""SwiGLU's gate (Shazeer 2020, arXiv 2002.05202): y = silu(g) · u, with silu(g) = g · σ(g).

Backward. silu'(g) = σ(g) · (1 + g · (1 − σ(g))), so

    du = dy · silu(g),     dg = dy · u · silu'(g).

Autograd on the plain form saves g, u and silu(g); here silu(g) is computed again, which costs one cheap pass and keeps
a third of the feed-forward block's activations from being stored.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_plain(gate: Tensor, up: Tensor) -> Tensor:
    """Gate `up` by silu of `gate`; both and the result are (N, F)."""
    return F.silu(gate) * up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`swiglu_plain` that saves gate and up alone."""
    return _SwiGLU.apply(gate, up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, dy: Tensor):
        gate, up = ctx.saved_tensors
        need_gate, need_up = ctx.needs_input_grad
        dgate = torch.ops.aten.silu_backward(dy * up, gate) if need_gate else None
        dup = F.silu(gate).mul_(dy) if need_up else None
        return dgate, dup
