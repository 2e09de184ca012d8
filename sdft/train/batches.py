"""From examples to packed batches, and in which order an epoch takes them.

A batch is one row of tokens without padding. Each document's positions start at 0 again, attention stays inside it
(`sdft.kernels.attention`), and the label of a token is the one that follows it, where that one is to be learned:

    tokens      u1  u2  a1  a2  eos │ u1  a1  eos        u: the user's, a: the assistant's
    positions    0   1   2   3   4  │  0   1   2
    labels      -100 a1  a2 eos -100│ a1 eos -100        the last of a document predicts nothing: what follows it here
                                                         belongs to another record

The order follows from the seed and the epoch alone, so the number of the step *is* the position in the data.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.kernels.linear_cross_entropy import IGNORE
from sdft.text.chat import Example


@dataclass(frozen=True)
class Batch:
    """N packed tokens of whole examples, n of them with a label."""

    tokens: Tensor          # (N,)
    positions: Tensor       # (N,)
    labels: Tensor          # (N,) the next token where it is to be learned, else -100
    rows: Tensor            # (n,) where the labels are
    lengths: list[int]      # tokens of each document, Σ = N
    ids: list[str]          # its record

    @property
    def targets(self) -> int:
        """How many tokens are to be learned."""
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = (x.to(device, non_blocking=True) for x in (self.tokens, self.positions, self.labels, self.rows))
        return Batch(*moved, self.lengths, self.ids)


def pack(examples: Sequence[Example]) -> Batch:
    """Lay examples behind one another."""
    tokens = [token for example in examples for token in example.tokens]
    positions = [position for example in examples for position in range(len(example.tokens))]
    labels = []
    for example in examples:
        labels += [token if learned else IGNORE for token, learned in zip(example.tokens[1:], example.mask[1:])]
        labels.append(IGNORE)
    rows = [row for row, label in enumerate(labels) if label != IGNORE]
    return Batch(*(torch.tensor(x, dtype=torch.long) for x in (tokens, positions, labels, rows)),
                 [len(example.tokens) for example in examples], [example.id for example in examples])


def pack_within(examples: Sequence[Example], limit: int) -> list[Batch]:
    """Pack examples, in their order, into batches of at most `limit` tokens; a longer example gets its own."""
    groups: list[list[Example]] = []
    room = 0
    for example in examples:
        if len(example.tokens) > room or not groups:
            groups.append([])
            room = limit
        groups[-1].append(example)
        room -= len(example.tokens)
    return [pack(group) for group in groups]


def trainable(examples: Sequence[Example], longest: int) -> tuple[list[Example], dict[str, int]]:
    """Split off what cannot be trained on: return the rest and how many were left out, by reason.

    Nothing is ever cut to fit. Raises SdftError when nothing remains.
    """
    too_long, nothing = f"longer than {longest} tokens", "no token to learn"
    kept, left_out = [], {too_long: 0, nothing: 0}
    for example in examples:
        if len(example.tokens) > longest:
            left_out[too_long] += 1
        elif not any(example.mask[1:]):
            left_out[nothing] += 1
        else:
            kept.append(example)
    left_out = {reason: count for reason, count in left_out.items() if count}
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there were none"
        raise SdftError(f"no record to train on: expected at least one that fits and has a response, got "
                        f"{len(examples)} ({reasons}); raise max_length or give other records")
    return kept, left_out


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split examples at random into training and validation, the latter with `share` of them (at least one)."""
    if not share:
        return list(examples), []
    count = max(1, round(share * len(examples)))
    if count >= len(examples):
        raise SdftError(f"validation: holding out {share:.0%} of {len(examples)} records leaves none to train on")
    held = set(np.random.default_rng([seed, 1]).permutation(len(examples))[:count].tolist())
    return ([example for index, example in enumerate(examples) if index not in held],
            [example for index, example in enumerate(examples) if index in held])


def steps_per_epoch(examples: Sequence[Example], batch_size: int) -> int:
    """Optimiser steps in one pass; the last may be smaller."""
    return -(-len(examples) // batch_size)


def step_batches(examples: Sequence[Example], step: int, batch_size: int, limit: int, seed: int) -> list[Batch]:
    """The packed batches of optimiser step `step` (from 0, through all epochs)."""
    epoch, index = divmod(step, steps_per_epoch(examples, batch_size))
    order = np.random.default_rng([seed, 0, epoch]).permutation(len(examples))
    chosen = order[index * batch_size : (index + 1) * batch_size].tolist()
    return pack_within([examples[i] for i in chosen], limit)


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of every token and every mask: two runs with the same one trained on the same data."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.id, list(example.tokens), [int(m) for m in example.mask]]).encode())
    return digest.hexdigest()
