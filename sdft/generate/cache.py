"""The static cache of keys and values, and the two ways a model attends while it generates; gpu.py has a GPU's for prompts.

Each row of the cache is one response under way, right-padded: a token's slot is its position, so a row needs no
knowledge of its neighbours, and a finished row's slots are simply written over by the next prompt.

    row    0 │ p r e f i x p r o m p t r e s p · · · · │     The prefix that all prompts share is computed once, in row 0,
    row    1 │ p r e f i x p r o m r e s p o n s e · · │     and copied to every row before anything else.
    row    2 │ p r e f i x p r o m p t s r · · · · · · │     `PrefillAttention` writes and reads the rest of whole prompts,
                                                             `DecodeAttention` what each row adds in one step.

A layer's keys are one array of lines, one for each row, key/value head and slot, and so are its values: a step writes all
its tokens by one operation, wherever their rows lie. Neighbouring rows are read together, as a group.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
import torch
from torch import Tensor

from sdft.kernels.cached_attention import cache_bias, cached_attention, prompt_attention, prompt_bias

BLOCK = 32             # slots are there and read, and prompts filled up, in whole blocks: a GPU's kernels want aligned rows
GROUP = 16             # rows that lie and are read together, as far as the longest of them reaches,
GPU_GROUP = 128        # and on a GPU, where fewer operations are worth more than fewer slots


@dataclass(frozen=True)
class Rows:
    """A group of neighbouring rows, all as long as the longest response among them may become."""

    first: int                     # the group's first row
    count: int
    slots: int                     # of each row
    begin: int                     # the line of its first row's first head and slot


class KVCache:
    """Keys and values of every layer and row, allocated once.

    capacities: the slots that each row needs, in descending order: rows of like length then share a group, and one very
    long prompt makes its own group long, not all of them.
    """

    def __init__(self, config, capacities: Sequence[int], dtype: torch.dtype, device: torch.device):
        self.heads, self.width, layers = config.num_key_value_heads, config.head_dim, config.num_hidden_layers
        self.query_group = config.num_attention_heads // self.heads
        self.groups, self.together, lines = [], GPU_GROUP if device.type == "cuda" else GROUP, 0
        for first in range(0, len(capacities), self.together):
            group = Rows(first, len(capacities[first : first + self.together]), blocks(capacities[first]), lines)
            self.groups.append(group)
            lines += group.count * self.heads * group.slots
        # Zeros: a masked slot's weight is 0, and 0 times an uninitialised NaN would be NaN.
        self.keys, self.values = ([torch.zeros(lines, self.width, dtype=dtype, device=device) for _ in range(layers)]
                                  for _ in range(2))
        rows = [(group.begin + row * self.heads * group.slots, group.slots)
                for group in self.groups for row in range(group.count)]
        self.begins, self.slots = torch.tensor(rows, device=device).view(-1, 2).unbind(1)       # of each row: (B,)

    def lines(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Where tokens at `positions` (…) of `rows` (…) stand, for each head: (…, K)."""
        heads = torch.arange(self.heads, device=rows.device)
        return (self.begins[rows] + positions).unsqueeze(-1) + self.slots[rows].unsqueeze(-1) * heads

    def write(self, layer: int, lines: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values (N, K, C) at `lines` (N, K)."""
        for array, x in ((self.keys[layer], k), (self.values[layer], v)):
            if x.is_cuda:                                       # one kernel, where the other form copies x first
                array[lines] = x
            else:
                array.index_copy_(0, lines.flatten(), x.reshape(-1, self.width))

    def read(self, layer: int, group: Rows) -> tuple[Tensor, Tensor]:
        """A group's keys and values (rows, K, slots, C), as they lie."""
        shape, end = (group.count, self.heads, group.slots, self.width), group.begin + group.count * self.heads * group.slots
        return self.keys[layer][group.begin : end].view(shape), self.values[layer][group.begin : end].view(shape)

    def row(self, place: int, layer: int) -> tuple[Tensor, Tensor]:
        """One row's keys and values (K, slots, C)."""
        group = self.groups[place // self.together]
        keys, values = self.read(layer, group)
        return keys[place - group.first], values[place - group.first]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of row `source` to row `target`."""
        for layer in range(len(self.keys)):
            for old, new in zip(self.row(source, layer), self.row(target, layer), strict=True):
                new[:, :length] = old[:, :length]

    def spread(self, length: int) -> None:
        """Copy the first `length` slots of row 0 to every row."""
        for layer in range(len(self.keys)):
            first = [array[:, :length].clone() for array in self.row(0, layer)]
            for group in self.groups:
                for old, new in zip(first, self.read(layer, group), strict=True):
                    new[:, :, :length] = old


def prompt_lines(cache: KVCache, rows: Sequence[int], lengths: Sequence[int], prefix: int) -> Tensor:
    """Where packed documents stand that go to `rows`, behind `prefix` slots: (N, K), token by token."""
    positions = np.concatenate([np.arange(prefix, prefix + length) for length in lengths])
    return cache.lines(*(torch.from_numpy(x).to(cache.begins.device) for x in (np.repeat(rows, lengths), positions)))


class PrefillAttention:
    """An `attend` for prompts, packed: document i goes to row rows[i], behind the `prefix` slots that stand there already.

    Neighbours of like length attend together, each filled up to the same whole blocks of tokens.
    """

    def __init__(self, cache: KVCache, rows: Sequence[int], lengths: Sequence[int], prefix: int = 0):
        self.cache, device, dtype = cache, cache.begins.device, cache.keys[0].dtype
        starts = np.array([0, *accumulate(lengths)])
        self.lines = prompt_lines(cache, rows, lengths, prefix)                                             # (N, K)
        self.runs = []
        for width, run in groupby(range(len(lengths)), key=lambda index: blocks(lengths[index])):
            run = list(run)
            place = np.arange(width)
            filled = (starts[run, None] + place).clip(max=starts[-1] - 1)                                   # (n, width)
            real = np.flatnonzero(place < np.array(lengths)[run, None])
            filled, real, of = (torch.from_numpy(x).to(device) for x in (filled, real, np.array(rows)[run, None]))
            # A filled place may lie behind its row's slots; what it holds is masked, so any slot will do.
            slots = torch.arange(prefix + width, device=device).minimum(cache.slots[of] - 1)                # (n, T)
            lines = cache.lines(of.expand_as(slots), slots).transpose(1, 2)                                 # (n, K, T)
            self.runs.append((filled, real, lines.contiguous(), prompt_bias(width, prefix + width, dtype, device)))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.lines, k, v)
        o = []
        for filled, real, lines, bias in self.runs:
            keys, values = (array[layer].index_select(0, lines.flatten()).view(*lines.shape, -1)            # (n, K, T, C)
                            for array in (self.cache.keys, self.cache.values))
            queries = q.index_select(0, filled.flatten()).view(*filled.shape, *q.shape[1:])                 # (n, width, H, C)
            o.append(prompt_attention(queries, keys, values, bias).flatten(0, 1).index_select(0, real))
        return o[0] if len(o) == 1 else torch.cat(o)                                                        # (N, H, C)


class DecodeAttention:
    """An `attend` for the newest tokens of rows 0…n-1: counts[b] tokens of row b, packed, the last of them at ends[b] - 1.

    With `counts` None every row has one token, and `ends` only bounds what is read. What all layers share, the masks above
    all, is made here, once a step. With drafts, the tokens of a group are laid out as (rows, t), t its largest count, and
    gathered again; what fills up is the row's last token once more:

        row 0: a b c      →  a b c
        row 1: d             d d d
        row 2: e f           e f f
    """

    def __init__(self, cache: KVCache, positions: Tensor, ends: Sequence[int], counts: Sequence[int] | None = None):
        self.cache, self.parts, device, n = cache, [], positions.device, len(ends)
        rows, firsts, self.source = torch.arange(n, device=device), positions, None             # of each token; of each row
        if counts is not None:
            rows = rows.repeat_interleave(torch.tensor(counts, device=device))
            firsts = positions[torch.tensor([0, *accumulate(counts)][:n], device=device)]
        self.lines = cache.lines(rows, positions)                                               # (N, K)
        for group in cache.groups[: (n + cache.together - 1) // cache.together]:
            own = slice(group.first, min(group.first + group.count, n))
            t, slots = 1 if counts is None else max(counts[own]), blocks(max(ends[own]))
            at = firsts[own].unsqueeze(1) + torch.arange(t, device=device)                      # (rows, t)
            bias = cache_bias(at, slots, cache.query_group, cache.keys[0].dtype)
            if device.type == "cuda":                           # whose kernels read it as it lies
                bias = bias.repeat(1, cache.heads, 1, 1)                                        # (rows, K, G·t, slots)
            self.parts.append((group, len(at), slots, bias))
        if counts is not None:
            laid_out = [(count, bias.shape[-2] // cache.query_group) for _, count, _, bias in self.parts]
            layout = query_layout(counts, laid_out, cache.heads, cache.query_group)
            self.source, self.target = (index.to(device) for index in layout)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.lines, k, v)
        K, (_, H, C) = k.shape[1], q.shape
        if self.source is None:
            queries = q.unflatten(1, (K, -1))                                                   # (n, K, G, C)
        else:
            queries = q.reshape(-1, C).index_select(0, self.source)                             # (Σ rows·K·G·t, C)
        o, start = [], 0
        for group, rows, slots, bias in self.parts:
            keys, values = (x[:rows, :, :slots] for x in self.cache.read(layer, group))
            end = start + (rows if self.source is None else rows * K * bias.shape[-2])
            one = cached_attention(queries[start:end].view(rows, K, -1, C), keys, values, bias)         # (rows, K, G·t, C)
            o.append(one.reshape(-1, H, C) if self.source is None else one.transpose(1, 2).reshape(-1, C))
            start = end
        o = o[0] if len(o) == 1 else torch.cat(o)
        return o if self.source is None else o.index_select(0, self.target).view_as(q)          # (N, H, C)


def query_layout(counts: Sequence[int], parts: Sequence[tuple[int, int]], K: int, G: int) -> tuple[Tensor, Tensor]:
    """Where the queries of attention come from in q (N·H, C), and where in what comes out of it q's own then stand.

    parts: of each group how many rows it has and the largest of their counts, t. Its queries lie as (rows, K, G, t); what
    comes out of `scaled_dot_product_attention` lies as (rows, G, t, K).
    """
    ends, heads, row, start, sources, targets = np.cumsum(counts), np.arange(K * G).reshape(K, G, 1), 0, 0, [], []
    for rows, t in parts:
        count, end, i = np.array(counts[row : row + rows])[:, None], ends[row : row + rows, None], np.arange(t)
        token = end - count + np.minimum(i, count - 1)                                          # (rows, t)
        sources.append((token[:, None, None] * K * G + heads).ravel())                          # (rows, K, G, t)
        places = np.arange(start, start + rows * G * t * K).reshape(rows, G, t, K).transpose(0, 2, 3, 1)
        targets.append(places[i < count].ravel())                                               # token by token (K, G)
        row, start = row + rows, start + rows * G * t * K
    return torch.from_numpy(np.concatenate(sources)), torch.from_numpy(np.concatenate(targets))


def blocks(length: int) -> int:
    """Round `length` up to whole blocks of slots."""
    return (length + BLOCK - 1) // BLOCK * BLOCK
