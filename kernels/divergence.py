"""What hidden states say through the head, a few rows at a time: each target's surprise, the divergence of two views.

For rows h and g of two views, z = h·Wᵀ and t = g·Wᵀ, p = softmax(z) and q = softmax(t), q without a gradient:

    forward  KL(q ‖ p) = Σ_v q_v · (log q_v − log p_v)          dz = p − q
    reverse  KL(p ‖ q) = Σ_v p_v · (log p_v − log q_v) = k      dz = p ⊙ (log p − log q − k)          dh = dz·W

As in `sdft.kernels.linear_cross_entropy` the sum ends the graph, so its gradient is computed in the forward pass and
no (n, V) array is kept. The head must be frozen, as it is under LoRA.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sdft.kernels.linear_cross_entropy import CACHED

ROWS = 128          # rows at a time: 128 × 49152 in fp32 are 25 MB, and a divergence needs about six of them


@torch.no_grad()
def token_nll(x: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(x·headᵀ)[label] in nats, (n,), of hidden states x (n, D), head (V, D) and labels (n,)."""
    found = []
    for rows, own in zip(x.split(ROWS), labels.split(ROWS), strict=True):
        (nll,) = few_at_a_time(lambda z, y: (label_nll(z, y),), F.linear(rows, head), own)      # (rows, V) → (rows,)
        found.append(nll)
    return torch.cat(found)


def few_at_a_time(measure: Callable[..., tuple[Tensor, ...]], *given: Tensor) -> tuple[Tensor, ...]:
    """What `measure` finds of each row of what is given, (n, …) each; on the CPU by `CACHED` rows, twice as fast."""
    if given[0].device.type != "cpu":
        return measure(*given)
    parts = [measure(*rows) for rows in zip(*(x.split(CACHED) for x in given), strict=True)]
    return tuple(torch.cat(found) for found in zip(*parts, strict=True))


def label_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(logits)[label], fp32 or wider (n,), of logits (n, V) and labels (n,)."""
    logits = _widen(logits)
    return logits.logsumexp(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def kl_plain(x: Tensor, other: Tensor, head: Tensor, reverse: bool = False) -> Tensor:
    """Σ over rows of KL(q ‖ p) in nats, with `reverse` of KL(p ‖ q); p from x (n, D), q from `other` (n, D)."""
    log_p, log_q = _logits(x, head).log_softmax(1), _logits(other, head).log_softmax(1).detach()         # (n, V)
    return ((log_p.exp() * (log_p - log_q)) if reverse else (log_q.exp() * (log_q - log_p))).sum()


def kl(x: Tensor, other: Tensor, head: Tensor, reverse: bool = False) -> Tensor:
    """`kl_plain` a few rows at a time. The gradient goes to x alone."""
    return _KL.apply(x, other, head, reverse)


def _logits(x: Tensor, head: Tensor) -> Tensor:
    """x·headᵀ rounded to x's dtype, as the head alone would give it, then in fp32 or wider."""
    return _widen(F.linear(x, head))


def _widen(logits: Tensor) -> Tensor:
    """Half precisions to fp32; fp32 and fp64 stay."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, other: Tensor, head: Tensor, reverse: bool) -> Tensor:
        dx = torch.empty_like(x)
        total = x.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
        for rows, others, d_rows in zip(x.split(ROWS), other.split(ROWS), dx.split(ROWS), strict=True):
            log_p, log_q = _logits(rows, head).log_softmax(1), _logits(others, head).log_softmax(1)     # (rows, V)
            p = log_p.exp()
            if reverse:
                apart = log_p.sub_(log_q)
                k = (p * apart).sum(1, keepdim=True)                            # (rows, 1)
                dz = p.mul_(apart.sub_(k))
            else:
                q = log_q.exp()
                k = (q * log_q.sub_(log_p)).sum(1)
                dz = p.sub_(q)
            total += k.sum()
            torch.mm(dz.to(x.dtype), head, out=d_rows)                          # (rows, V) → (rows, D)
        ctx.save_for_backward(dx)
        return total

    @staticmethod
    def backward(ctx, dtotal: Tensor):
        (dx,) = ctx.saved_tensors
        return (dx * dtotal).to(dx.dtype), None, None, None
