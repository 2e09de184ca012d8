"""The training step against direct computation and against peft, and what `train` writes and refuses."""
from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from training_parts import HF_CONFIG, examples, tiny_model

from sdft.data.chat import Example
from sdft.errors import Interrupted, SdftError
from sdft.files import read_tensors
from sdft.model.batches import pack, pack_within
from sdft.model.lora import add_lora, lora_layers
from sdft.objectives import OBJECTIVES, HiddenStates, cross_entropy
from sdft.train import TrainSettings, evaluate, train
from sdft.train.loop import gradient
from sdft.train.optimiser import learning_rate
from sdft.train.order import step_batches
from sdft.train.weights import FullWeights

SETTINGS = TrainSettings(lr=5e-3, epochs=2, batch_size=4, lora_rank=2, lora_alpha=4, save_every=100)


def log_lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def adapted(dtype=torch.float32, **options):
    """A model whose adapter is already away from zero, and its factors."""
    model = tiny_model(dtype)
    add_lora(model, rank=2, alpha=4, **options)
    generator = torch.Generator().manual_seed(7)
    factors = []
    for layer in lora_layers(model).values():
        layer.lora_B.data.copy_(0.1 * torch.randn(layer.lora_B.shape, generator=generator))
        factors += [layer.lora_A, layer.lora_B]
    return model, factors


def test_the_loss_is_the_mean_over_the_tokens_of_the_whole_step():
    model, factors = adapted()
    records = examples(5, shared=20)
    total, count = 0.0, 0
    for record in records:                                              # one by one, over all logits, by plain torch
        logits = model(torch.tensor([record.tokens]))[0, :-1]
        learned = torch.tensor(record.mask[1:])
        targets = torch.tensor(record.tokens[1:])[learned]
        total += torch.nn.functional.cross_entropy(logits[learned], targets, reduction="sum")
        count += int(learned.sum())
    direct = torch.autograd.grad(total / count, factors)
    for limit, share in ((1, False), (80, False), (10_000, False), (70, True), (10_000, True)):     # 5 packs, some, 1
        batches = pack_within(records, limit, share)
        assert share == any(parent >= 0 for batch in batches for parent in batch.parents)
        loss = gradient(model, batches, cross_entropy)
        torch.testing.assert_close(loss, (total / count).detach(), rtol=1e-5, atol=1e-6)
        for factor, expected in zip(factors, direct, strict=True):
            torch.testing.assert_close(factor.grad, expected, rtol=1e-4, atol=1e-6)     # fp32 sums in another order
            factor.grad = None


def test_checkpointing_changes_no_bit():
    model, factors = adapted(dropout=0.3)
    batches = pack_within(examples(3), 100)
    model.train()
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        found.append((gradient(model, batches, cross_entropy, checkpoint), [f.grad.clone() for f in factors]))
        for factor in factors:
            factor.grad = None
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_no_gradient_below_the_first_adapted_layer():
    model = tiny_model()
    add_lora(model, rank=2, targets=("model.layers.1.self_attn.q_proj",))
    wants = {}
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: wants.update({name: output.requires_grad}))
    gradient(model, pack_within(examples(2), 100), cross_entropy)
    assert list(wants.values()) == [False, True]


def test_twenty_steps_equal_peft_with_torchs_adamw(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    settings = replace(SETTINGS, epochs=5, warmup=3, weight_decay=0.1, max_grad_norm=0.5)
    records = examples(16, shared=20)
    ours = tiny_model()
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**HF_CONFIG))
    theirs.load_state_dict(ours.state_dict(), strict=False)     # the tied head has no name of its own in ours
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]))
    probe = tiny_model()
    add_lora(probe, rank=2, alpha=4, seed=settings.seed)                # the same start
    layers = {name: theirs.get_submodule(f"base_model.model.{name}") for name in lora_layers(probe)}
    for name, layer in lora_layers(probe).items():
        layers[name].lora_A["default"].weight.data.copy_(layer.lora_A)

    train(ours, records, settings, tmp_path)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    losses = []
    for step in range(20):
        chosen = {name for batch in step_batches(records, step, 4, 10_000, settings.seed) for name in batch.ids}
        total, count = 0.0, 0
        for record in (r for r in records if r.id in chosen):
            labels = torch.tensor([[t if m else -100 for t, m in zip(record.tokens, record.mask, strict=True)]])
            logits = theirs(input_ids=torch.tensor([record.tokens])).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
            count += int((labels[0, 1:] != -100).sum())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimiser.param_groups[0]["lr"] = learning_rate(step, 20, settings)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(total.item() / count)

    assert [line["loss"] for line in log_lines(tmp_path)] == pytest.approx(losses, abs=1e-4)
    for name, layer in lora_layers(ours).items():
        for factor in ("lora_A", "lora_B"):
            expected = getattr(layers[name], factor)["default"].weight
            torch.testing.assert_close(getattr(layer, factor), expected, rtol=0, atol=1e-4)     # asked for: 1e-4


def test_learning_rate_rises_then_falls_by_a_cosine():
    settings = TrainSettings(lr=1.0, warmup=2)
    rates = [learning_rate(step, 6, settings) for step in range(6)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert learning_rate(5, 6, replace(settings, schedule="constant")) == 1.0


def test_a_run_leaves_its_log_adapter_and_summary(tmp_path, capsys):
    records = [*examples(10), Example("long", list(range(60)), [True] * 60), Example("mute", [1, 2], [False, False])]
    model = tiny_model()
    summary = train(model, records, replace(SETTINGS, max_length=50), tmp_path, validation=examples(3, seed=9))
    lines = log_lines(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]       # ⌈10 / 4⌉ steps in each of 2 epochs
    assert [line["epoch"] for line in lines][2::3] == [1, 2]
    assert lines[0]["lr"] == SETTINGS.lr and lines[-1]["lr"] < 0.1 * SETTINGS.lr
    assert sum(line["tokens"] for line in lines) == 2 * sum(len(e.tokens) for e in records[:10]) == summary["tokens"]
    assert sum(line["target_tokens"] for line in lines) == 2 * sum(sum(e.mask) for e in records[:10])
    assert ["validation_loss" in line for line in lines] == [False, False, True] * 2
    assert lines[-1]["validation_loss"] == pytest.approx(evaluate(model, examples(3, seed=9), 100), abs=1e-5)
    assert summary["left_out"] == {"longer than 50 tokens": 1, "no target token": 1}
    assert "skipped 1 of 12 records: longer than 50 tokens" in capsys.readouterr().err
    saved = read_tensors(tmp_path / "adapter_model.safetensors")
    assert len(saved) == 8 and (tmp_path / "adapter_config.json").exists() and not model.training
    with pytest.raises(SdftError, match="no record"):
        train(tiny_model(), records[-1:], SETTINGS, tmp_path / "none")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_line_logs_the_distance_of_the_weights_from_the_base_model(method, tmp_path, monkeypatch):
    """An objective reads the weights that the step before has left; full-size ΔW are formed, by B·A or by W − W₀."""
    model, found = tiny_model(), []
    seed = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def moved():
        deltas = [layer.delta() for layer in lora_layers(model).values()] if method == "lora" else [
            weight.detach() - seed[name] for name, weight in model.named_parameters()]
        return sum(delta.double().square().sum() for delta in deltas).sqrt().item()

    def reading(batch, hidden):
        found.append(moved())
        return cross_entropy(batch, hidden)

    monkeypatch.setitem(OBJECTIVES, "reading", reading)
    summary = train(model, examples(10), replace(SETTINGS, method=method, objective="reading"), tmp_path)
    logged = [line["delta_norm"] for line in log_lines(tmp_path)]
    assert found[0] == 0 and len(found) == len(logged) == 6             # one pack a step
    assert logged == pytest.approx([*found[1:], moved()], rel=1e-5)     # the factors and weights are fp32
    assert summary["delta_norm"] == logged[-1]


def test_training_learns_its_records_and_full_training_keeps_fp32_masters(tmp_path):
    records = examples(4)
    for method, rate in (("lora", 0.1), ("full", 0.01)):
        settings = replace(SETTINGS, method=method, lr=rate, epochs=16, batch_size=4)
        model = tiny_model(torch.bfloat16)
        base_weights = {name: weight.detach().float().clone() for name, weight in model.named_parameters()}
        before = evaluate(model, records, 100)
        summary = train(model, records, settings, tmp_path / method)
        assert evaluate(model, records, 100) < 0.5 * before, method
    state = read_tensors(tmp_path / "full" / "state.safetensors")
    for name, weight in model.named_parameters():
        assert state[f"weight.{name}"].dtype == torch.float32
        torch.testing.assert_close(state[f"weight.{name}"].bfloat16(), weight, rtol=0, atol=0)
        torch.testing.assert_close(read_tensors(tmp_path / "full" / "model.safetensors")[name], weight, rtol=0, atol=0)
    moved = sum((state[f"weight.{name}"] - seed).square().sum() for name, seed in base_weights.items()).sqrt().item()
    assert summary["delta_norm"] == pytest.approx(moved, rel=1e-5)


def test_full_gradients_add_up_in_fp32_over_micro_batches():
    batches = pack_within(examples(6), 30)
    targets = sum(batch.targets for batch in batches)
    plain, model = tiny_model(torch.bfloat16), tiny_model(torch.bfloat16)
    weights = dict(plain.named_parameters())
    packs = [torch.autograd.grad(cross_entropy(batch, HiddenStates(plain, batch)) / targets, list(weights.values()))
             for batch in batches]
    masters = FullWeights(model).parameters
    gradient(model, batches, cross_entropy)
    assert len(batches) > 2
    for index, name in enumerate(weights):
        torch.testing.assert_close(masters[name].grad, sum(pack[index].float() for pack in packs), rtol=0, atol=0)
    assert all(weight.grad is None for weight in model.parameters())            # freed at once


def test_an_objective_sees_the_base_model_and_the_trained_model(tmp_path, monkeypatch):
    """KL from the base model, written as a baseline would be: zero at the start, no gradient through the base model."""
    def kl(batch, hidden: HiddenStates):
        ours, seeds = ((x @ hidden.head.t()).log_softmax(-1) for x in (hidden.trained, hidden.base))
        assert not seeds.requires_grad and len(ours) == batch.targets
        return (seeds.exp() * (seeds - ours)).sum()

    monkeypatch.setitem(OBJECTIVES, "kl", kl)
    train(tiny_model(), examples(4), replace(SETTINGS, objective="kl"), tmp_path)
    assert log_lines(tmp_path)[0]["loss"] == pytest.approx(0, abs=1e-6)
    model, _ = adapted()
    batch = pack(examples(2))
    assert kl(batch, HiddenStates(model, batch)) > 1e-4
    with pytest.raises(SdftError, match="method = lora"):
        _ = HiddenStates(tiny_model(), batch).base


@pytest.mark.parametrize("number, at", [(signal.SIGINT, 3), (signal.SIGTERM, 3), (signal.SIGINT, 6)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, monkeypatch, number, at):
    """In the last step as well: what would follow the training must not begin."""
    calls = []

    def interrupting(batch, hidden):
        calls.append(batch)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return cross_entropy(batch, hidden)

    monkeypatch.setitem(OBJECTIVES, "interrupting", interrupting)
    settings = replace(SETTINGS, objective="interrupting")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped after step {at} of 6, .* run the same command again"):
        train(tiny_model(), examples(12), settings, tmp_path / "a")
    assert signal.getsignal(number) is before
    assert [line["step"] for line in log_lines(tmp_path / "a")] == list(range(1, at + 1))
    train(tiny_model(), examples(12), settings, tmp_path / "a")
    train(tiny_model(), examples(12), replace(settings, objective="interrupting"), tmp_path / "b")
    broken, whole = (tmp_path / name / "adapter_model.safetensors" for name in "ab")
    assert broken.read_bytes() == whole.read_bytes()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    def failing(batch, hidden):
        return cross_entropy(batch, hidden) * (float("nan") if "record-5" in batch.ids else 1.0)

    monkeypatch.setitem(OBJECTIVES, "failing", failing)
    settings = replace(SETTINGS, objective="failing", batch_size=1, epochs=1)
    records = examples(12)
    order = [step_batches(records, step, 1, 100, settings.seed)[0].ids[0] for step in range(12)]
    bad = order.index("record-5")
    assert bad > 1
    message = rf"step {bad + 1}: .* records record-5; the state after step {bad} is kept"
    with pytest.raises(SdftError, match=message) as caught:
        train(tiny_model(), records, settings, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(log_lines(tmp_path)) == bad
    state = read_tensors(tmp_path / "state.safetensors")
    assert all(value.isfinite().all() for value in state.values())
    assert {int(value) for name, value in state.items() if name.startswith("step.")} == {bad}


def test_a_state_of_another_run_is_refused_by_name(tmp_path):
    records = examples(8)
    train(tiny_model(), records, SETTINGS, tmp_path)
    finished = (tmp_path / "adapter_model.safetensors").read_bytes()
    with pytest.raises(SdftError, match="lr was 0.005, is 0.001; lora_rank was 2, is 4"):
        train(tiny_model(), records, replace(SETTINGS, lr=1e-3, lora_rank=4), tmp_path)
    with pytest.raises(SdftError, match="settings: data was"):
        train(tiny_model(), records[:-1], SETTINGS, tmp_path)
    with pytest.raises(SdftError, match="settings: model was"):
        train(tiny_model(seed=1), records, SETTINGS, tmp_path)
    summary = train(tiny_model(), records, replace(SETTINGS, save_every=7), tmp_path)     # finished: only told again
    assert summary["steps"] == 4 and (tmp_path / "adapter_model.safetensors").read_bytes() == finished


def test_weights_that_overflow_are_reported_and_never_saved(tmp_path):
    settings = replace(SETTINGS, weight_decay=1e300, save_every=1)
    with pytest.raises(SdftError, match="step 1: the update left weights that are not finite"):
        train(tiny_model(), examples(8), settings, tmp_path)
    assert not any((tmp_path / name).exists() for name in ("state.safetensors", "log.jsonl"))


def test_how_a_step_is_cut_may_change_in_mid_run(tmp_path, monkeypatch):
    """As the advice for a machine out of memory needs it; only the order of the sums differs."""
    def failing(batch, hidden):
        raise MemoryError

    records = examples(8)
    whole, cut = tiny_model(), tiny_model()
    train(whole, records, SETTINGS, tmp_path / "whole")
    monkeypatch.setitem(OBJECTIVES, "cross_entropy", lambda batch, hidden: failing(batch, hidden) if (
        tmp_path / "cut" / "state.safetensors").exists() else cross_entropy(batch, hidden))
    with pytest.raises(MemoryError):
        train(tiny_model(), records, replace(SETTINGS, save_every=2), tmp_path / "cut")
    monkeypatch.setitem(OBJECTIVES, "cross_entropy", cross_entropy)
    smaller = replace(SETTINGS, micro_tokens=1, gradient_checkpointing=True)
    assert train(cut, records, smaller, tmp_path / "cut")["steps"] == 4
    for ours, theirs in zip(lora_layers(cut).values(), lora_layers(whole).values(), strict=True):
        torch.testing.assert_close(ours.delta(), theirs.delta(), rtol=1e-3, atol=1e-5)
    dropping = replace(SETTINGS, lora_dropout=0.1)                           # there the draws go by pack
    train(tiny_model(), records, dropping, tmp_path / "dropout")
    with pytest.raises(SdftError, match="micro_tokens was 2048, is 1"):
        train(tiny_model(), records, replace(dropping, micro_tokens=1), tmp_path / "dropout")


@pytest.mark.parametrize("damage, message", [
    (lambda lines: [*lines, '{"loss": 1}'], "log.jsonl, line 5: expected an object with the number of its step"),
    (lambda lines: [], "expected a line for each of the 4 steps in state.safetensors, found 0"),
    (lambda lines: lines[1:], "each of the 4 steps .* found 3")])
def test_a_log_that_does_not_fit_the_state_is_refused(tmp_path, damage, message):
    train(tiny_model(), examples(8), SETTINGS, tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{line}\n" for line in damage(log.read_text().splitlines())))
    with pytest.raises(SdftError, match=message):
        train(tiny_model(), examples(8), SETTINGS, tmp_path)


@pytest.mark.parametrize("wrong, message", [
    ({"lr": 1e300}, "lr: expected a positive number up to a million"), ({"seed": 2**32}, "seed: .* got 4294967296"),
    ({"lora_rank": 33}, "rank: expected at most (16|32), the full rank of model.layers.[01].self_attn.[qv]_proj, got "
                        "33"), ({"lora_dropout": 1.0}, "lora_dropout: .* below 1"),
    ({"lr": 0.0}, "lr: expected a positive number up to a million, got 0.0"),
    ({"method": "lorra"}, "did you mean lora"), ({"epochs": 0}, "epochs: expected at least 1"),
    ({"objective": "cross_entrpy"}, "did you mean cross_entropy"), ({"lora_targets": ()}, "lora_targets")])
def test_impossible_settings_are_refused_in_one_line(wrong, message, tmp_path):
    with pytest.raises(SdftError, match=message):
        train(tiny_model(), examples(2), TrainSettings(**wrong), tmp_path)
