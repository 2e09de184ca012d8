"""PyTorch's causal attention over packed documents (`torch.nn.attention.varlen`, FlashAttention-2), whatever its version.

It came with PyTorch 2.10, took a window with 2.11, and grouped queries later: where it does not, keys and values are
repeated. It runs on a GPU, in half precision, with heads of 8, 16, … 256 numbers.
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
    """PyTorch's function, and whether it takes grouped queries; None where there is none, or without windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = signature(varlen_attn).parameters
    return (varlen_attn, "enable_gqa" in known) if "window_size" in known else None


def fits(dtype: torch.dtype, device: torch.device, width: int) -> bool:
    """Whether `varlen_attention` computes in `dtype` on `device` here, with heads of `width` numbers."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and width % 8 == 0 and width <= 256 and _varlen_attn() is not None


def bounds_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Where each document begins and the last one ends, as `varlen_attention` wants it: int32 (documents + 1,)."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, longest_q: int,
                     longest_k: int) -> Tensor:
    """Attend with q (N, H, C) over k, v (M, K, C): returns (N, H, C), with a gradient.

    Document i has the queries q_bounds[i] … q_bounds[i+1] and the keys k_bounds[i] … k_bounds[i+1], as many or more: its
    queries are the last of its tokens, and each sees the keys up to its own.
    """
    attend, groups = _varlen_attn()
    options = {}
    if q.shape[1] != k.shape[1]:
        if groups:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return attend(q, k, v, q_bounds, k_bounds, longest_q, longest_k, window_size=(-1, 0), **options)
