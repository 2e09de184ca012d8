"""The Fisher-weighted shift on a Fisher made by hand, against forming ΔW."""
from __future__ import annotations

import copy

import pytest
import torch
from adapted import adapted
from tiny import tiny_llama

from sdft.errors import SdftError
from sdft.measure.weights.fisher import fisher_shift
from sdft.model.lora import lora_layers


def made_up(model):
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(layer.weight.shape, generator=generator) for name, layer in lora_layers(model).items()}


def test_two_weights_by_hand():
    """ΔW = 2·b·a = [[2, 4], [6, 12]] in one layer alone: 10·4 + 0·16 + 1·36 + 0.5·144 = 148."""
    model = adapted(size=0, rank=1, alpha=2, targets=("model.layers.0.self_attn.q_proj",))
    (layer,) = lora_layers(model).values()
    layer.lora_A.data.zero_()[0, :2] = torch.tensor([1.0, 2.0])
    layer.lora_B.data[:2, 0] = torch.tensor([1.0, 3.0])
    F = torch.full((32, 32), 7.0)                           # where nothing moved it does not count
    F[:2, :2] = torch.tensor([[10.0, 0.0], [1.0, 0.5]])
    assert fisher_shift(model, {"model.layers.0.self_attn.q_proj": F})["total"] == 148


@pytest.mark.parametrize("at_once", [1 << 22, 100])
def test_the_sum_over_all_modules(monkeypatch, at_once):
    monkeypatch.setattr("sdft.measure.weights.fisher.AT_ONCE", at_once)
    model = adapted(targets=("q_proj", "down_proj"))
    fisher = made_up(model)
    direct = {name: (fisher[name] * layer.delta().double() ** 2).sum().item()
              for name, layer in lora_layers(model).items()}
    found = fisher_shift(model, fisher)
    # delta() is formed in fp32: about 1e-7 of each of its elements.
    assert {row["name"]: row["shift"] for row in found["modules"]} == pytest.approx(direct, rel=1e-6)
    assert found["total"] == pytest.approx(sum(direct.values()), rel=1e-6)
    for key in ("layer", "kind"):
        for group in found[f"{key}s"]:
            own = [row["shift"] for row in found["modules"] if row[key] == group[key]]
            assert group["shift"] == pytest.approx(sum(own))
    ones = {name: torch.ones_like(F) for name, F in fisher.items()}
    squares = sum(layer.delta().double().square().sum().item() for layer in lora_layers(model).values())
    assert fisher_shift(model, ones)["total"] == pytest.approx(squares, rel=1e-6)


def test_full_fine_tuning_is_weighted_from_the_weights():
    seed = tiny_llama()
    model, fisher = copy.deepcopy(seed), {"model.layers.1.mlp.up_proj": torch.full((48, 32), 2.0)}
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] += 0.5
        model.model.layers[0].mlp.up_proj.weight += 1       # not in the Fisher
    assert fisher_shift(model, fisher, seed)["total"] == pytest.approx(2 * 32 * 0.25, rel=1e-6)


def test_a_fisher_of_other_layers_is_refused():
    model = adapted()
    fisher = made_up(model)
    name = "model.layers.0.self_attn.v_proj"
    for wrong, told in (({**fisher, name: fisher[name].t()}, r"\(32, 16\)"),
                        ({other: F for other, F in fisher.items() if other != name}, "nothing")):
        with pytest.raises(SdftError, match=rf"fisher: expected \(16, 32\) for {name}, got {told}"):
            fisher_shift(model, wrong)
