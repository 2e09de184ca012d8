"""Packed batches: examples concatenated into one sequence of tokens, without padding.

The positions of each document start at 0, and attention stays within it (`sdft.kernels.attention`). The label of a
token is the next token, if that is a target token:

    tokens      u1  u2  a1  a2  eos │ u1  a1  eos        u: the user's, a: the assistant's
    positions    0   1   2   3   4  │  0   1   2
    labels      -100 a1  a2 eos -100│ a1 eos -100        The last token has no label: the next one belongs to another
                                                         document.

Documents often share a prefix: a system text, a template, an instruction. A batch may store it once, as a segment that
several others continue. The function stays the same; the gradients of the shared tokens are summed.

    s1 s2 s3 │ u1 a1 eos │ u2 a2 eos                     the documents s1 s2 s3 u1 a1 eos and s1 s2 s3 u2 a2 eos
    parents: -1        0           0
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

SHORTEST = 16           # A shorter shared prefix costs more as a segment of its own than it saves.
STEP = 64               # On the CPU, a batch is padded to a multiple of this.


@dataclass(frozen=True)
class Batch:
    """N packed tokens of whole examples (documents), n of them with a label."""

    tokens: Tensor          # (N,)
    positions: Tensor       # (N,)
    labels: Tensor          # (N,) the next token if it is a target token, else -100
    rows: Tensor            # (n,) indices of the tokens with a label, document by document
    segments: list[int]     # number of tokens of each segment, Σ = N
    parents: list[int]      # index of the segment that each segment continues, or -1
    ids: list[str]          # id of each document's record
    lengths: list[int]      # number of tokens of each document, shared ones included
    counts: list[int]       # number of labels of each document, Σ = n

    @property
    def targets(self) -> int:
        """Number of target tokens."""
        return len(self.rows)

    def attention(self) -> DocumentAttention:
        """Return the `attend` of the model's forward pass."""
        return DocumentAttention(self.segments, self.parents)

    def filled(self) -> Batch:
        """Return the batch with N and n padded to multiples of `STEP`, if it is on the CPU.

        oneDNN compiles a product for every new size, 2 to 3 ms each, so sizes should recur. The padding tokens are a
        document at the end, without labels; the caller drops the results of the rows after the first n.
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
        """Return the batch with its tensors on `device`."""
        names = ("tokens", "positions", "labels", "rows")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


def pack(examples: Sequence[Example], share: bool = False) -> Batch:
    """Concatenate examples; with share=True, store a common prefix once."""
    tokens, positions, labels, segments, parents = (list[int]() for _ in range(5))
    rows: list[list[int]] = [[] for _ in examples]
    separate = [(index, 0, len(example.tokens), -1) for index, example in enumerate(examples)]
    for index, start, stop, parent in (_tree(examples) if share else separate):
        example = examples[index]
        for position in range(start, stop):
            if position + 1 < len(example.tokens) and example.mask[position + 1]:
                rows[index].append(len(labels))
                labels.append(example.tokens[position + 1])
            else:
                labels.append(IGNORE)
        tokens += example.tokens[start:stop]
        positions += range(start, stop)
        segments.append(stop - start)
        parents.append(parent)
    t, p, y, r = (torch.tensor(x, dtype=torch.long) for x in (tokens, positions, labels, list(chain(*rows))))
    return Batch(t, p, y, r, segments, parents, [example.id for example in examples],
                 [len(example.tokens) for example in examples], [len(x) for x in rows])


def _tree(examples: Sequence[Example]) -> list[tuple[int, int, int, int]]:
    """Return the segments of the examples' prefix tree, each after the one that it continues.

    A segment is the index of an example, the start and stop of its tokens, and the parent segment or -1.
    """
    segments: list[tuple[int, int, int, int]] = []
    contexts = [_context(example) for example in examples]

    def grow(group: list[int], start: int, parent: int) -> None:
        """Add the tokens from `start` on of the examples `group`, which are equal before it."""
        if len(group) == 1:
            segments.append((group[0], start, len(examples[group[0]].tokens), parent))
            return
        stop = common_prefix([contexts[index] for index in group])
        if stop - start >= SHORTEST:
            segments.append((group[0], start, stop, parent))
            start, parent = stop, len(segments) - 1
        branches: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index in group:                                 # one branch per next token; a target token is not shared
            shareable = len(contexts[index]) > stop
            branches[(0, contexts[index][stop]) if shareable else (1, index)].append(index)
        for branch in branches.values():
            grow(branch, start, parent)

    grow(list(range(len(examples))), 0, -1)
    return segments


def may_share(device: torch.device | str, dropout: float = 0.0) -> bool:
    """Whether prefixes may be shared: not on a GPU, whose attention kernel takes no tree, and not with dropout."""
    return str(device).partition(":")[0] == "cpu" and not dropout


def _context(example: Example) -> list[int]:
    """Return the leading tokens without a label, which other examples may share."""
    first_target = next(position for position, target in enumerate(example.mask) if target and position)
    return example.tokens[: max(0, first_target - 1)]


def pack_within(examples: Sequence[Example], limit: int, share: bool = False) -> list[Batch]:
    """Pack examples, in order, into batches of at most `limit` tokens; a longer example gets its own batch."""
    groups: list[list[Example]] = []
    room = 0
    for example in examples:
        size = len(example.tokens)
        if share and groups:
            shared = common_prefix([_context(groups[-1][-1]), _context(example)])
            size -= max(0, shared - SHORTEST)                               # these are certain to be stored once
        if size > room or not groups:
            groups.append([])
            room, size = limit, len(example.tokens)
        groups[-1].append(example)
        room -= size
    return [pack(group, share) for group in groups]


def trainable(examples: Sequence[Example], longest: int) -> tuple[list[Example], dict[str, int]]:
    """Return the examples that can be trained on, never truncated, and the number of skipped ones by reason."""
    fitting = [example for example in examples if len(example.tokens) <= longest]
    kept = [example for example in fitting if any(example.mask[1:])]
    left_out = {f"longer than {longest} tokens": len(examples) - len(fitting),
                "no target token": len(fitting) - len(kept)}
    left_out = {reason: count for reason, count in left_out.items() if count}
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "there were none"
        raise SdftError(f"no record to train on: expected at least one that fits and has a response, got "
                        f"{len(examples)} ({reasons}); raise max_length or choose other records")
    return kept, left_out


def fingerprint(examples: Sequence[Example]) -> str:
    """Return a hash of every id, token and mask, which identifies the training data."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.id, list(example.tokens), [int(m) for m in example.mask]]).encode())
    return digest.hexdigest()
