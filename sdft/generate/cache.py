"""The static cache of keys and values, and the two ways a model attends while it generates.

Each row of the cache is one response under way, right-padded: a token's slot is its position, so a row needs no
knowledge of its neighbours, and a finished row's slots are simply written over by the next prompt.

    row    0 │ p r o m p t r e s p · · · · │     `prefill` writes a prompt's keys and values and attends inside the prompt;
    row    1 │ p r o m r e s p o n s e · · │     `decode` writes one (or some) tokens a row and attends to the row's slots.
    row    2 │ p r o m p t s r · · · · · · │     Only the first `slots` columns that some row uses are ever read.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdft.kernels.attention import DocumentAttention
from sdft.kernels.cached_attention import cache_bias, cached_attention


class KVCache:
    """Keys (rows, K, C, slots) and values (rows, K, slots, C) of every layer, allocated once."""

    def __init__(self, config, rows: int, slots: int, dtype: torch.dtype, device: torch.device):
        K, C = config.num_key_value_heads, config.head_dim
        layers = range(config.num_hidden_layers)
        self.group = config.num_attention_heads // K
        # Zeros: a masked slot's weight is 0, and 0 times an uninitialised NaN would be NaN.
        self.keys = [torch.zeros(rows, K, C, slots, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(rows, K, slots, C, dtype=dtype, device=device) for _ in layers]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of row `source` to row `target`."""
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[target, :, :, :length] = keys[source, :, :, :length]
            values[target, :, :length] = values[source, :, :length]


class PrefillAttention:
    """An `attend` for whole prompts, packed: writes document i's keys and values to row rows[i] of the cache."""

    def __init__(self, cache: KVCache, rows: Sequence[int], lengths: Sequence[int]):
        self.cache, self.rows, self.lengths = cache, list(rows), list(lengths)
        self.documents = DocumentAttention(self.lengths)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        parts = zip(self.rows, self.lengths, k.split(self.lengths), v.split(self.lengths), strict=True)
        for row, length, k_doc, v_doc in parts:
            keys[row, :, :, :length] = k_doc.permute(1, 2, 0)                   # (T, K, C) → (K, C, T)
            values[row, :, :length] = v_doc.transpose(0, 1)                     # (T, K, C) → (K, T, C)
        return self.documents(layer, q, k, v)


class DecodeAttention:
    """An `attend` for one token a row: the token of row b stands at positions[b] and sees slots 0…positions[b].

    Only the first `slots` columns are read; every position lies below. Built once a step: all layers share the mask.
    """

    def __init__(self, cache: KVCache, positions: Tensor, slots: int):
        self.cache, self.positions, self.slots = cache, positions, slots
        self.rows = torch.arange(len(positions), device=positions.device)
        heads, dtype = cache.keys[0].shape[1], cache.keys[0].dtype
        self.bias = cache_bias(positions.unsqueeze(1), slots, heads, cache.group, dtype)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = len(self.rows)
        keys, values = self.cache.keys[layer][:n], self.cache.values[layer][:n]
        keys[self.rows, :, :, self.positions] = k                               # (B, K, C)
        values[self.rows, :, self.positions] = v
        o = cached_attention(q.unsqueeze(1), keys[..., : self.slots], values[:, :, : self.slots], self.bias)
        return o.squeeze(1)                                                     # (B, 1, H, C) → (B, H, C)
