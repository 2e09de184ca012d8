"""SwiGLU's gate: y = silu(gate) · up, with silu(g) = g · σ(g)."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu_plain(gate: Tensor, up: Tensor) -> Tensor:
    """Gate `up` by silu of `gate`, both (N, F)."""
    return F.silu(gate) * up


swiglu = swiglu_plain
