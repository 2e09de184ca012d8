"""Mix: what share of the records may take the rewrite; the others keep the original answer.

The paper (arXiv 2402.13669) varies this share; its authors released no code for it, so how it is met is ours.

    nominal ratio    the share of records that *may* take it, as asked
    effective share  the share whose target in fact differs from the original: smaller, as rewrites are rejected, and
                     some equal the original. It can be very small (in the authors' own OpenFunctions file 236 of
                     2211), so it is always reported beside the ratio.
    changed tokens   of the target tokens, the share that the original answers do not have: what is new to train on

Which records may is decided by rank of a hash of seed and id: it does not depend on their order, and the records of a
smaller ratio are among those of a larger one.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sdft.data.records import Record
from sdft.distill.distilled import Distilled
from sdft.errors import SdftError
from sdft.tasks.scorers import longest_common_subsequence

OUTSIDE = "not in the mix"          # the reason in distilled.jsonl


def mix(records: Sequence[Record], distilled: Iterable[Distilled], ratio: float = 1.0, seed: int = 0) -> list[Record]:
    """Return the records with the chosen response in place of the original in `ratio` of them, in their order.

    Raises SdftError for a ratio outside [0, 1], and where a record has no line in `distilled`.
    """
    may = _may([record.id for record in records], ratio, seed)
    chosen = {row.id: row.response for row in distilled}
    missing = [record.id for record in records if record.id not in chosen]
    if missing:
        raise SdftError(f"{len(missing)} of {len(records)} records are not among the distilled ones (the first is "
                        f"{missing[0]}): distil again with the same data")
    return [replace(record, response=chosen[record.id]) if record.id in may else record for record in records]


def leave_out(distilled: Sequence[Distilled], ratio: float = 1.0, seed: int = 0) -> list[Distilled]:
    """The rows with the original back in those that `mix` leaves out: what `ratio` of them is to be trained on."""
    may = _may([row.id for row in distilled], ratio, seed)
    return [row if row.id in may or row.source == "original" else
            replace(row, response=row.reference, source="original", reason=OUTSIDE) for row in distilled]


def effective_share(records: Sequence[Record], mixed: Iterable[Record]) -> float:
    """The share of records whose target differs from the original answer by more than white space around it."""
    original = {record.id: record.response.strip() for record in records}
    changed = sum(record.response.strip() != original[record.id] for record in mixed)
    return changed / len(records) if records else 0.0


def changed_token_share(records: Sequence[Record], mixed: Sequence[Record],
                        encode: Callable[[str], list[int]]) -> float:
    """The share of target tokens that are changed: those outside the longest common subsequence of target and original.

    Σ (|ỹ'| − LCS(ỹ', y)) / Σ |ỹ'| over all records, in tokens of the answers without their end; 0 where all are kept,
    1 where no target has a token of its original. Records that keep the original count with their tokens.
    """
    original = {record.id: encode(record.response) for record in records}
    targets = {record.id: encode(record.response) for record in mixed}
    kept = sum(longest_common_subsequence(tokens, original[id]) for id, tokens in targets.items())
    total = sum(map(len, targets.values()))
    return 1 - kept / total if total else 0.0


def _may(ids: Iterable[str], ratio: float, seed: int) -> set[str]:
    """The ids that may take the rewrite."""
    if not 0 <= ratio <= 1:
        raise SdftError(f"mix ratio = {ratio}: expected a share from 0 (all original) to 1 (every accepted rewrite)")
    ranked = sorted(set(ids), key=lambda id: _rank(seed, id))
    return set(ranked[: round(ratio * len(ranked))])


def _rank(seed: int, id: str) -> str:
    return hashlib.sha256(f"{seed}\n{id}".encode()).hexdigest()
