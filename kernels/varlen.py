"""PyTorch's causal attention over packed documents (`torch.nn.attention.varlen`, FlashAttention-2), for every version.

PyTorch 2.10 added it, 2.11 its `window_size`, and a later version grouped queries; without these, K and V are repeated.
It needs a GPU, half precision, and heads of 8, 16, … 256 numbers.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from itertools import accumulate

import torch
from torch import Tensor


@cache
def _varlen_attn() -> tuple[Callable, bool] | None:
    """Return PyTorch's function and whether it takes grouped queries; None if it is missing or has no `window_size`."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = signature(varlen_attn).parameters
    return (varlen_attn, "enable_gqa" in parameters) if "window_size" in parameters else None


def fits(dtype: torch.dtype, device: torch.device, width: int) -> bool:
    """Whether `varlen_attention` is available for `dtype`, `device` and heads of `width` numbers."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and width % 8 == 0 and width <= 256 and _varlen_attn() is not None


def bounds_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the begin of each document and the end of the last one, int32 (documents + 1,)."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, longest_q: int,
                     longest_k: int) -> Tensor:
    """Attend with q (N, H, C) over k, v (M, K, C); returns (N, H, C), with a gradient. Only if `fits`.

    Document i has queries q_bounds[i] … q_bounds[i+1] and keys k_bounds[i] … k_bounds[i+1]. Its queries are the last of
    its tokens, and each sees the keys up to its own.
    """
    assert (function := _varlen_attn()) is not None
    attend, takes_groups = function
    options, group = {}, q.shape[1] // k.shape[1]
    if group > 1 and takes_groups:
        options["enable_gqa"] = True
    elif group > 1:
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return attend(q, k, v, q_bounds, k_bounds, longest_q, longest_k, window_size=(-1, 0), **options)
