"""Audit: count and show what happened to the rewrites; the part "audit" of measures.json.

    from sdft.distill import audit
    print(audit(rewrites, distilled, ratio=1.0, tokenizer=tokenizer))
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from sdft.distill.distilled import Distilled
from sdft.distill.mixing import changed_token_share, effective_share
from sdft.distill.rewriting import Rewrite
from sdft.results import Audit, AuditExample
from sdft.tasks.scorers import rouge_l
from sdft.tokenizers.tokenizer import Tokenizer

EXAMPLES = 3           # of accepted rewrites, and of rejected ones for each reason


def audit(rewrites: Iterable[Rewrite], distilled: Sequence[Distilled], ratio: float, tokenizer: Tokenizer) -> Audit:
    """Count and show what `choose` and `mix` did to `rewrites`; `ratio` is the one given to `mix`."""
    accepted = [record for record in distilled if record.source == "rewrite"]
    rejected = [record for record in distilled if record.source != "rewrite"]
    texts = {rewrite.id: rewrite.text for rewrite in rewrites}
    written = [rouge_l(record.reference, texts[record.id]) for record in distilled if record.id in texts]
    reasons: Counter[str] = Counter()
    shown = []
    for record in rejected:
        reasons[record.reason] += 1
        shown += [record] if reasons[record.reason] <= EXAMPLES else []
    return {
        "records": len(distilled), "accepted": len(accepted), "rejected": len(rejected),
        "reasons": dict(reasons.most_common()), "nominal_ratio": ratio, "effective_share": effective_share(distilled),
        "changed_token_share": changed_token_share(distilled, tokenizer.encode),
        "tokens_original": sum(len(tokenizer.encode(record.reference)) for record in distilled),
        "tokens_distilled": sum(len(tokenizer.encode(record.response)) for record in distilled),
        "rouge_l": fmean(rouge_l(record.reference, record.response) for record in accepted) if accepted else None,
        "rouge_l_written": fmean(written) if written else None,
        "examples": {"accepted": [_example(record, texts) for record in accepted[:EXAMPLES]],
                     "rejected": [_example(record, texts) for record in shown]},
    }


def _example(record: Distilled, texts: dict[str, str]) -> AuditExample:
    return {"id": record.id, "instruction": record.instruction, "reference": record.reference,
            "rewrite": texts.get(record.id, ""), "reason": record.reason}
