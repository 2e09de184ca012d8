"""The static cache of keys and values, and the two ways a model attends while it generates; gpu.py has a GPU's for prompts.

Each row of the cache is one response under way, right-padded: a token's slot is its position, so a row needs no
knowledge of its neighbours, and a finished row's slots are simply written over by the next prompt.

    row    0 │ p r e f i x p r o m p t r e s p · · · · │     The prefix that all prompts share is computed once, in row 0,
    row    1 │ p r e f i x p r o m r e s p o n s e · · │     and copied to every row before anything else.
    row    2 │ p r e f i x p r o m p t s r · · · · · · │     `PrefillAttention` writes and reads the rest of whole prompts,
                                                             `DecodeAttention` what each row adds in one step.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdft.kernels.cached_attention import cache_bias, cached_attention, prompt_attention

BLOCK = 32             # slots are there, and read, in whole blocks: a GPU's kernels want aligned rows
GROUP = 16             # rows that lie and are read together, as far as the longest of them reaches,
GPU_GROUP = 128        # and on a GPU, where fewer operations are worth more than fewer slots


@dataclass(frozen=True)
class Rows:
    """A group of neighbouring rows whose arrays are as long as its longest response may become."""

    first: int                     # the group's first row
    keys: list[Tensor]             # of every layer: (rows, K, slots, C)
    values: list[Tensor]           # the same

    def __len__(self) -> int:
        return len(self.keys[0])


class KVCache:
    """Keys and values of every layer and row, allocated once, in groups of rows.

    capacities: the slots that each row needs, in descending order: rows of like length then share a group, and one very
    long prompt makes its own group long, not all of them.
    """

    def __init__(self, config, capacities: Sequence[int], dtype: torch.dtype, device: torch.device):
        K, C, L = config.num_key_value_heads, config.head_dim, config.num_hidden_layers
        self.query_group = config.num_attention_heads // K
        self.groups, self.together = [], GPU_GROUP if device.type == "cuda" else GROUP
        for first in range(0, len(capacities), self.together):
            n, slots = len(capacities[first : first + self.together]), blocks(capacities[first])
            # Zeros: a masked slot's weight is 0, and 0 times an uninitialised NaN would be NaN.
            keys, values = ([torch.zeros(n, K, slots, C, dtype=dtype, device=device) for _ in range(L)] for _ in range(2))
            self.groups.append(Rows(first, keys, values))

    def row(self, place: int, layer: int) -> tuple[Tensor, Tensor]:
        """One row's keys and values (K, slots, C)."""
        group = self.groups[place // self.together]
        return group.keys[layer][place - group.first], group.values[layer][place - group.first]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of row `source` to row `target`."""
        for layer in range(len(self.groups[0].keys)):
            for old, new in zip(self.row(source, layer), self.row(target, layer), strict=True):
                new[:, :length] = old[:, :length]

    def spread(self, length: int) -> None:
        """Copy the first `length` slots of row 0 to every row."""
        for layer in range(len(self.groups[0].keys)):
            keys, values = self.row(0, layer)
            for group in self.groups:
                group.keys[layer][:, :, :length] = keys[:, :length]
                group.values[layer][:, :, :length] = values[:, :length]


class PrefillAttention:
    """An `attend` for prompts, packed: document i goes to row rows[i], behind the `prefix` slots that stand there already."""

    def __init__(self, cache: KVCache, rows: Sequence[int], lengths: Sequence[int], prefix: int = 0):
        self.cache, self.rows, self.lengths, self.prefix = cache, list(rows), list(lengths), prefix

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o, start = torch.empty_like(q), 0
        for row, length in zip(self.rows, self.lengths, strict=True):
            keys, values = self.cache.row(row, layer)
            document, end = slice(start, start + length), self.prefix + length
            keys[:, self.prefix : end] = k[document].transpose(0, 1)                            # (T, K, C) → (K, T, C)
            values[:, self.prefix : end] = v[document].transpose(0, 1)
            o[document] = prompt_attention(q[document], keys[:, :end], values[:, :end])
            start += length
        return o


class DecodeAttention:
    """An `attend` for the newest tokens of rows 0…n-1: counts[b] tokens of row b, packed, the last of them at ends[b] - 1.

    With `counts` None every row has one token, and `ends` only bounds what is read. What all layers share, the masks above
    all, is made here, once a step. With drafts, the tokens of a group are spread out to (rows, t), t its largest count, and
    gathered again:

        row 0: a b c      →  a b c
        row 1: d             d · ·
        row 2: e f           e f ·
    """

    def __init__(self, cache: KVCache, positions: Tensor, ends: Sequence[int], counts: Sequence[int] | None = None):
        self.parts, start = [], 0
        for group in cache.groups[: (len(ends) + cache.together - 1) // cache.together]:
            own = slice(group.first, min(group.first + len(group), len(ends)))
            taken = [1] * (own.stop - own.start) if counts is None else counts[own]
            tokens = slice(start, start + sum(taken))
            self.parts.append(GroupStep(group, tokens, positions[tokens], taken, blocks(max(ends[own])), cache.query_group))
            start = tokens.stop

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = [part(layer, q[part.tokens], k[part.tokens], v[part.tokens]) for part in self.parts]
        return o[0] if len(o) == 1 else torch.cat(o)                                            # (N, H, C)


class GroupStep:
    """What the first rows of a group do in a step: counts[b] tokens of row b, packed, at `positions` (N,)."""

    def __init__(self, group: Rows, tokens: slice, positions: Tensor, counts: Sequence[int], slots: int, query_group: int):
        device, self.n, self.t = positions.device, len(counts), max(counts)
        self.group, self.tokens, self.positions, self.slots = group, tokens, positions, slots
        self.rows, self.cells, at = torch.arange(self.n, device=device), None, positions        # of each token: (N,)
        if self.t > 1:
            self.rows = self.rows.repeat_interleave(torch.tensor(counts, device=device))
            offsets = torch.cat([torch.arange(count) for count in counts]).to(device)
            self.cells = self.rows * self.t + offsets                                           # (N,) among n·t
            at = self._spread(positions)
        self.bias = cache_bias(at.view(self.n, self.t), slots, query_group, group.keys[0].dtype)
        if device.type == "cuda":                               # whose kernels read it as it lies
            self.bias = self.bias.repeat(1, group.keys[0].shape[1], 1, 1)                       # (n, K, G·t, slots)

    def _spread(self, x: Tensor) -> Tensor:
        """x (N, …) → (n·t, …), zeros where no token stands."""
        return x.new_zeros(self.n * self.t, *x.shape[1:]).index_copy_(0, self.cells, x)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.group.keys[layer][: self.n], self.group.values[layer][: self.n]
        keys[self.rows, :, self.positions] = k                                                  # (N, K, C)
        values[self.rows, :, self.positions] = v
        q = (q if self.cells is None else self._spread(q)).reshape(self.n, self.t, *q.shape[1:])        # (n, t, H, C)
        o = cached_attention(q, keys[:, :, : self.slots], values[:, :, : self.slots], self.bias).flatten(0, 1)
        return o if self.cells is None else o[self.cells]                                       # (N, H, C)


def blocks(length: int) -> int:
    """Round `length` up to whole blocks of slots."""
    return (length + BLOCK - 1) // BLOCK * BLOCK
