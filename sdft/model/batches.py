"""From examples to packed batches, and in which order an epoch takes them.

A batch is one row of tokens without padding. Each document's positions start at 0 again, attention stays inside it
(`sdft.kernels.attention`), and the label of a token is the one that follows it, where that one is to be learned:

    tokens      u1  u2  a1  a2  eos │ u1  a1  eos        u: the user's, a: the assistant's
    positions    0   1   2   3   4  │  0   1   2
    labels      -100 a1  a2 eos -100│ a1 eos -100        the last of a document predicts nothing: what follows it here
                                                         belongs to another record

Prompts begin alike: with a system text, a template, an instruction. What several documents of a batch begin with is
laid once, as a segment that they all continue; it is the same function, with the gradients of the shared tokens summed.

    s1 s2 s3 │ u1 a1 eos │ u2 a2 eos                     the documents s1 s2 s3 u1 a1 eos and s1 s2 s3 u2 a2 eos
    parents: -1        0           0

The order follows from the seed and the epoch alone, so the number of the step *is* the position in the data.
"""
from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from sdft.data.chat import Example, common_prefix
from sdft.errors import SdftError
from sdft.kernels.attention import DocumentAttention
from sdft.kernels.linear_cross_entropy import IGNORE

SHORTEST = 16           # a shared beginning of fewer tokens costs more as a segment of its own than it saves
STEP = 64               # on the CPU, what a model computes at once is a multiple of so many rows


@dataclass(frozen=True)
class Batch:
    """N packed tokens of whole examples, n of them with a label."""

    tokens: Tensor          # (N,)
    positions: Tensor       # (N,)
    labels: Tensor          # (N,) the next token where it is to be learned, else -100
    rows: Tensor            # (n,) where the labels are, document by document
    segments: list[int]     # tokens of each segment, Σ = N,
    parents: list[int]      # and the segment that it continues, -1 for none
    ids: list[str]          # each document's record,
    lengths: list[int]      # its tokens, shared ones included,
    counts: list[int]       # and its labels, Σ = n

    @property
    def targets(self) -> int:
        """How many tokens are to be learned."""
        return len(self.rows)

    def attention(self) -> DocumentAttention:
        """Who sees whom: the `attend` of the model's forward pass."""
        return DocumentAttention(self.segments, self.parents)

    def filled(self) -> Batch:
        """The same with N and n filled up to multiples of `STEP`, where that is faster: on the CPU.

        oneDNN compiles a product for every size that it has not met, 2 to 3 ms each, so sizes should recur. What fills
        is a document of its own that nobody reads, at the end; rows beyond n are there to be cut off.
        """
        if self.tokens.device.type != "cpu":
            return self
        extra = -len(self.tokens) % STEP
        rows = F.pad(self.rows, (0, -len(self.rows) % STEP), value=len(self.tokens) + extra - 1)
        if not extra:
            return replace(self, rows=rows)
        return replace(self, tokens=F.pad(self.tokens, (0, extra)), labels=F.pad(self.labels, (0, extra), value=IGNORE),
                       positions=torch.cat((self.positions, torch.arange(extra))), rows=rows,
                       segments=[*self.segments, extra], parents=[*self.parents, -1])

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        names = ("tokens", "positions", "labels", "rows")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def pack(examples: Sequence[Example], share: bool = False) -> Batch:
    """Lay examples behind one another; with `share`, what several of them begin with only once."""
    tokens: list[int] = []
    positions: list[int] = []
    labels: list[int] = []
    segments: list[int] = []
    parents: list[int] = []
    rows: dict[int, list[int]] = {index: [] for index in range(len(examples))}
    for index, start, stop, parent in (_tree(examples) if share else _apart(examples)):
        example = examples[index]
        for place in range(start, stop):
            if place + 1 < len(example.tokens) and example.mask[place + 1]:
                rows[index].append(len(labels))
                labels.append(example.tokens[place + 1])
            else:
                labels.append(IGNORE)
        tokens += example.tokens[start:stop]
        positions += range(start, stop)
        segments.append(stop - start)
        parents.append(parent)
    tensors = (torch.tensor(x, dtype=torch.long) for x in (tokens, positions, labels, list(chain(*rows.values()))))
    return Batch(*tensors, segments, parents, [example.id for example in examples],
                 [len(example.tokens) for example in examples], [len(own) for own in rows.values()])


Segment = tuple[int, int, int, int]         # tokens [start, stop) of an example (its index), and the parent segment


def _apart(examples: Sequence[Example]) -> list[Segment]:
    return [(index, 0, len(example.tokens), -1) for index, example in enumerate(examples)]


def _tree(examples: Sequence[Example]) -> list[Segment]:
    """The prefix tree of the examples, every segment behind the one that it continues."""
    segments: list[Segment] = []
    unlearned = [_unlearned(example) for example in examples]

    def grow(group: list[int], start: int, parent: int) -> None:
        """Lay what the examples `group`, alike up to `start`, hold from there on."""
        if len(group) == 1:
            segments.append((group[0], start, len(examples[group[0]].tokens), parent))
            return
        stop = common_prefix([unlearned[index] for index in group])
        if stop - start >= SHORTEST:
            segments.append((group[0], start, stop, parent))
            start, parent = stop, len(segments) - 1
        branches: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in group:                                 # by the token that follows, where it may be shared at all
            shareable = len(unlearned[index]) > stop
            branches[(0, unlearned[index][stop]) if shareable else (1, index)].append(index)
        for branch in branches.values():
            grow(branch, start, parent)

    grow(list(range(len(examples))), 0, -1)
    return segments


def may_share(device: torch.device | str, dropout: float = 0.0) -> bool:
    """Not on a GPU, whose attention kernel knows no tree, nor where each record draws its own dropout."""
    return str(device).partition(":")[0] == "cpu" and not dropout


def _unlearned(example: Example) -> list[int]:
    """Its first tokens, as far as they have no label, and so may stand for those of other examples."""
    return example.tokens[: max(0, next(place for place, learned in enumerate(example.mask) if learned and place) - 1)]


def pack_within(examples: Sequence[Example], limit: int, share: bool = False) -> list[Batch]:
    """Pack examples, in their order, into batches of at most `limit` tokens; a longer example gets its own."""
    groups: list[list[Example]] = []
    room = 0
    for example in examples:
        size = len(example.tokens)
        if share and groups:
            alike = common_prefix([_unlearned(groups[-1][-1]), _unlearned(example)])
            size -= max(0, alike - SHORTEST)                                # what is certain not to be laid again
        if size > room or not groups:
            groups.append([])
            room, size = limit, len(example.tokens)
        groups[-1].append(example)
        room -= size
    return [pack(group, share) for group in groups]


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


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of every token and every mask: two runs with the same one trained on the same data."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.id, list(example.tokens), [int(m) for m in example.mask]]).encode())
    return digest.hexdigest()
