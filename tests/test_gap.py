"""NLL of the targets, packed, against one plain forward a record."""
from __future__ import annotations

import math

import pytest
import torch
from tiny_chat import VOCABULARY, byte_tokenizer, records, tiny_chat_model

import sdft.measure.gap as module
from sdft.errors import SdftError
from sdft.measure.gap import gap, gaps, target_nll
from sdft.text.chat import Example, encode_example
from sdft.text.templates import get_template


@pytest.fixture(scope="module")
def examples():
    form = get_template("plain")
    answers = [{"role": "assistant", "content": record.response * n} for n, record in enumerate(records(7), start=1)]
    return [encode_example(byte_tokenizer(), [*form.messages(record), answer], record.id)
            for record, answer in zip(records(7), answers, strict=True)]


def plain(model, example: Example) -> list[float]:
    """−log p of every target, from one forward over the record alone."""
    logits = model(torch.tensor([example.tokens]))[0].double().log_softmax(-1)
    return [-logits[i - 1, example.tokens[i]].item() for i in range(1, len(example.tokens)) if example.mask[i]]


@pytest.mark.parametrize(("pack", "rows"), [(4096, 128), (100, 3)])
def test_every_record_has_the_nll_it_has_alone(examples, monkeypatch, pack, rows):
    monkeypatch.setattr(module, "PACK", pack)
    monkeypatch.setattr(module, "ROWS", rows)
    model = tiny_chat_model()
    found = target_nll(model, examples)
    assert [row["id"] for row in found] == [example.id for example in examples]
    for row, example in zip(found, examples, strict=True):
        nlls = plain(model, example)
        assert row["tokens"] == len(nlls)
        assert row["nll"] == pytest.approx(sum(nlls) / len(nlls), abs=1e-5)      # fp32, logits of size 1 to 10


def test_the_mean_over_records_counts_every_token_once(examples):
    model = tiny_chat_model()
    nlls = [nll for example in examples for nll in plain(model, example)]
    found = gap(model, examples)
    assert found["tokens"] == len(nlls) and len(found["records"]) == 7
    assert found["nll"] == pytest.approx(sum(nlls) / len(nlls), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))


def test_sets_of_targets_for_the_same_prompts_have_the_gap_that_each_has_alone(examples, monkeypatch, capsys):
    """The second set lacks a record and holds one that does not fit; the prompts are shared in packs of any size."""
    others = [Example(e.id, [*e.tokens[:-4], 7, 8, *e.tokens[-4:]], [*e.mask[:-4], True, True, *e.mask[-4:]])
              for e in examples[1:]] + [Example("long", [1] * 600, [True] * 600)]
    model = tiny_chat_model()
    for pack in (4096, 150):
        monkeypatch.setattr(module, "PACK", pack)
        found = gaps(model, {"original": examples, "distilled": others})
        for name, alone in (("original", gap(model, examples)), ("distilled", gap(model, others[:-1]))):
            assert [row["id"] for row in found[name]["records"]] == [row["id"] for row in alone["records"]]
            assert found[name]["nll"] == pytest.approx(alone["nll"], abs=1e-5)
            assert found[name]["tokens"] == alone["tokens"]
    assert "gap, distilled: left out 1 of 7 records" in capsys.readouterr().err


def test_what_does_not_fit_or_has_no_target_is_told(examples, capsys):
    odd = [Example("long", [1] * 600, [True] * 600), Example("blank", [1, 2], [False, False])]
    found = target_nll(tiny_chat_model(), [*examples[:2], *odd])
    assert [row["id"] for row in found] == ["r0", "r1"]
    told = capsys.readouterr().err
    assert "left out 1 of 4 records: longer than 512 tokens" in told
    assert "left out 1 of 4 records: no token to learn" in told
    with pytest.raises(SdftError, match="no record"):
        target_nll(tiny_chat_model(), odd)


def test_a_model_that_knows_nothing_is_surprised_by_log_v(examples):
    model = tiny_chat_model()
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert gap(model, examples)["perplexity"] == pytest.approx(VOCABULARY, rel=1e-5)
