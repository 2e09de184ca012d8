"""The static cache of keys and values, and the two ways a model attends while it generates; gpu.py has a GPU's for prompts.

Each row of the cache is one response under way, right-padded: a token's slot is its position, so a row needs no
knowledge of its neighbours, and a finished row's slots are simply written over by the next prompt.

    row    0 │ p r e f i x p r o m p t r e s p · · · · │     The prefix that all prompts share is computed once, in row 0,
    row    1 │ p r e f i x p r o m r e s p o n s e · · │     and copied to every row before anything else.
    row    2 │ p r e f i x p r o m p t s r · · · · · · │     `PrefillAttention` writes and reads the rest of whole prompts,
                                                             `DecodeAttention` what each row adds in one step.

A layer's keys are one array of lines, one for each row, key/value head and slot, and so are its values: a step writes all
its tokens by one operation, wherever their rows lie. Neighbouring rows are read together, as far as the longest of them
reaches, and a step parts them anew so that little is read in vain (`cheapest_runs`). Where few heads are attended faster
as one wide one (kernels/cached_attention.py), a line holds all heads of a slot.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np
import torch
from torch import Tensor

from sdft.generation.fast.drafts import MOST
from sdft.kernels.cached_attention import cache_bias, cached_attention, prompt_attention, prompt_bias
from sdft.model.io.loading import multiplies_bfloat16

BLOCK = 32             # slots are there, and prompts filled up, in whole blocks: a GPU's kernels want aligned rows
GROUP = 16             # rows that have as many slots as the first of them, so that they can be read together
RUN = 200              # slots that a thread reads while one more reading is started (two CPU cores, bf16, the 135M model)
GPU_GROUP = 128        # on a GPU, where fewer operations are worth more than fewer slots, a group is always read as a whole
QUERIES = 32           # the CPU's kernel reads K and V once for so many queries
FEW = 4                # key/value heads at most that lie as one: so many times the arithmetic is done


def attends_as_one(config, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether all key/value heads of a slot lie as one: where arithmetic is cheap, and all queries of a row fit one reading."""
    cheap = device.type == "cpu" and dtype == torch.bfloat16 and multiplies_bfloat16()
    return cheap and config.num_key_value_heads <= FEW and config.num_attention_heads * (1 + MOST) <= QUERIES


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

    `merged` is how many key/value heads lie as one, K or 1; `heads` is J = K / merged, the heads that attention then sees,
    and `width` is W = merged·C, that of each.
    """

    def __init__(self, config, capacities: Sequence[int], dtype: torch.dtype, device: torch.device):
        K, C, layers = config.num_key_value_heads, config.head_dim, config.num_hidden_layers
        self.query_group = config.num_attention_heads // K
        self.together = GPU_GROUP if device.type == "cuda" else GROUP
        self.merged, self.heads = (K, 1) if attends_as_one(config, dtype, device) else (1, K)
        self.head_dim, self.width = C, self.merged * C
        self.groups, lines = [], 0
        for first in range(0, len(capacities), self.together):
            group = Rows(first, len(capacities[first : first + self.together]), blocks(capacities[first]), lines)
            self.groups.append(group)
            lines += group.count * self.heads * group.slots
        # Zeros: a masked slot's weight is 0, and 0 times an uninitialised NaN would be NaN.
        self.keys, self.values = (torch.zeros(layers, lines, self.width, dtype=dtype, device=device) for _ in range(2))
        rows = [(group.begin + row * self.heads * group.slots, group.slots)
                for group in self.groups for row in range(group.count)]
        self.begins, self.slots = torch.tensor(rows, device=device).view(-1, 2).unbind(1)       # of each row: (B,)

    def lines(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Where tokens at `positions` (…) of `rows` (…) stand, for each of J heads, wide or not: (…, J)."""
        heads = torch.arange(self.heads, device=rows.device)
        return (self.begins[rows] + positions).unsqueeze(-1) + self.slots[rows].unsqueeze(-1) * heads

    def write(self, layer: int, lines: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values (N, K, C) at `lines` (N, J); indexed so, without a copy of them before."""
        for array, x in ((self.keys[layer], k), (self.values[layer], v)):
            array[lines] = x.reshape(*lines.shape, self.width)

    def gather(self, layer: int, lines: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values at `lines` (n, J, T), by heads: (n, K, T, C)."""
        keys, values = (array[layer].index_select(0, lines.flatten()).view(*lines.shape, -1)
                        for array in (self.keys, self.values))
        return self.by_heads(keys), self.by_heads(values)

    def by_heads(self, x: Tensor) -> Tensor:
        """Lines (…, J, T, W) as (…, K, T, C), a view."""
        return x.unflatten(-1, (self.merged, -1)).transpose(-3, -2).flatten(-4, -3)

    def read(self, first: int, count: int, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values of `count` rows of one group, from row `first`, as they lie: views (L, count, J, slots, W)."""
        group = self.groups[first // self.together]
        row, W = self.heads * group.slots, self.width
        begin = (group.begin + (first - group.first) * row) * W
        keys, values = (array.as_strided((len(array), count, self.heads, slots, W),
                                         (array.stride(0), row * W, group.slots * W, W, 1), begin)
                        for array in (self.keys, self.values))
        return keys, values

    def runs(self, ends: Sequence[int]) -> list[slice]:
        """Part the first rows, which need `ends` slots each, into runs to be read together, as far as their longest reaches."""
        if self.keys.is_cuda:
            return [slice(group.first, min(group.first + group.count, len(ends)))
                    for group in self.groups if group.first < len(ends)]
        return cheapest_runs(ends, self.together, self.heads, torch.get_num_threads())

    def row(self, place: int, layer: int) -> tuple[Tensor, Tensor]:
        """One row's keys and values (K, slots, C), views."""
        keys, values = self.read(place, 1, self.groups[place // self.together].slots)
        return self.by_heads(keys[layer, 0]), self.by_heads(values[layer, 0])

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of row `source` to row `target`."""
        for old, new in zip(self.read(source, 1, length), self.read(target, 1, length), strict=True):
            new.copy_(old)

    def spread(self, length: int) -> None:
        """Copy the first `length` slots of row 0 to every row."""
        first = [array.clone() for array in self.read(0, 1, length)]                            # (L, 1, J, length, W)
        for group in self.groups:
            for old, new in zip(first, self.read(group.first, group.count, length), strict=True):
                new.copy_(old)


def prompt_lines(cache: KVCache, rows: Sequence[int], lengths: Sequence[int], prefix: int) -> Tensor:
    """Where packed documents stand that go to `rows`, behind `prefix` slots: (N, J), token by token."""
    positions = np.concatenate([np.arange(prefix, prefix + length) for length in lengths])
    return cache.lines(*(torch.from_numpy(x).to(cache.begins.device) for x in (np.repeat(rows, lengths), positions)))


class PrefillAttention:
    """An `attend` for prompts, packed: document i goes to row rows[i], behind the `prefix` slots that stand there already.

    Neighbours of like length attend together, each filled up to the same whole blocks of tokens.
    """

    def __init__(self, cache: KVCache, rows: Sequence[int], lengths: Sequence[int], prefix: int = 0):
        self.cache, device, dtype = cache, cache.begins.device, cache.keys.dtype
        starts = np.array([0, *accumulate(lengths)])
        self.lines = prompt_lines(cache, rows, lengths, prefix)                                             # (N, J)
        self.packs = []
        for width, run in groupby(range(len(lengths)), key=lambda index: blocks(lengths[index])):
            run = list(run)
            place = np.arange(width)
            filled = (starts[run, None] + place).clip(max=starts[-1] - 1)                                   # (n, width)
            real = np.flatnonzero(place < np.array(lengths)[run, None])
            filled, real, of = (torch.from_numpy(x).to(device) for x in (filled, real, np.array(rows)[run, None]))
            # A filled place may lie behind its row's slots; what it holds is masked, so any slot will do.
            slots = torch.arange(prefix + width, device=device).minimum(cache.slots[of] - 1)                # (n, T)
            lines = cache.lines(of.expand_as(slots), slots).transpose(1, 2)                                 # (n, J, T)
            self.packs.append((filled, real, lines.contiguous(), prompt_bias(width, prefix + width, dtype, device)))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.lines, k, v)
        o = []
        for filled, real, lines, bias in self.packs:
            keys, values = self.cache.gather(layer, lines)                                                  # (n, K, T, C)
            queries = q.index_select(0, filled.flatten()).view(*filled.shape, *q.shape[1:])                 # (n, width, H, C)
            o.append(prompt_attention(queries, keys, values, bias).flatten(0, 1).index_select(0, real))
        return o[0] if len(o) == 1 else torch.cat(o)                                                        # (N, H, C)


class DecodeAttention:
    """An `attend` for the newest tokens of rows 0…n-1: counts[b] tokens of row b, packed, the last of them at ends[b] - 1.

    With `counts` None every row has one token, and `ends` only bounds what is read. What all layers share, the masks above
    all, is made here, once a step.
    """

    def __init__(self, cache: KVCache, positions: Tensor, ends: Sequence[int], counts: Sequence[int] | None = None):
        self.cache, self.parts, device, n = cache, [], positions.device, len(ends)
        rows, firsts = torch.arange(n, device=device), positions                                # of each token; of each row
        if counts is not None:
            rows = rows.repeat_interleave(torch.tensor(counts, device=device))
            firsts = positions[torch.tensor([0, *accumulate(counts)][:n], device=device)]
        self.lines = cache.lines(rows, positions)                                               # (N, J)
        each = cache.merged * cache.query_group                                                 # queries of a token and head
        for own in cache.runs(ends):
            t, slots = 1 if counts is None else max(counts[own]), blocks(max(ends[own]))
            at = firsts[own].unsqueeze(1) + torch.arange(t, device=device)                      # (rows, t)
            bias = cache_bias(at, slots, each, cache.keys.dtype)                                # (rows, 1, t·each, slots)
            if device.type == "cuda":                           # whose kernels read it as it lies
                bias = bias.repeat(1, cache.heads, 1, 1)                                        # (rows, K, t·G, slots)
            self.parts.append((*cache.read(own.start, len(at), slots), bias))
        self.layout = None
        if counts is not None or cache.merged > 1:
            self.layout = QueryLayout(cache, counts or [1] * n, [(bias.shape[0], bias.shape[2]) for *_, bias in self.parts])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.lines, k, v)
        if self.layout is None:
            queries = q.unflatten(1, (self.cache.heads, -1)).split([len(bias) for *_, bias in self.parts])
        else:
            queries = self.layout.spread(q)
        o = [cached_attention(own, keys[layer], values[layer], bias, self.cache.head_dim**-0.5)
             for own, (keys, values, bias) in zip(queries, self.parts, strict=True)]            # (rows, J, t·each, W) each
        if self.layout is not None:
            return self.layout.collect(o)                                                       # (N, H, C)
        return o[0].reshape(q.shape) if len(o) == 1 else torch.cat([one.reshape(-1, *q.shape[1:]) for one in o])


class QueryLayout:
    """How queries q (N, H, C) lie for attention where they are not as many for every row, or heads lie as one.

        q, packed    of a run, t = 3        of a wide head, merged = 3
        a b c        a b c                  a₀ · · │ · a₁ · │ · · a₂      each query in its own head's part
        d            d · ·                  d₀ · · │ · d₁ · │ · · d₂
        e f          e f ·                  …

    What stays empty (·) is zero, and what attention makes of a query that is none is not read.
    """

    def __init__(self, cache: KVCache, counts: Sequence[int], parts: Sequence[tuple[int, int]]):
        """parts: of each run how many rows it has, and how many queries each of them for one of J heads, t·each."""
        J, m, each = cache.heads, cache.merged, cache.merged * cache.query_group
        self.heads, device, dtype = J * each, cache.begins.device, cache.keys.dtype
        head = np.arange(J * each)
        j, own = head // each, head // cache.query_group % m    # of each query head its J-head, and its part there
        into, self.back, row, start = [], [], 0, 0
        for rows, queries in parts:
            count = np.array(counts[row : row + rows])
            b = np.repeat(np.arange(rows), count)[:, None]                                      # of each token its row,
            i = np.concatenate([np.arange(n) for n in count])[:, None]                          # and its place there
            query = i * each + head % each                                                      # (tokens, H)
            into.append((((b * J + j) * queries + query) * m + own + start).ravel())            # (rows, J, t·each, m)
            back = (((b * queries + query) * J + j) * m + own).ravel()                          # (rows, t·each, J, m)
            self.back.append(torch.from_numpy(back).to(device))
            row, start = row + rows, start + rows * J * queries * m
        self.into = torch.from_numpy(np.concatenate(into)).to(device)                           # (N·H,) lines
        self.space = torch.zeros(start, cache.head_dim, dtype=dtype, device=device)
        lines = self.space.split([rows * J * queries * m for rows, queries in parts])
        self.queries = [part.view(rows, J, queries, cache.width)
                        for part, (rows, queries) in zip(lines, parts, strict=True)]            # views of the space

    def spread(self, q: Tensor) -> list[Tensor]:
        """The queries (rows, J, t·each, W) of every run, valid until the next call."""
        self.space.index_copy_(0, self.into, q.reshape(-1, q.shape[-1]))
        return self.queries

    def collect(self, o: Sequence[Tensor]) -> Tensor:
        """(N, H, C) of what attention made of them; it lies as (rows, t·each, J, W) on the CPU."""
        C = self.space.shape[1]
        lines = [one.transpose(1, 2).reshape(-1, C).index_select(0, back) for one, back in zip(o, self.back, strict=True)]
        return torch.cat(lines).view(-1, self.heads, C)


def cheapest_runs(ends: Sequence[int], together: int, heads: int, threads: int) -> list[slice]:
    """Part rows into runs of neighbours that are soonest read; no run goes beyond its group of `together` rows.

    The threads share a run's rows and heads out among them. What is least is the sum over all runs of `RUN` and the slots
    that a thread reads, those of one of several heads as their share of a slot.
    """
    best = [(0, 0)]                                             # of the first i rows: the cost, and where the last run begins
    for behind in range(1, len(ends) + 1):
        longest, ways = 0, []
        for first in range(behind - 1, (behind - 1) // together * together - 1, -1):
            longest = max(longest, ends[first])
            shares = -((first - behind) * heads // threads)     # of rows and heads, rounded up
            ways.append((best[first][0] + RUN * heads + shares * longest, first))
        best.append(min(ways))
    runs, behind = [], len(ends)
    while behind:
        runs.append(slice(best[behind][1], behind))
        behind = runs[-1].start
    return runs[::-1]


def blocks(length: int) -> int:
    """Round `length` up to whole blocks of slots."""
    return (length + BLOCK - 1) // BLOCK * BLOCK
