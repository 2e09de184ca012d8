"""Audit: what became of the rewrites, in numbers and examples; the part of measures.json called "audit".

    from sdft.distill import audit
    print(audit(records, rewrites, distilled, mixed, ratio=1.0, tokenizer=tokenizer))
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from sdft.data.records import Record
from sdft.distill.distilled import Distilled
from sdft.distill.mixing import changed_token_share, effective_share
from sdft.distill.rewriting import Rewrite
from sdft.tasks.scorers import rouge_l

EXAMPLES = 3           # accepted ones, and rejected ones of every reason


def audit(records: Sequence[Record], rewrites: Iterable[Rewrite], distilled: Sequence[Distilled],
          mixed: Sequence[Record], ratio: float, tokenizer) -> dict[str, Any]:
    """Count and show what `choose` and `mix` did.

    records, accepted, rejected: counts; reasons: why, the commonest first; nominal_ratio, effective_share,
    changed_token_share: see mix.py; tokens_original, tokens_distilled: of the answers trained on without and with
    distillation; rouge_l: mean F1 of an accepted rewrite against its reference (1: copied; None where none was
    accepted), rouge_l_written: of every rewrite; examples: some of both kinds.
    """
    accepted = [row for row in distilled if row.source == "rewrite"]
    rejected = [row for row in distilled if row.source != "rewrite"]
    written = {rewrite.id: rewrite.text for rewrite in rewrites}
    alike = [rouge_l(row.reference, written[row.id]) for row in distilled if row.id in written]
    return {
        "records": len(records), "accepted": len(accepted), "rejected": len(rejected),
        "reasons": dict(Counter(row.reason for row in rejected).most_common()),
        "nominal_ratio": ratio, "effective_share": effective_share(records, mixed),
        "changed_token_share": changed_token_share(records, mixed, tokenizer.encode),
        "tokens_original": _tokens(records, tokenizer), "tokens_distilled": _tokens(mixed, tokenizer),
        "rouge_l": fmean(rouge_l(row.reference, row.response) for row in accepted) if accepted else None,
        "rouge_l_written": fmean(alike) if alike else None,
        "examples": {"accepted": [_example(row, written) for row in accepted[:EXAMPLES]],
                     "rejected": [_example(row, written) for row in _first_of_each(rejected)]},
    }


def _tokens(records: Iterable[Record], tokenizer) -> int:
    return sum(len(tokenizer.encode(record.response)) for record in records)


def _first_of_each(rows: Iterable[Distilled]) -> list[Distilled]:
    """The first few rows of every reason."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        if seen[row.reason] < EXAMPLES:
            kept.append(row)
        seen[row.reason] += 1
    return kept


def _example(row: Distilled, written: dict[str, str]) -> dict[str, str]:
    return {"id": row.id, "instruction": row.instruction, "reference": row.reference,
            "rewrite": written.get(row.id, ""), "reason": row.reason}
