"""Measures of the logits that hidden states produce, a few rows at a time: token NLL, and KL between two models.

For rows h and g of hidden states, z = h·Wᵀ and t = g·Wᵀ, p = softmax(z) and q = softmax(t); q has no gradient:

    forward  KL(q ‖ p) = Σ_v q_v · (log q_v − log p_v)          dz = p − q
    reverse  KL(p ‖ q) = Σ_v p_v · (log p_v − log q_v) = k      dz = p ⊙ (log p − log q − k)          dh = dz·W

As in `sdft.kernels.linear_cross_entropy` the sum ends the graph, so the forward pass computes the gradient and no
(n, V) array is kept. The head must be frozen, as it is under LoRA.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sdft.kernels.linear_cross_entropy import CACHED

ROWS = 128          # rows at a time: 128 × 49152 in fp32 are 25 MB, and KL needs about six such arrays


@torch.no_grad()
def token_nll(x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Return −log softmax(x·headᵀ)[label] in nats, (n,), given hidden states x (n, D), head (V, D) and labels (n,)."""
    return torch.cat([few_at_a_time(lambda z, y: (label_nll(z, y),), F.linear(x_rows, head), y_rows)[0]
                      for x_rows, y_rows in zip(x.split(ROWS), labels.split(ROWS), strict=True)])      # (rows,) each


def few_at_a_time(measure: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return measure(*tensors), which maps tensors (n, …) row by row. The CPU gives it `CACHED` rows at a time."""
    if tensors[0].device.type != "cpu":
        return measure(*tensors)
    parts = [measure(*rows) for rows in zip(*(x.split(CACHED) for x in tensors), strict=True)]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def label_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log softmax(logits)[label] in nats, fp32 or wider (n,), given logits (n, V) and labels (n,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.logsumexp(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def kl_plain(x: Tensor, other: Tensor, head: Tensor, reverse: bool = False) -> Tensor:
    """Return Σ_rows KL(q ‖ p) in nats, or KL(p ‖ q) if `reverse`; p comes from x (n, D), q from `other` (n, D)."""
    log_p, log_q = _log_softmax(x, head), _log_softmax(other, head).detach()               # (n, V)
    return ((log_p.exp() * (log_p - log_q)) if reverse else (log_q.exp() * (log_q - log_p))).sum()


def kl(x: Tensor, other: Tensor, head: Tensor, reverse: bool = False) -> Tensor:
    """Compute `kl_plain` a few rows at a time. Only x gets a gradient."""
    return _KL.apply(x, other, head, reverse)


def _log_softmax(x: Tensor, head: Tensor) -> Tensor:
    logits = F.linear(x, head)                          # rounded to x's dtype, as the head alone returns them
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, other: Tensor, head: Tensor, reverse: bool) -> Tensor:
        dx = torch.empty_like(x)
        total = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        for x_rows, other_rows, dx_rows in zip(x.split(ROWS), other.split(ROWS), dx.split(ROWS), strict=True):
            log_p, log_q = _log_softmax(x_rows, head), _log_softmax(other_rows, head)     # (rows, V)
            p = log_p.exp()
            if reverse:
                difference = log_p.sub_(log_q)
                k = (p * difference).sum(1, keepdim=True)                       # (rows, 1)
                dz = p.mul_(difference.sub_(k))
            else:
                q = log_q.exp()
                k = (q * log_q.sub_(log_p)).sum(1)
                dz = p.sub_(q)
            total += k.sum()
            torch.mm(dz.to(x.dtype), head, out=dx_rows)                          # (rows, V) → (rows, D)
        ctx.save_for_backward(dx)
        return total

    @staticmethod
    def backward(ctx, dtotal: Tensor):
        (dx,) = ctx.saved_tensors
        return (dx * dtotal).to(dx.dtype), None, None, None
