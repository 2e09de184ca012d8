"""The gap from packed micro-batches against one plain forward pass per record."""
from __future__ import annotations

import math
from statistics import median

import pytest
import torch
from tiny_chat import VOCABULARY, byte_tokenizer, records, tiny_chat_model

import sdft.measure.outputs.gap as module
from sdft.data.chat import Example, encode_example
from sdft.data.templates import get_template
from sdft.errors import SdftError
from sdft.measure.outputs.gap import gap, gaps, measure_gap, token_map, token_rank
from sdft.measure.statistics import by_position


@pytest.fixture(scope="module")
def examples():
    form = get_template("plain")
    answers = [{"role": "assistant", "content": record.response * n} for n, record in enumerate(records(7), start=1)]
    return [encode_example(byte_tokenizer(), [*form.messages(record), answer], record.id)
            for record, answer in zip(records(7), answers, strict=True)]


def logprobs(model, example: Example) -> list[tuple[torch.Tensor, int]]:
    """log p over the vocabulary at every target, and the target, from one forward pass over the record alone."""
    logits = model(torch.tensor([example.tokens]))[0].double().log_softmax(-1)
    return [(logits[i - 1], example.tokens[i]) for i in range(1, len(example.tokens)) if example.mask[i]]


def plain(model, example: Example) -> list[float]:
    """−log p of every target token."""
    return [-row[target].item() for row, target in logprobs(model, example)]


def greedy(model, example: Example) -> Example:
    """The same record; every second target is the most probable token there."""
    tokens = list(example.tokens)
    for position, is_target in enumerate(example.mask):
        if is_target and position % 2:
            tokens[position] = model(torch.tensor([tokens[:position]]))[0, -1].argmax().item()
    return Example(example.id, tokens, example.mask)


def lengthened(examples, by: int):
    """The same records, with `by` tokens inserted before the last four of each target."""
    return [Example(e.id, [*e.tokens[:-4], *range(7, 7 + by), *e.tokens[-4:]],
                    [*e.mask[:-4], *[True] * by, *e.mask[-4:]]) for e in examples]


@pytest.mark.parametrize(("pack", "rows"), [(4096, 128), (100, 3)])
def test_every_record_has_the_nll_it_has_alone(examples, monkeypatch, pack, rows):
    monkeypatch.setattr("sdft.measure.passes.PACK", pack)
    monkeypatch.setattr(module, "ROWS", rows)
    model = tiny_chat_model()
    found = gap(model, examples)["records"]
    assert [row["id"] for row in found] == [example.id for example in examples]
    for row, example in zip(found, examples, strict=True):
        nlls = plain(model, example)
        assert row["tokens"] == len(nlls)
        assert row["nll"] == pytest.approx(sum(nlls) / len(nlls), abs=1e-5)      # fp32, logits of size 1 to 10


def test_measure_gap_is_the_gap_of_the_records_as_they_are_trained_on():
    model, form = tiny_chat_model(), get_template("plain")
    for chat in (None, "zephyr"):
        encoded = [encode_example(byte_tokenizer(), [*form.messages(record),
                                                     {"role": "assistant", "content": record.response}], chat=chat)
                   for record in records(3)]
        nlls = [nll for example in encoded for nll in plain(model, example)]
        measured = measure_gap(model, byte_tokenizer(), records(3), "plain", chat)
        assert measured["nll"] == pytest.approx(sum(nlls) / len(nlls), abs=1e-5) and measured["tokens"] == len(nlls)
    assert measured["nll"] != pytest.approx(measure_gap(model, byte_tokenizer(), records(3))["nll"], abs=1e-3)


def test_the_mean_over_records_counts_every_token_once(examples):
    model = tiny_chat_model()
    nlls = [nll for example in examples for nll in plain(model, example)]
    found = gap(model, examples)
    assert found["tokens"] == len(nlls) and len(found["records"]) == 7
    assert found["nll"] == pytest.approx(sum(nlls) / len(nlls), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"]))


def test_sets_of_targets_for_the_same_prompts_have_the_gap_that_each_has_alone(examples, monkeypatch, capsys):
    """The second set lacks a record and holds one that does not fit; micro-batches of any size share prompts."""
    others = [*lengthened(examples[1:], by=2), Example("long", [1] * 600, [True] * 600)]
    model = tiny_chat_model()
    for pack in (4096, 150):
        monkeypatch.setattr("sdft.measure.passes.PACK", pack)
        found = gaps(model, {"original": examples, "distilled": others})
        for name, alone in (("original", gap(model, examples)), ("distilled", gap(model, others[:-1]))):
            assert [row["id"] for row in found[name]["records"]] == [row["id"] for row in alone["records"]]
            assert found[name]["nll"] == pytest.approx(alone["nll"], abs=1e-5)
            assert found[name]["tokens"] == alone["tokens"]
    assert "gap, distilled: skipped 1 of 7 records" in capsys.readouterr().err


def test_what_does_not_fit_or_has_no_target_is_skipped_and_reported(examples, capsys):
    odd = [Example("long", [1] * 600, [True] * 600), Example("blank", [1, 2], [False, False])]
    found = gap(tiny_chat_model(), [*examples[:2], *odd])["records"]
    assert [row["id"] for row in found] == ["r0", "r1"]
    told = capsys.readouterr().err
    assert "skipped 1 of 4 records: longer than 512 tokens" in told
    assert "skipped 1 of 4 records: no target token" in told
    with pytest.raises(SdftError, match="no record"):
        gap(tiny_chat_model(), odd)


def test_a_model_that_knows_nothing_is_surprised_by_log_v(examples):
    model = tiny_chat_model()
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert gap(model, examples)["perplexity"] == pytest.approx(VOCABULARY, rel=1e-5)


def test_rank_and_low_probability_share_are_those_of_the_sorted_vocabulary(examples, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 3)
    model = tiny_chat_model()
    model.model.norm.weight.data *= 6                           # sure of itself: the likeliest token has p > 0.4
    examples = [*examples[:6], greedy(model, examples[6])]
    every = [pair for example in examples for pair in logprobs(model, example)]
    ranks = [row.argsort(descending=True).tolist().index(target) for row, target in every]
    low = [row[target].exp().item() < 0.4 for row, target in every]
    assert 0 in ranks and 0 < sum(low) < len(low)               # the case has both kinds
    found = gap(model, examples)
    assert found["rank_mean"] == pytest.approx(sum(ranks) / len(ranks))
    assert found["rank_median"] == median(ranks)
    assert found["rank0"] == pytest.approx(ranks.count(0) / len(ranks))
    assert found["low"] == pytest.approx(sum(low) / len(low))
    last = len(logprobs(model, examples[-1]))
    row = found["records"][-1]
    assert row["rank"] == pytest.approx(sum(ranks[-last:]) / last)
    assert row["low"] == pytest.approx(sum(low[-last:]) / last)


def test_tokens_as_probable_as_the_target_do_not_count_in_its_rank():
    logits = torch.tensor([[2.0, 3.0, 3.0, 1.0]] * 4)
    assert token_rank(logits, torch.arange(4)).tolist() == [2, 0, 0, 3]


def test_positions_count_from_one_in_bands_that_widen():
    rows = [[float(i) for i in range(1, n + 1)] for n in (1, 3, 35)]
    assert by_position(rows, "nll") == [
        {"first": 1, "last": 1, "nll": 1.0, "tokens": 3}, {"first": 2, "last": 8, "nll": (5 + 35) / 9, "tokens": 9},
        {"first": 9, "last": 32, "nll": 20.5, "tokens": 24}, {"first": 33, "last": 35, "nll": 34.0, "tokens": 3}]
    assert by_position([[5.0] * 8, [7.0]], "kl")[-1] == {"first": 2, "last": 8, "kl": 5.0, "tokens": 7}


def test_the_gap_by_position_is_that_of_the_plain_nlls(examples):
    model = tiny_chat_model()
    assert [band["nll"] for band in gap(model, examples)["by_position"]] == pytest.approx(
        [band["nll"] for band in by_position([plain(model, example) for example in examples], "nll")], abs=1e-5)


def test_targets_are_paired_by_record_whole_and_over_equally_many_tokens(examples):
    """The second set is in another order, lacks r0, keeps r1 as it was, has r2 to r5 longer and r6 shorter."""
    changed = [*lengthened(examples[2:6], by=3),
               Example("r6", [*examples[6].tokens[:-5], *examples[6].tokens[-3:]], examples[6].mask[:-2])]
    model = tiny_chat_model()
    found = gaps(model, {"original": examples, "distilled": [*changed[::-1], examples[1]]})
    assert "paired" not in found["original"]
    paired = found["distilled"]["paired"]
    own, other = ([plain(model, example) for example in side] for side in (changed, examples[2:]))
    for result, pairs in ((paired, list(zip(own, other, strict=True))),
                          (paired["length_matched"], [(a[:min(len(a), len(b))], b[:min(len(a), len(b))])
                                                      for a, b in zip(own, other, strict=True)])):
        means = [[sum(side) / len(side) for side in sides] for sides in zip(*pairs, strict=True)]
        assert result["n"] == 5
        assert [result["perplexity"], result["perplexity_with"]] == pytest.approx(
            [math.exp(sum(side) / 5) for side in means], rel=1e-4)
        assert [result["low_share"], result["low_share_with"]] == pytest.approx(
            [sum(sum(nll > -math.log(0.4) for nll in record) / len(record) for record in side) / 5
             for side in zip(*pairs, strict=True)])
        assert result["nll"] == pytest.approx(sum(means[0]) / 5, abs=1e-5)
        assert result["nll_with"] == pytest.approx(sum(means[1]) / 5, abs=1e-5)
        assert result["difference"] == pytest.approx(result["nll"] - result["nll_with"])
        assert result["low"] < result["difference"] < result["high"]
        assert [result["tokens"], result["tokens_with"]] == [sum(map(len, side)) for side in zip(*pairs, strict=True)]
    assert paired["with"] == "original" and paired["length_matched"]["tokens"] < paired["tokens"]
    own, other = ([[(row > row[target]).sum().item() for row, target in logprobs(model, example)] for example in side]
                  for side in (changed, examples[2:]))
    for result, matched in ((paired, False), (paired["length_matched"], True)):
        for side, suffix in ((own, ""), (other, "_with")):
            cut = [ranks[:min(len(a), len(b))] if matched else ranks
                   for ranks, a, b in zip(side, own, other, strict=True)]
            assert result[f"rank_mean{suffix}"] == pytest.approx(sum(sum(ranks) / len(ranks) for ranks in cut) / 5)
            assert result[f"rank0{suffix}"] == pytest.approx(sum(ranks.count(0) / len(ranks) for ranks in cut) / 5)
    assert "paired" not in gaps(model, {"original": examples, "distilled": examples[::-1]})["distilled"]


def test_the_token_map_holds_the_texts_and_nlls_of_single_records(examples):
    model, tokenizer = tiny_chat_model(), byte_tokenizer()
    found = token_map(model, tokenizer, {"original": examples, "distilled": examples[3:]}, ["r3", "r0"])
    assert [(row["id"], list(row["texts"])) for row in found] == [("r3", ["original", "distilled"]),
                                                                 ("r0", ["original"])]
    for row, example in zip(found, (examples[3], examples[0]), strict=True):
        own = row["texts"]["original"]
        assert "".join(own["pieces"]) == example_answer(example) and len(own["rank"]) == len(own["nll"])
        assert own["nll"] == pytest.approx(plain(model, example), abs=6e-4)         # kept to three decimals
    assert token_map(model, tokenizer, {"original": examples[1:]}, ["r0"]) == []


def example_answer(example: Example) -> str:
    tokenizer = byte_tokenizer()
    return "".join(tokenizer.piece(token) for token, own in zip(example.tokens, example.mask, strict=True) if own)
