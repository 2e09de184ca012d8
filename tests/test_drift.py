"""Drift on the base model's own answers against a plain computation over the whole vocabulary."""
from __future__ import annotations

import copy

import pytest
import torch
from tiny_chat import byte_tokenizer, tiny_chat_model

import sdft.measure.outputs.drift as module
from sdft.errors import SdftError
from sdft.generation import generate
from sdft.measure.outputs.drift import (
    base_answers,
    base_view,
    drift,
    drift_difference,
    measure_drift,
    reverse_drift,
    token_drift,
)
from sdft.model.lora import adapter_off, add_lora, lora_layers, merge
from sdft.tasks.base import Item, Suite

ITEMS = [Item(f"g{i}", [{"role": "user", "content": f"Tell me about {i}."}]) for i in range(4)]
SUITE = Suite("general", ITEMS, None, "", 20)
ANSWERS = [("Gladly.", "stop"), ("It is a num", "length"), ("", "stop"), ("No.", "stop")]
ROWS = [{"id": f"g{i}", "output": text, "finish": finish, "tokens": len(text)}
        for i, (text, finish) in enumerate(ANSWERS)]


def adapted(size: float = 0.3):
    model = tiny_chat_model()
    add_lora(model, rank=2)
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator) * size
    return model


def plain(p_model, q_model, example):
    """KL(p ‖ q), total variation and agreement at every target, from two forwards over the whole text, in fp64."""
    tokens = torch.tensor([example.tokens])
    log_p, log_q = p_model(tokens)[0].double().log_softmax(-1), q_model(tokens)[0].double().log_softmax(-1)
    rows = [i - 1 for i in range(1, len(example.tokens)) if example.mask[i]]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)[rows]
    tv = (log_p.exp() - log_q.exp()).abs().sum(-1)[rows] / 2
    return kl, tv, (log_p.argmax(-1) == log_q.argmax(-1))[rows].double()


def test_the_answers_hold_what_the_base_model_chose_and_its_end_only_where_it_ended():
    examples = base_answers(byte_tokenizer(), SUITE, ROWS)
    targets = {example.id: [token for token, is_target in zip(example.tokens, example.mask, strict=True) if is_target]
               for example in examples}
    end = byte_tokenizer().eos_id
    assert targets == {"g0": [*b"Gladly.", end], "g1": [*b"It is a num"], "g3": [*b"No.", end]}


@pytest.mark.parametrize("rows", [128, 3])
@torch.no_grad()
def test_drift_is_the_mean_over_the_tokens_of_all_answers(monkeypatch, rows):
    monkeypatch.setattr(module, "ROWS", rows)
    model, base, examples = adapted(), tiny_chat_model(), base_answers(byte_tokenizer(), SUITE, ROWS)
    parts = [plain(base, model, example) for example in examples]
    for row, (kl, tv, same) in zip(token_drift(model, base_view(model, examples)), parts, strict=True):
        assert row["kl"] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-6)      # fp32 against fp64
        assert row["tv"] == pytest.approx(tv.tolist(), rel=1e-3, abs=1e-6)
        assert row["top1"] == same.bool().tolist()
    first = torch.stack([kl[0] for kl, _, _ in parts])
    second = torch.cat([kl[1:8] for kl, _, _ in parts])
    kl, tv, same = (torch.cat(part) for part in zip(*parts, strict=True))
    found = drift(model, base_view(model, examples))
    assert found["kl"] == pytest.approx(kl.mean().item(), rel=1e-4) and found["kl"] > 0.01
    assert found["tv"] == pytest.approx(tv.mean().item(), rel=1e-4)
    assert found["tv_low"] < found["tv"] < found["tv_high"]
    assert found["top1"] == pytest.approx(same.mean().item())
    assert (found["tokens"], found["n"]) == (len(kl), 3)
    assert found["kl_low"] < found["kl"] < found["kl_high"]
    assert [(band["first"], band["last"], band["tokens"]) for band in found["by_position"]] == [
        (1, 1, 3), (2, 8, len(second)), (9, 11, len(kl) - 3 - len(second))]
    assert [band["kl"] for band in found["by_position"][:2]] == pytest.approx(
        [first.mean().item(), second.mean().item()], rel=1e-4)


def test_the_direction_is_from_the_first_to_the_second():
    before, after = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p, q = before.softmax(-1), after.softmax(-1)
    kl, tv, same = module.compare(before, after)
    assert kl.item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    assert kl.item() != pytest.approx((q * (q / p).log()).sum().item(), rel=0.05)
    assert tv.item() == pytest.approx((p - q)[0, 0].item(), rel=1e-5)               # of two outcomes: one's difference
    assert same.tolist() == [False]


def test_the_most_probable_of_equal_tokens_is_the_first():
    """In bf16, where logits are often equal, over 96 tokens in 40 rows."""
    before, after = torch.randn(2, 40, 96, generator=torch.Generator().manual_seed(0)).mul(2).round().bfloat16()
    assert (before == before.amax(-1, keepdim=True)).sum(-1).max() > 1
    *_, same = module.compare(before, after)
    assert same.tolist() == [a.index(max(a)) == b.index(max(b))
                             for a, b in zip(before.tolist(), after.tolist(), strict=True)]
    assert module.compare(before, before)[2].all()


@torch.no_grad()
def test_reverse_drift_is_from_the_tuned_model_on_what_it_wrote():
    """On answers to the task's items, whose suite has a score; a second time with a separate base model, no adapter."""
    task = Suite("task", ITEMS, lambda item, output: 1.0, "accuracy", 20)
    model, base = adapted(), tiny_chat_model()
    examples = base_answers(byte_tokenizer(), task, [{**row, "output": row["output"] * 2} for row in ROWS])
    parts = [plain(model, base, example) for example in examples]
    kl, tv, same = (torch.cat(part) for part in zip(*parts, strict=True))
    found = reverse_drift(model, examples)
    assert found["kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
    assert found["kl"] != pytest.approx(drift(model, base_view(model, examples))["kl"], rel=1e-3)
    assert found["kl_low"] < found["kl"] < found["kl_high"]
    assert (found["tv"], found["top1"]) == pytest.approx((tv.mean().item(), same.mean().item()), rel=1e-4)
    assert (found["tokens"], found["n"]) == (len(kl), 3) and len(found["by_position"]) == 3
    assert all(layer.enabled for layer in lora_layers(model).values())
    other = tiny_chat_model(seed=1)
    kl = torch.cat([plain(other, base, example)[0] for example in examples])
    assert reverse_drift(other, examples, base)["kl"] == pytest.approx(kl.mean().item(), rel=1e-4)


def test_a_model_that_wrote_nothing_has_no_reverse_drift():
    nothing = base_answers(byte_tokenizer(), SUITE, [{**row, "output": ""} for row in ROWS])
    assert reverse_drift(adapted(), nothing) == {"tokens": 0, "n": 0}


def test_measure_drift_is_the_drift_on_the_greedy_answers_of_the_base_model():
    model, tokenizer, prompts = adapted(), byte_tokenizer(), ["Why?", "Tell me about 7."]
    answers = generate(tiny_chat_model(), tokenizer, prompts, max_new_tokens=12)
    items = [Item(str(i), [{"role": "user", "content": prompt}]) for i, prompt in enumerate(prompts)]
    lines = [{"id": each.id, "output": each.text, "finish": each.finish} for each in answers]
    examples = base_answers(tokenizer, Suite("", items, None, "", 12), lines)
    kl = torch.cat([plain(tiny_chat_model(), model, example)[0] for example in examples])
    measured = measure_drift(model, tokenizer, prompts, max_new_tokens=12)
    assert measured["kl"] == pytest.approx(kl.mean().item(), rel=1e-4) and measured["kl"] > 0.01
    assert (measured["n"], measured["tokens"]) == (2, len(kl))
    merge(model)
    whole = measure_drift(model, tokenizer, prompts, tiny_chat_model(), 12)
    assert whole["kl"] == pytest.approx(measured["kl"], rel=1e-4)


def test_measure_drift_needs_a_base_model_and_answers_16_general_prompts_by_default():
    with pytest.raises(SdftError, match="expected a model with an adapter, got one without"):
        measure_drift(tiny_chat_model(), byte_tokenizer())
    assert measure_drift(adapted(), byte_tokenizer(), max_new_tokens=4)["n"] == 16


def test_an_adapter_that_changes_nothing_has_no_drift_and_is_on_again_afterwards():
    model, examples = adapted(size=0), base_answers(byte_tokenizer(), SUITE, ROWS)
    found = drift(model, base_view(model, examples))
    assert found["kl"] == 0 and found["tv"] == 0 and found["top1"] == 1
    assert all(layer.enabled for layer in lora_layers(model).values())


def test_full_fine_tuning_is_compared_with_a_second_model():
    model, examples = adapted(), base_answers(byte_tokenizer(), SUITE, ROWS)
    with adapter_off(model):
        base = copy.deepcopy(model)
    tuned = adapted()
    merge(tuned)                                            # as full fine-tuning leaves it: other weights, no adapter
    found = drift(tuned, base_view(base, examples))["kl"]
    assert found == pytest.approx(drift(model, base_view(model, examples))["kl"], rel=1e-5)


def test_two_models_are_compared_on_the_same_answers():
    """Their KLs scatter far more over the answers than their difference does; ids join them, not positions."""
    generator = torch.Generator().manual_seed(3)
    kl = torch.rand(30, generator=generator) * 4
    tokens = torch.randint(1, 40, (30,), generator=generator)
    own = [{"id": str(i), "kl": kl[i].item() + 0.1 + 0.01 * (i % 3), "tokens": tokens[i].item()} for i in range(30)]
    other = [{"id": str(i), "kl": kl[i].item(), "tokens": tokens[i].item()} for i in reversed(range(30))]
    found = drift_difference(own, other)
    expected = sum((0.1 + 0.01 * (i % 3)) * tokens[i].item() for i in range(30)) / tokens.sum().item()
    assert found["difference"] == pytest.approx(expected, rel=1e-5) and found["n"] == 30
    assert 0.1 < found["low"] < expected < found["high"] < 0.12
    with pytest.raises(SdftError, match="expected answers to the same items"):
        drift_difference(own, other[1:])


def test_every_answer_of_a_drift_has_its_mean():
    model, base, examples = adapted(), tiny_chat_model(), base_answers(byte_tokenizer(), SUITE, ROWS)
    found = drift(model, base_view(model, examples))
    assert [row["id"] for row in found["answers"]] == ["g0", "g1", "g3"]
    assert sum(row["kl"] * row["tokens"] for row in found["answers"]) / found["tokens"] == pytest.approx(found["kl"])
    assert found["answers"][2]["kl"] == pytest.approx(plain(base, model, examples[2])[0].mean().item(), rel=1e-3)
