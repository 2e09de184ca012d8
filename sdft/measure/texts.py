"""Answers compared as texts: how long they are, and how much of the seed's wording they keep.

    from sdft.measure.texts import compare_texts
    print(compare_texts(rows, seed_rows)["rouge_l"])
"""
from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from sdft.measure.abilities import joined
from sdft.text.rouge import rouge_l


def compare_texts(rows: Sequence[dict[str, Any]], seed_rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lines of `evaluate` against the seed's to the same prompts, joined by id.

    length_mean, lengths: tokens of the answers; rouge_l: mean ROUGE-L F1 to the seed's answer (1: the same words in
    order; two empty answers are the same).
    """
    mine, seeds = joined(rows, seed_rows)
    lengths = [row["tokens"] for row in mine]
    same = [1.0 if row["output"] == other["output"] else rouge_l(other["output"], row["output"])
            for row, other in zip(mine, seeds, strict=True)]
    return {"length_mean": fmean(lengths), "lengths": lengths, "rouge_l": fmean(same)}
