"""The drift after every layer against hooks on one plain forward pass per text, and CKA against its Gram form."""
from __future__ import annotations

import copy

import pytest
import torch
from adapted import adapted
from training_parts import examples, tiny_model

import sdft.measure.outputs.activations as module
from sdft.measure.outputs.activations import activation_drift, linear_cka
from sdft.model.lora import adapter_off, lora_layers, merge


def hooked(model, data):
    """The states after each layer at the positions whose next token is a target: a list of (n, D)."""
    seen = [[] for _ in model.model.layers]
    hooks = [layer.register_forward_hook(lambda _, __, out, own=own: own.append(out))
             for layer, own in zip(model.model.layers, seen, strict=True)]
    for example in data:
        model(torch.tensor([example.tokens]))
    for hook in hooks:
        hook.remove()
    rows = [torch.tensor(example.mask[1:]).nonzero().squeeze(1) for example in data]
    return [torch.cat([x[own] for x, own in zip(layer, rows, strict=True)]).double() for layer in seen]


def gram_cka(X, Y):
    """tr(KHLH) / √(tr(KHKH)·tr(LHLH)) with K = XXᵀ, L = YYᵀ: Kornblith et al. 2019, equations 3 and 4."""
    n = len(X)
    H = torch.eye(n, dtype=X.dtype) - 1 / n
    K, L = X @ X.t(), Y @ Y.t()
    return ((K @ H @ L @ H).trace() / ((K @ H @ K @ H).trace() * (L @ H @ L @ H).trace()).sqrt()).item()


@pytest.mark.parametrize("pack", [4096, 30])
@torch.no_grad()
def test_every_layer_against_hooks_on_each_text_alone(monkeypatch, pack):
    monkeypatch.setattr(module, "PACK", pack)
    model, data = adapted(tiny_model(), size=0.3), examples(7, shared=20)
    found = activation_drift(model, data)
    after = hooked(model, data)
    with adapter_off(model):
        before = hooked(model, data)
    assert found["n"] == 7 and found["tokens"] == len(before[0]) == sum(sum(each.mask) for each in data)
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    for row, h_base, h in zip(found["layers"], before, after, strict=True):
        ratios = [((a - b).norm() / b.norm()).item() for a, b in zip(h, h_base, strict=True)]
        cosines = [torch.nn.functional.cosine_similarity(a, b, dim=0).item() for a, b in zip(h, h_base, strict=True)]
        # fp32 states, packed and alone: about 1e-6 of their size.
        assert row["relative"] == pytest.approx(sum(ratios) / len(ratios), rel=1e-4) and row["relative"] > 0.01
        assert row["cosine"] == pytest.approx(sum(cosines) / len(cosines), rel=1e-5) and row["cosine"] < 0.9999
        assert row["cka"] == pytest.approx(gram_cka(h, h_base), rel=1e-5) and row["cka"] < 0.9999
    assert all(layer.enabled for layer in lora_layers(model).values())


def test_full_fine_tuning_is_compared_with_a_second_model():
    model, data = adapted(tiny_model()), examples(5)
    direct = activation_drift(model, data)["layers"]
    tuned = copy.deepcopy(model)
    merge(tuned)
    for row, other in zip(direct, activation_drift(tuned, data, tiny_model())["layers"], strict=True):
        assert other == pytest.approx(row, rel=1e-3)


def test_an_adapter_that_changes_nothing():
    found = activation_drift(adapted(tiny_model(), size=0), examples(5))["layers"]
    assert found == [{"layer": layer, "relative": 0, "cosine": pytest.approx(1), "cka": pytest.approx(1)}
                     for layer in (0, 1)]


def test_cka_sees_neither_rotation_nor_scale_nor_shift_and_knows_unrelated_states():
    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(200, 8, generator=generator) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert linear_cka(X, 3 * X @ turn + 5) == pytest.approx(1, abs=1e-6)
    assert linear_cka(X, Y) == pytest.approx(gram_cka(X.double(), Y.double()))
    assert linear_cka(X, Y) == pytest.approx(8 / 208, rel=0.5)         # its expectation; one draw of 64 squares
    assert linear_cka(X, X[:, :3]) == pytest.approx(gram_cka(X.double(), X[:, :3].double()))
    assert linear_cka(X, torch.ones(200, 2)) == 0
