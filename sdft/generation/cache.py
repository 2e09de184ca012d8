"""The static cache of keys and values, and the attention of prompts and of decoding steps over it.

Each sequence owns a contiguous range of slots. A token's slot is its position, and unused slots are at the end. So
sequences are independent, and the next prompt overwrites the slots of a finished sequence.

    sequence 0 │ p r e f i x p r o m p t r e s p · · · · │
    sequence 1 │ p r e f i x p r o m r e s p o n s e · · │
    sequence 2 │ p r e f i x p r o m p t s r · · · · · · │

All prompts share a prefix: it is computed once, in sequence 0, and copied. `PrefillAttention` writes the rest of each
prompt, `DecodeAttention` the new tokens of each step. The keys of a layer are one array (lines, C); a line is the key
of one sequence, one key/value head and one slot. Values are stored the same way, so that one indexed write stores all
new tokens. Attention is computed for a group of neighbouring sequences at once; each sees only its own slots.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from sdft.kernels.cached_attention import cache_bias, cached_attention, prompt_attention, prompt_bias
from sdft.model.config import LlamaConfig

BLOCK = 32             # slots are allocated and read in whole blocks, because a GPU's kernels need aligned sequences
GROUP = 16             # sequences that attend together, up to the slot that the longest of them has reached,
GPU_GROUP = 128        # and on a GPU, where fewer operations save more than fewer slots


@dataclass(frozen=True)
class Group:
    """Neighbouring sequences with the same number of slots, enough for the longest response among them."""

    first: int                     # index of the group's first sequence
    count: int                     # number of sequences
    slots: int                     # of each sequence
    begin: int                     # line of the first sequence's first head and slot


class KVCache:
    """Keys and values of every layer and sequence, allocated once.

    capacities: the slots that each sequence needs, in descending order. Sequences of similar length then share a
    group, and one very long prompt makes only its own group long.
    """

    def __init__(self, config: LlamaConfig, capacities: Sequence[int], dtype: torch.dtype, device: torch.device):
        self.heads = config.num_key_value_heads
        self.query_group = config.num_attention_heads // self.heads
        self.group_size = GPU_GROUP if device.type == "cuda" else GROUP
        self.groups: list[Group] = []
        lines = 0
        for first in range(0, len(capacities), self.group_size):
            group = Group(first, len(capacities[first : first + self.group_size]), blocks(capacities[first]), lines)
            self.groups.append(group)
            lines += group.count * self.heads * group.slots
        # Zeros: a masked slot's weight is 0, and 0 times an uninitialised NaN would be NaN.
        shape = (config.num_hidden_layers, lines, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        stretches = [(group.begin + index * self.heads * group.slots, group.slots)
                     for group in self.groups for index in range(group.count)]
        self.begins, self.slots = torch.tensor(stretches, device=device).view(-1, 2).unbind(1)  # of each sequence: (B,)

    def lines(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """The lines (N, K) of tokens at `positions` (N,) of `sequences` (N,), one for each head."""
        heads = torch.arange(self.heads, device=sequences.device)
        return (self.begins[sequences] + positions).unsqueeze(-1) + self.slots[sequences].unsqueeze(-1) * heads

    def write(self, layer: int, lines: Tensor, k: Tensor, v: Tensor) -> None:
        """Write keys and values (N, K, C) to `lines` (N, K)."""
        self.keys[layer][lines], self.values[layer][lines] = k, v

    def read(self, group: Group) -> tuple[Tensor, Tensor]:
        """A group's keys and values: views (L, sequences, K, slots, C)."""
        shape, lines = (group.count, self.heads, group.slots), group.count * self.heads * group.slots
        keys, values = (x.narrow(1, group.begin, lines).unflatten(1, shape) for x in (self.keys, self.values))
        return keys, values

    def sequence(self, index: int, layer: int | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """One sequence's keys and values in one layer, views (K, slots, C), or in all, (L, K, slots, C)."""
        group = self.groups[index // self.group_size]
        keys, values = self.read(group)
        return keys[layer, index - group.first], values[layer, index - group.first]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of sequence `source` to sequence `target`."""
        for old, new in zip(self.sequence(source), self.sequence(target), strict=True):
            new[:, :, :length] = old[:, :, :length]

    def spread(self, length: int) -> None:
        """Copy the first `length` slots of sequence 0 to every sequence."""
        prefix = [array[:, None, :, :length].clone() for array in self.sequence(0)]             # (L, 1, K, length, C)
        for group in self.groups:
            for old, new in zip(prefix, self.read(group), strict=True):
                new[:, :, :, :length] = old


def prompt_lines(cache: KVCache, sequences: Sequence[int], lengths: Sequence[int], prefix: int) -> Tensor:
    """The lines (N, K) of packed prompts, token by token; prompt i begins at slot `prefix` of sequences[i]."""
    tokens = np.repeat(sequences, lengths), np.concatenate([np.arange(prefix, prefix + length) for length in lengths])
    return cache.lines(*(torch.from_numpy(x).to(cache.begins.device) for x in tokens))


class PrefillAttention:
    """An `attend` for packed prompts: prompt i is written to sequences[i], after `prefix` slots that are filled."""

    def __init__(self, cache: KVCache, sequences: Sequence[int], lengths: Sequence[int], prefix: int = 0):
        self.cache, self.sequences, self.lengths, self.prefix = cache, list(sequences), list(lengths), prefix
        self.lines = prompt_lines(cache, sequences, lengths, prefix)                            # (N, K)
        self.biases = {length: prompt_bias(length, prefix + length, cache.keys.dtype, cache.keys.device)
                       for length in set(lengths)}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.lines, k, v)
        o = []
        for index, queries in zip(self.sequences, q.split(self.lengths), strict=True):          # queries: (t, H, C)
            t = len(queries)
            keys, values = (x[None, :, : self.prefix + t] for x in self.cache.sequence(index, layer))   # (1, K, T, C)
            o.append(prompt_attention(queries[None], keys, values, self.biases[t])[0])
        return torch.cat(o)                                                                     # (N, H, C)


class DecodeAttention:
    """An `attend` for the newest tokens of sequences 0…n-1: counts[b] tokens of sequence b, the last at ends[b] - 1.

    With `counts` None every sequence has one token, and `ends` only bounds what is read. Masks are the same in all
    layers, so they are made here, once a step. Where drafts are verified, the tokens of a group are padded to
    (sequences, t), t the largest count, and gathered again:

        a b c │ d │ e f   →   a b c
                              d · ·
                              e f ·
    """

    def __init__(self, cache: KVCache, positions: Tensor, ends: Sequence[int], counts: Sequence[int] | None = None):
        self.cache, device, n = cache, positions.device, len(ends)
        sequences, firsts = torch.arange(n, device=device), positions           # of each token; of each sequence
        sizes = [1] * n if counts is None else list(counts)
        starts = [0, *accumulate(sizes)]
        if counts is not None:
            sequences = sequences.repeat_interleave(torch.tensor(sizes, device=device))
            firsts = positions[torch.tensor(starts[:n], device=device)]
        self.lines = cache.lines(sequences, positions)                                          # (N, K)
        self.parts: list[tuple[slice, Tensor | None, torch.Size, Tensor, Tensor, Tensor]] = []
        for group in cache.groups[: -(-n // cache.group_size)]:
            members = slice(group.first, min(group.first + group.count, n))
            t, slots = max(sizes[members]), blocks(max(ends[members]))
            at = firsts[members].unsqueeze(1) + torch.arange(t, device=device)                  # (n', t), n' members
            bias = cache_bias(at, slots, cache.query_group, cache.keys.dtype)                   # (n', 1, t·G, slots)
            if device.type == "cuda":                           # its kernels need a bias for every head in memory
                bias = bias.repeat(1, cache.heads, 1, 1)                                        # (n', K, t·G, slots)
            keys, values = (x[:, : len(at), :, :slots] for x in cache.read(group))
            padded = None                                       # index of each token among n'·t
            if t > 1:
                indices = [b * t + i for b, size in enumerate(sizes[members]) for i in range(size)]
                padded = torch.tensor(indices, device=device)
            tokens = slice(starts[members.start], starts[members.stop])
            self.parts.append((tokens, padded, at.shape, keys, values, bias))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.lines, k, v)
        o = []
        for tokens, padded, shape, keys, values, bias in self.parts:
            queries = q[tokens]                                                                 # (tokens, H, C)
            if padded is not None:
                queries = queries.new_zeros(shape.numel(), *q.shape[1:]).index_copy_(0, padded, queries)
            part = cached_attention(queries.unflatten(0, shape), keys[layer], values[layer], bias).flatten(0, 1)
            o.append(part if padded is None else part[padded])                                  # (tokens, H, C)
        return o[0] if len(o) == 1 else torch.cat(o)                                            # (N, H, C)


def blocks(length: int) -> int:
    """Round `length` up to whole blocks of slots."""
    return (length + BLOCK - 1) // BLOCK * BLOCK
