"""The shift of the weights against forming ΔW and taking norms."""
from __future__ import annotations

import copy
import math

import pytest
import torch
from adapted import adapted
from tiny import tiny_llama

from sdft.errors import SdftError
from sdft.measure.weights.shift import factor_norm, measure_shift
from sdft.model.lora import lora_layers, merge


def test_the_shift_from_the_factors_is_that_of_delta_w():
    model = adapted(targets=("q_proj", "v_proj", "down_proj"))
    found = measure_shift(model)
    deltas = {name: layer.delta().double() for name, layer in lora_layers(model).items()}
    bases = {name: layer.weight.double() for name, layer in lora_layers(model).items()}
    assert [module["name"] for module in found["modules"]] == list(deltas)
    for module in found["modules"]:
        # delta() is formed in fp32: about 1e-7 of each of its elements.
        assert module["norm"] == pytest.approx(deltas[module["name"]].norm().item(), rel=1e-6)
        assert module["relative"] == pytest.approx(module["norm"] / bases[module["name"]].norm().item(), rel=1e-6)
    flat = torch.cat([delta.flatten() for delta in deltas.values()])
    base = torch.cat([weight.flatten() for weight in bases.values()])
    assert found["total"] == pytest.approx(flat.norm().item(), rel=1e-6)
    assert found["relative"] == pytest.approx((flat.norm() / base.norm()).item(), rel=1e-6)


def test_the_shift_by_layer_and_by_kind():
    model = adapted()
    found = measure_shift(model)
    assert [row["layer"] for row in found["layers"]] == [0, 1, 2]
    assert [row["kind"] for row in found["kinds"]] == ["q_proj", "v_proj"]
    for key in ("layer", "kind"):
        for row in found[f"{key}s"]:
            own = [module for module in found["modules"] if module[key] == row[key]]
            assert row["norm"] == pytest.approx(math.hypot(*(module["norm"] for module in own)))
            assert row["relative"] == pytest.approx(row["norm"] / math.hypot(*(module["base"] for module in own)))


def test_a_merged_adapter_is_measured_against_the_base_model():
    model = adapted()
    before = measure_shift(model)
    merge(model)
    assert measure_shift(model) == before


def test_a_shift_far_below_bf16_rounding_is_measured():
    model = adapted().bfloat16()
    for layer in lora_layers(model).values():
        layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.float(), layer.lora_B.data.float() * 1e-5
    exact = math.sqrt(sum(layer.delta().double().square().sum().item() for layer in lora_layers(model).values()))
    assert measure_shift(model)["total"] == pytest.approx(exact, rel=1e-6)
    report = merge(model)
    assert report["changed"] < 0.01                                  # subtracting the merged weights would say: nothing


def test_factors_that_cancel_give_zero_not_nan():
    A = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert factor_norm(A, torch.tensor([[1.0, -1.0], [3.0, -3.0]]), 2.0) == 0


def test_full_fine_tuning_is_measured_from_the_weights():
    seed = tiny_llama()
    model = copy.deepcopy(seed)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight += 0.01
        model.lm_head.weight[0, 0] += 2
    found = measure_shift(model, seed)
    assert found["total"] == pytest.approx(math.hypot(0.01 * math.sqrt(48 * 32), 2), rel=1e-5)
    moved = {module["name"]: module for module in found["modules"] if module["norm"]}
    assert set(moved) == {"model.layers.1.mlp.up_proj", "lm_head"}
    assert moved["lm_head"]["layer"] is None and moved["lm_head"]["norm"] == pytest.approx(2, rel=1e-6)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(SdftError, match="no adapter to measure"):
        measure_shift(tiny_llama())
    with pytest.raises(SdftError, match="names or shapes differ"):
        measure_shift(tiny_llama(), tiny_llama("smollm2"))
