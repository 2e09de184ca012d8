"""The data side of the method, steps 1 and 2 of arXiv 2402.13669: from records to training targets.

    records (x, y) ─rewrite→ ỹ ─choose→ ỹ or y, and why ─mix→ the training set        (audit: counts and examples)

May import: kernels, tokenizers, data, tasks, model, generation. Start at rewriting.py, then filters.py and mixing.py;
distilled.py holds the chosen answers and their file, resume.py resumes a journal. ("Self-distillation" is also the name
of the on-policy method of arXiv 2601.19897, which trains on the student's own samples; it is another method.)
"""
from sdft.distill.auditing import audit
from sdft.distill.distilled import Distilled, read_distilled, write_distilled
from sdft.distill.filters import Limits, choose
from sdft.distill.mixing import changed_token_share, effective_share, mix
from sdft.distill.rewriting import Rewrite, rewrite

__all__ = ["Distilled", "Limits", "Rewrite", "audit", "changed_token_share", "choose", "effective_share", "mix",
           "read_distilled", "rewrite", "write_distilled"]
