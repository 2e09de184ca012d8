"""Root-mean-square normalisation: y = w · x / √(mean(x²) + ε), the statistics in fp32."""
from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension of x (…, D) and scale it by weight (D,); returns x's dtype."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)      # (…, D)
    return weight * normed.to(x.dtype)


rms_norm = rms_norm_plain
