"""Every objective's loss and gradient against plain autograd on full logits, and that micro-batches change neither."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from training_parts import examples, tiny_model

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.files import read_tensors
from sdft.model.batches import pack_within
from sdft.model.lora import adapter_off, add_lora, lora_layers
from sdft.objectives import NEEDS_ADAPTER, OBJECTIVES, PREPARED, ObjectiveInputs, Start, make_objective
from sdft.objectives.ema_teacher import EmaTeacher
from sdft.objectives.fisher import drawn, fisher
from sdft.train import TrainSettings, loop, train
from sdft.train.loop import gradient
from sdft.train.state import describe

SETTINGS = TrainSettings(lr=5e-3, epochs=2, batch_size=4, lora_rank=2, lora_alpha=4, save_every=100)
RECORDS = examples(5, shared=20)
TEXTS = examples(3, seed=5)
SHOWN = [Example(e.id, e.tokens, [False] * len(e.tokens)) for e in examples(8, seed=6, shared=20)]
STRENGTH = 0.3


def adapted():
    """A model in fp64 whose adapter is away from zero; its factors are fp32 as always."""
    model = tiny_model(torch.float64)
    add_lora(model, rank=2, alpha=4)
    generator = torch.Generator().manual_seed(7)
    for layer in lora_layers(model).values():
        layer.lora_B.data.copy_(0.1 * torch.randn(layer.lora_B.shape, generator=generator))
    return model


def factors(model):
    return [factor for layer in lora_layers(model).values() for factor in (layer.lora_A, layer.lora_B)]


def log_p(model, example):
    """Full-vocabulary log-probabilities (n, V) at the targets of one example, and the targets, by the plain forward."""
    learned = torch.tensor(example.mask[1:])
    logits = model(torch.tensor([example.tokens]))[0, :-1][learned]
    return logits.log_softmax(-1), torch.tensor(example.tokens[1:])[learned]


def base_log_p(model, example):
    with torch.no_grad(), adapter_off(model):
        return log_p(model, example)[0]


def picked(model, example, labels=None):
    logs, targets = log_p(model, example)
    targets = targets if labels is None else labels
    return logs.gather(1, targets.unsqueeze(1)).squeeze(1)


def base_picked(model, example):
    with torch.no_grad(), adapter_off(model):
        return picked(model, example)


def direct_dft(model, folder):
    return sum(-(picked(model, e).exp().detach() * picked(model, e)).sum() for e in RECORDS)


def direct_stm(model, folder):
    return sum(-picked(model, e)[base_picked(model, e).exp() >= 0.02].sum() for e in RECORDS)


def direct_flow(model, folder):
    losses = [-base_picked(model, e).mean().item() for e in RECORDS]
    tau = sorted(losses)[2]                                             # the median of five
    return sum(-math.exp(-loss / tau) * picked(model, e).sum() for loss, e in zip(losses, RECORDS, strict=True))


def direct_kl(model, folder):
    apart = [F.kl_div(log_p(model, e)[0], base_log_p(model, e), log_target=True, reduction="sum") for e in RECORDS]
    return sum(-picked(model, e).sum() for e in RECORDS) + STRENGTH * sum(apart)


def targets():
    return sum(sum(e.mask[1:]) for e in RECORDS)


def deltas(model):
    return {name: layer.scale * layer.lora_B @ layer.lora_A for name, layer in lora_layers(model).items()}


def direct_l2sp(model, folder):
    penalty = sum(delta.square().sum() for delta in deltas(model).values())
    return sum(-picked(model, e).sum() for e in RECORDS) + targets() * STRENGTH * penalty


def direct_ewc(model, folder):
    F = fisher(model, TEXTS)
    penalty = sum((F[name] * delta.square()).sum() for name, delta in deltas(model).items())
    return sum(-picked(model, e).sum() for e in RECORDS) + targets() * STRENGTH / 2 * penalty


def direct_onpolicy(model, folder, reverse=False):
    total = 0.0
    for e, shown in zip(RECORDS, SHOWN, strict=False):
        answer = e.tokens[e.mask.index(True):]
        told = Example(e.id, shown.tokens + answer, shown.mask + [True] * len(answer))
        student, teacher = log_p(model, e)[0], base_log_p(model, told)
        first, second = (student, teacher) if reverse else (teacher, student)
        total += (first.exp() * (first - second)).sum()
    return total


def direct_onpolicy_reverse(model, folder):
    return direct_onpolicy(model, folder, reverse=True)


DIRECT = {"onpolicy": direct_onpolicy, "onpolicy-reverse": direct_onpolicy_reverse,
          "dft": direct_dft, "stm": direct_stm, "flow": direct_flow, "kl": direct_kl, "l2-sp": direct_l2sp,
          "ewc": direct_ewc}


def sample(model, chosen, step):
    """Replace every target by a token that depends on the step and on the model as it is."""
    bias = step + int(1e6 * lora_layers(model)["model.layers.0.self_attn.q_proj"].lora_B.abs().sum())
    return [replace(e, tokens=[(token + bias) % 61 if learned else token
                               for token, learned in zip(e.tokens, e.mask, strict=True)]) for e in chosen]


MATERIAL = ObjectiveInputs(TEXTS, SHOWN, sample, "by step")


def prepared(name, folder, model=None):
    settings = replace(SETTINGS, objective=name, penalty_weight=STRENGTH, stm_threshold=0.02)    # 0.4 is rare
    if model is None:
        model = tiny_model(torch.float64)
        add_lora(model, rank=2, alpha=4)
    return make_objective(Start(model, RECORDS, settings, folder, EmaTeacher(model, {}, 0.0), MATERIAL))


@pytest.mark.parametrize("name", DIRECT)
def test_loss_and_gradient_equal_autograd_on_full_logits_however_the_step_is_cut(name, tmp_path):
    model = adapted()
    expected = DIRECT[name](model, tmp_path) / targets()
    direct = torch.autograd.grad(expected, factors(model))
    objective = prepared(name, tmp_path)
    if name.startswith("onpolicy"):
        objective = replace(objective, teacher=EmaTeacher(model, {}, 0.0))           # the teacher is this model
    for limit, share in ((1, False), (80, False), (10_000, False), (10_000, True)):         # 5 packs, some, one
        loss = gradient(model, pack_within(RECORDS, limit, share), objective)
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)     # the sum is kept in fp32
        for factor, wanted in zip(factors(model), direct, strict=True):
            torch.testing.assert_close(factor.grad, wanted, rtol=1e-4, atol=1e-7)           # as the gradients are
            factor.grad = None


def test_the_weights_are_those_of_the_papers(tmp_path):
    model = tiny_model(torch.float64)
    p0 = {e.id: picked(model, e).exp().detach() for e in RECORDS}
    kept = prepared("stm", tmp_path).weights
    assert all(torch.equal(kept[id], (p >= 0.02).double()) for id, p in p0.items())
    assert 0 < sum(own.sum() for own in kept.values()) < targets()
    weights = prepared("flow", tmp_path).weights
    means = {id: -p.log().mean().item() for id, p in p0.items()}
    middle = sorted(means, key=means.get)[2]
    assert weights[middle].tolist() == pytest.approx([math.exp(-1)] * len(p0[middle]))
    easiest = min(means, key=means.get)
    assert weights[easiest][0] == max(own[0] for own in weights.values())


def test_labels_of_the_fisher_are_drawn_as_probable_as_they_are(monkeypatch):
    """The most probable labels would make it too small. Shares of 40,000 draws scatter by 0.0025."""
    monkeypatch.setattr("sdft.objectives.fisher.ROWS", 1000)
    generator = torch.Generator().manual_seed(2)
    head, x = torch.randn(5, 3, generator=generator), torch.randn(1, 3, generator=generator)
    labels = drawn(x.expand(40_000, 3), head, generator)
    shares = labels.bincount(minlength=5) / 40_000
    torch.testing.assert_close(shares, (x @ head.t()).softmax(1)[0], rtol=0, atol=0.01)


def test_the_fisher_is_the_mean_square_of_the_gradients_of_whole_texts(monkeypatch):
    model, labels = adapted(), []
    monkeypatch.setattr("sdft.objectives.fisher.drawn", lambda *given: labels.append(drawn(*given)) or labels[-1])
    found = fisher(model, TEXTS)
    own = [[label for label, learned in zip(e.tokens, e.mask, strict=True) if learned] for e in TEXTS]
    assert [len(each) for each in labels] == [len(each) for each in own]
    assert [each.tolist() for each in labels] != own
    assert list(found) == list(lora_layers(model)) and all(total.dtype == torch.float32 for total in found.values())
    seed = tiny_model(torch.float64)
    for name, total in found.items():
        weight = seed.get_submodule(name).weight
        squares = [torch.autograd.grad(picked(seed, e, drawn_of).sum(), weight)[0].square()
                   for e, drawn_of in zip(TEXTS, labels, strict=True)]
        torch.testing.assert_close(total.double(), sum(squares) / len(TEXTS), rtol=1e-5, atol=1e-12)   # fp32
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if "lora" not in name)
    assert all(factor.requires_grad and factor.grad is None for factor in factors(model))
    assert set(fisher(seed, TEXTS[:1])) >= {"model.layers.0.mlp.down_proj", "model.layers.1.self_attn.k_proj"}
    assert all(weight.requires_grad and weight.grad is None for weight in seed.parameters())


def test_a_fisher_is_kept_and_a_foreign_one_refused(tmp_path):
    first = prepared("ewc", tmp_path).fisher
    stamp = (tmp_path / "fisher.safetensors").stat().st_mtime_ns
    again = prepared("ewc", tmp_path).fisher
    assert (tmp_path / "fisher.safetensors").stat().st_mtime_ns == stamp
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert read_tensors(tmp_path / "fisher.safetensors").keys() == first.keys()
    with pytest.raises(SdftError, match="fisher.safetensors belongs to another model"):
        other = tiny_model(torch.float64, seed=1)
        add_lora(other, rank=2)
        prepared("ewc", tmp_path, other)


@pytest.mark.parametrize("name", sorted({*OBJECTIVES, *PREPARED} - {"cross_entropy"}))
def test_each_trains_and_goes_on_bit_for_bit(name, tmp_path, monkeypatch):
    settings = replace(SETTINGS, objective=name, stm_threshold=0.02, save_every=1,
                       teacher_ema=0.5 if "onpolicy" in name else 0.0)
    inputs = MATERIAL if "onpolicy" in name else ObjectiveInputs(TEXTS)
    whole, cut = tiny_model(), tiny_model()
    train(whole, examples(8), settings, tmp_path / "whole", inputs=inputs)
    calls = []

    def killed(*args):
        calls.append(1)
        if len(calls) > 2:
            raise MemoryError
        return gradient(*args)

    monkeypatch.setattr(loop, "gradient", killed)
    with pytest.raises(MemoryError):
        train(cut, examples(8), settings, tmp_path / "cut", inputs=inputs)
    monkeypatch.setattr(loop, "gradient", gradient)
    cut = tiny_model()
    train(cut, examples(8), settings, tmp_path / "cut", inputs=inputs)
    assert len(calls) == 3 and ("onpolicy" in name) == any(
        key.startswith("teacher.") for key in read_tensors(tmp_path / "cut" / "state.safetensors"))
    for ours, theirs in zip(factors(cut), factors(whole), strict=True):
        assert torch.equal(ours, theirs)


def test_a_penalty_holds_the_weights_back(tmp_path):
    norms = {}
    for name, strength in (("cross_entropy", None), ("l2-sp", 1.0), ("ewc", 1.0)):
        settings = replace(SETTINGS, objective=name, penalty_weight=strength, lr=0.05, epochs=8)
        summary = train(tiny_model(), examples(8), settings, tmp_path / name, inputs=ObjectiveInputs(TEXTS))
        norms[name] = summary["delta_norm"]
    assert max(norms["l2-sp"], norms["ewc"]) < 0.7 * norms["cross_entropy"]


def test_a_state_of_another_objective_or_strength_is_refused(tmp_path):
    settings = replace(SETTINGS, objective="l2-sp", penalty_weight=0.1)
    train(tiny_model(), examples(4), settings, tmp_path)
    with pytest.raises(SdftError, match="objective was \"l2-sp\", is \"kl\"; penalty_weight was 0.1, is 0.2"):
        train(tiny_model(), examples(4), replace(settings, objective="kl", penalty_weight=0.2), tmp_path)
    assert describe(SETTINGS, "", "")["objective"] == '"cross_entropy"'


@pytest.mark.parametrize(("changes", "message"), [
    ({"teacher_ema": 1.0}, "teacher_ema: expected at least 0 and below 1"),
    ({"objective": "onpolicy"}, "onpolicy needs the model's own samples and demonstrations"),
    ({"objective": "ewc"}, "ewc needs texts that the base model wrote"), ({"objective": "kll"}, "did you mean kl"),
    *(({"objective": name, "method": "full"}, f"{name} compares with the base model") for name in NEEDS_ADAPTER),
    ({"objective": "stm", "stm_threshold": 1.0}, "stm: no target has a probability of at least stm_threshold = 1.0"),
    ({"penalty_weight": -1.0}, "penalty_weight: expected 0 or more"),
    ({"stm_threshold": 0.0}, "stm_threshold: expected a probability above 0")])
def test_what_cannot_be_is_refused(changes, message, tmp_path):
    with pytest.raises(SdftError, match=message):
        train(tiny_model(), examples(2), replace(SETTINGS, **changes), tmp_path)


def test_the_average_follows_by_its_decay_and_teaches_without_a_trace():
    model = adapted()
    parameters = {f"{name}.lora_B": layer.lora_B for name, layer in lora_layers(model).items()}
    teacher = EmaTeacher(model, parameters, 0.75)
    name, factor = next(iter(parameters.items()))
    before, tokens = factor.detach().clone(), torch.tensor([RECORDS[0].tokens])
    with torch.no_grad():
        first = model(tokens)
        factor.add_(4.0)
        teacher.follow()
    torch.testing.assert_close(teacher.tensors[name], before + 1.0)          # ¾·b + ¼·(b + 4)
    model.train()
    with teacher.teaching() as taught_by:
        assert not taught_by.training and not torch.is_grad_enabled()
        assert torch.equal(factor, teacher.tensors[name])
        taught = taught_by(tokens)
    assert model.training and torch.equal(factor, before + 4.0) and torch.is_grad_enabled()
    with torch.no_grad():
        factor.sub_(3.0)
        torch.testing.assert_close(model(tokens), taught, rtol=0, atol=1e-4)    # the model with b + 1, rounded in fp32
        assert not torch.allclose(first, taught)
    frozen = EmaTeacher(model, parameters, 0.0)
    with frozen.teaching() as teacher, adapter_off(model):
        torch.testing.assert_close(teacher(tokens), tiny_model(torch.float64)(tokens), rtol=0, atol=0)
    assert not frozen.tensors


def test_an_average_taught_objective_is_another_one(tmp_path):
    deltas = []
    for ema in (0.0, 0.5):
        model = tiny_model()
        settings = replace(SETTINGS, objective="onpolicy", teacher_ema=ema)
        train(model, examples(8), settings, tmp_path / str(ema), inputs=MATERIAL)
        deltas.append([layer.delta() for layer in lora_layers(model).values()])
    assert not any(torch.equal(a, b) for a, b in zip(*deltas, strict=True))


def test_a_state_of_another_sampling_is_refused(tmp_path):
    settings = replace(SETTINGS, objective="onpolicy")
    train(tiny_model(), examples(8), settings, tmp_path, inputs=MATERIAL)
    with pytest.raises(SdftError, match="sampling was by step, is otherwise"):
        train(tiny_model(), examples(8), settings, tmp_path, inputs=replace(MATERIAL, sampling="otherwise"))
    with pytest.raises(SdftError, match="settings: data was"):
        train(tiny_model(), examples(8), settings, tmp_path, inputs=replace(MATERIAL, shown=SHOWN[:-1]))
    with pytest.raises(SdftError, match="settings: data was"):
        train(tiny_model(), examples(8), settings, tmp_path, inputs=replace(MATERIAL, base_text=TEXTS[:-1]))
