"""Gradients that are the same bits every time, on a GPU too.

On a CPU they always are. On a GPU the backward pass of FlashAttention adds to dQ in the order in which its blocks
finish (github.com/Dao-AILab/flash-attention/issues/414), so two runs of the same steps differ by rounding, and a
resumed run from an uninterrupted one. PyTorch has slower kernels that add in a fixed order.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside the `with`, where `wanted`, PyTorch computes with kernels that add in a fixed order, and raises where it
    has none. cuBLAS needs a fixed workspace for it, which `as_device` asks for."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
