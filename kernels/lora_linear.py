"""A frozen linear layer with a low-rank adapter: Y = X·Wᵀ + b + s·(X·Aᵀ)·Bᵀ."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def lora_linear_plain(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """Apply W (O, D), bias (O,) and the adapter s·B·A with A (R, D), B (O, R) to x (…, D); returns (…, O).

    A and B are fp32 masters, cast to x's dtype for the products.
    """
    low = F.linear(x, A.to(x.dtype))                                            # (…, D) → (…, R)
    return F.linear(x, weight, bias) + scale * F.linear(low, B.to(x.dtype))     # (…, R) → (…, O)


lora_linear = lora_linear_plain
