"""Mix: the share of records that may take the rewrite; the others keep the original answer.

The paper (arXiv 2402.13669) varies this share; its authors released no code for it, so the selection here is ours.

    nominal ratio    the share of records that *may* take the rewrite: a setting
    effective share  the share whose target differs from the original. It is smaller, since rewrites are rejected and
                     some equal the original (236 of 2211 differ in the authors' own OpenFunctions file), so it is
                     always reported with the nominal ratio.

Records are selected by the rank of a hash of seed and id. So the selection does not depend on their order, and a larger
ratio selects all records of a smaller one.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sdft.distill.distilled import Distilled
from sdft.errors import SdftError
from sdft.tasks.scorers import longest_common_subsequence


def mix(distilled: Sequence[Distilled], ratio: float = 1.0, seed: int = 0) -> list[Distilled]:
    """Put the original answer back in the records outside `ratio` of them: the result is the training set.

    Raises SdftError for a ratio outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise SdftError(f"mix ratio = {ratio}: expected a share from 0 (all original) to 1 (every accepted rewrite)")
    ranked = sorted({record.id for record in distilled},
                    key=lambda id: hashlib.sha256(f"{seed}\n{id}".encode()).hexdigest())
    selected = set(ranked[: round(ratio * len(ranked))])
    return [record if record.id in selected or record.source == "original" else
            replace(record, response=record.reference, source="original", reason="not in the mix")
            for record in distilled]


def effective_share(distilled: Sequence[Distilled]) -> float:
    """The share of records whose target differs from the original answer, white space at both ends aside."""
    changed = sum(record.response.strip() != record.reference.strip() for record in distilled)
    return changed / len(distilled) if distilled else 0.0


def changed_token_share(distilled: Iterable[Distilled], encode: Callable[[str], Sequence]) -> float:
    """The share of target tokens outside the longest common subsequence of target ỹ' and original y.

    Tokens are those of the answers without their end. Records that keep the original count too.
    """
    tokens = [(encode(record.response), encode(record.reference)) for record in distilled]
    kept = sum(longest_common_subsequence(target, original) for target, original in tokens)
    total = sum(len(target) for target, _ in tokens)
    return 1 - kept / total if total else 0.0               # Σ (|ỹ'| − LCS(ỹ', y)) / Σ |ỹ'|
