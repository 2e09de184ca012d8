"""Prompts of a batch attend in one call, on a GPU. The share of a run has not been measured.

PyTorch's FlashAttention takes documents of different lengths in one call, in half precision. `PrefillAttention`
(cache.py) calls the kernel once for each prompt.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sdft.generation.cache import KVCache, PrefillAttention, prompt_lines
from sdft.kernels.attention import bounds_of, varlen_attention, varlen_fits
from sdft.model.llama import Llama

PROMPT_TOKENS = 8192            # prompts are prefilled together up to about this many tokens


class VarlenPrefill:
    """`PrefillAttention` of all prompts in one call, in half precision on a GPU."""

    def __init__(self, cache: KVCache, sequences: Sequence[int], lengths: Sequence[int], prefix: int = 0):
        self.cache, self.first, self.prefix, device = cache, sequences[0], prefix, cache.begins.device
        self.longest = max(lengths)
        self.bounds = bounds_of(lengths, device)
        self.lines = prompt_lines(cache, sequences, lengths, prefix)                            # (N, K)
        if prefix:
            self.k_bounds = bounds_of([prefix + length for length in lengths], device)
            # The keys of each prompt, as indices into (prefix, tokens of all prompts): the prefix, then its own tokens.
            starts = accumulate(lengths[:-1], initial=prefix)
            self.seen = torch.tensor([index for start, length in zip(starts, lengths, strict=True)
                                      for index in (*range(prefix), *range(start, start + length))], device=device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.lines, k, v)
        if not self.prefix:
            return varlen_attention(q, k, v, self.bounds, self.bounds, self.longest, self.longest)
        keys, values = self.cache.sequence(self.first, layer)           # the prefix is the same in every sequence
        k, v = (torch.cat((start[:, : self.prefix].transpose(0, 1), x))[self.seen]              # (M, K, C)
                for start, x in ((keys, k), (values, v)))
        return varlen_attention(q, k, v, self.bounds, self.k_bounds, self.longest, self.prefix + self.longest)


def prefill_attention(model: Llama) -> type[PrefillAttention] | type[VarlenPrefill]:
    """The attention of prompts on the model's device."""
    return VarlenPrefill if varlen_fits(model.dtype, model.device, model.config.head_dim) else PrefillAttention
