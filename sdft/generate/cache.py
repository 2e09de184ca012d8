"""The static cache of keys and values, and the two ways a model attends while it generates.

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

from sdft.kernels.cached_attention import cache_bias, cached_attention, empty_keys, prompt_attention

BLOCK = 32             # attention reads whole blocks of so many slots: products of few sizes, which oneDNN plans once each
GROUP = 32             # rows that lie and are read together, as far as the longest of them reaches
DRAFTED = 8            # … and where drafts are read, as many tokens of each as of the longest draft among them


@dataclass(frozen=True)
class Rows:
    """A group of neighbouring rows whose arrays are as long as its longest response may become."""

    first: int                     # the group's first row
    keys: list[Tensor]             # of every layer: (rows, K, C, slots)
    values: list[Tensor]           # (rows, K, slots, C)

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
        self.groups = []
        for first in range(0, len(capacities), GROUP):
            n, slots = len(capacities[first : first + GROUP]), blocks(capacities[first])
            # Zeros: a masked slot's weight is 0, and 0 times an uninitialised NaN would be NaN.
            keys = [empty_keys(n, K, C, slots, dtype, device) for _ in range(L)]
            values = [torch.zeros(n, K, slots, C, dtype=dtype, device=device) for _ in range(L)]
            self.groups.append(Rows(first, keys, values))

    def row(self, place: int, layer: int) -> tuple[Tensor, Tensor]:
        """One row's keys (K, C, slots) and values (K, slots, C)."""
        group = self.groups[place // GROUP]
        return group.keys[layer][place - group.first], group.values[layer][place - group.first]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of row `source` to row `target`."""
        for layer in range(len(self.groups[0].keys)):
            for old, new, dim in zip(self.row(source, layer), self.row(target, layer), (2, 1), strict=True):
                new.narrow(dim, 0, length).copy_(old.narrow(dim, 0, length))

    def spread(self, length: int) -> None:
        """Copy the first `length` slots of row 0 to every row."""
        for layer in range(len(self.groups[0].keys)):
            keys, values = self.row(0, layer)
            for group in self.groups:
                group.keys[layer][..., :length] = keys[..., :length]
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
            keys[:, :, self.prefix : end] = k[document].permute(1, 2, 0)                        # (T, K, C) → (K, C, T)
            values[:, self.prefix : end] = v[document].transpose(0, 1)                          # (T, K, C) → (K, T, C)
            o[document] = prompt_attention(q[document], keys[..., :end], values[:, :end])
            start += length
        return o


class DecodeAttention:
    """An `attend` for the newest tokens of rows 0…n-1: counts[b] tokens of row b, packed, the last of them at ends[b] - 1.

    With `counts` None every row has one token, and `ends` only bounds what is read. What all layers share, the masks above
    all, is made here, once a step. With drafts, DRAFTED rows at a time are spread out to (rows, t) with t their
    largest count, and gathered again:

        row 0: a b c      →  a b c
        row 1: d             d · ·
        row 2: e f           e f ·
    """

    def __init__(self, cache: KVCache, positions: Tensor, ends: Sequence[int], counts: Sequence[int] | None = None):
        self.parts, start = [], 0
        for group in cache.groups[: (len(ends) + GROUP - 1) // GROUP]:
            n = min(len(ends) - group.first, len(group))
            drafted = counts is not None and max(counts[group.first : group.first + n]) > 1
            together = DRAFTED if drafted else GROUP
            for first in range(group.first, group.first + n, together):
                own = slice(first, min(first + together, group.first + n))
                end = start + (sum(counts[own]) if drafted else own.stop - own.start)
                self.parts.append(RowsStep(group, own, slice(start, end), positions[start:end], max(ends[own]),
                                           counts[own] if drafted else None, cache.query_group))
                start = end

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = [part(layer, q[part.tokens], k[part.tokens], v[part.tokens]) for part in self.parts]
        return o[0] if len(o) == 1 else torch.cat(o)                                            # (N, H, C)


class RowsStep:
    """What n neighbouring rows `own` of one group do in a step: their packed tokens, their positions, what is read."""

    def __init__(self, group: Rows, own: slice, tokens: slice, positions: Tensor, end: int,
                 counts: Sequence[int] | None, query_group: int):
        device, heads, n = positions.device, group.keys[0].shape[1], own.stop - own.start
        self.group, self.own = group, slice(own.start - group.first, own.stop - group.first)
        self.tokens, self.positions, self.slots, self.n = tokens, positions, blocks(end), n
        self.rows = torch.arange(n, device=device)                                              # of each token: (N,)
        self.t, self.cells, at = 1, None, positions
        if counts is not None and max(counts) > 1:
            self.t = max(counts)
            self.rows = self.rows.repeat_interleave(torch.tensor(counts, device=device))
            offsets = torch.cat([torch.arange(count) for count in counts]).to(device)
            self.cells = self.rows * self.t + offsets                                           # (N,) among n·t
            at = positions.new_zeros(n * self.t).index_copy_(0, self.cells, positions)
        self.bias = cache_bias(at.view(n, self.t), self.slots, heads, query_group, group.keys[0].dtype)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.group.keys[layer][self.own], self.group.values[layer][self.own]
        keys[self.rows, :, :, self.positions] = k                                               # (N, K, C)
        values[self.rows, :, self.positions] = v
        if self.cells is not None:
            q = q.new_zeros(self.n * self.t, *q.shape[1:]).index_copy_(0, self.cells, q)        # (N, H, C) → (n·t, H, C)
        q = q.reshape(self.n, self.t, *q.shape[1:])                                             # (n, t, H, C)
        o = cached_attention(q, keys[..., : self.slots], values[:, :, : self.slots], self.bias)
        o = o.flatten(0, 1)                                                                     # (n·t, H, C)
        return o if self.cells is None else o[self.cells]


def blocks(length: int) -> int:
    """Round `length` up to whole blocks of slots."""
    return (length + BLOCK - 1) // BLOCK * BLOCK
