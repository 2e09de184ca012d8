"""The distill room: the method of arXiv 2402.13669, steps 1 and 2, from records to training targets.

    records (x, y) ─rewrite→ ỹ ─choose→ ỹ or y, and why ─mix→ the training set        (audit: what became of them)

Reading order: rewrite.py → choose.py → mix.py, which are the method; then distilled.py, audit.py, and resume.py, which
keeps a journal from being continued by other settings. ("Self-distillation" also names the on-policy method of
arXiv 2601.19897, which trains on the student's own samples; it is not this one.)

    sdft distill --task passages --out runs/mine
"""
from sdft.distill.audit import audit
from sdft.distill.choose import Limits, choose
from sdft.distill.distilled import Distilled, read_distilled, write_distilled
from sdft.distill.mix import changed_token_share, effective_share, leave_out, mix
from sdft.distill.rewrite import Rewrite, rewrite_records

__all__ = ["Distilled", "Limits", "Rewrite", "audit", "changed_token_share", "choose", "effective_share", "leave_out",
           "mix", "read_distilled", "rewrite_records", "write_distilled"]
