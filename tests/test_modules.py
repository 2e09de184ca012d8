"""Everything measured of a module against forming ΔW and W₀ + ΔW."""
from __future__ import annotations

import copy
import json

import pytest
import torch
from adapted import adapted

from sdft.errors import SdftError
from sdft.measure.weights.shift import measure_shift, module_measures, spread_out
from sdft.measure.weights.spectrum import compare_spectra, effective_rank, stable_rank
from sdft.model.lora import lora_layers, merge, remove_lora

TARGETS = ("q_proj", "v_proj", "down_proj")


def test_an_adapter_is_measured_on_its_base():
    model = adapted(targets=TARGETS)
    found = module_measures(model, spectra=("v_proj", "model.layers.0.mlp.*"))
    plain = measure_shift(model)
    assert plain["modules"] == [{key: row[key] for key in plain["modules"][0]} for row in found["modules"]]
    assert plain["total"] == found["total"] and plain["relative"] == found["relative"]
    for row in found["modules"]:
        layer = lora_layers(model)[row["name"]]
        before = layer.weight.detach().double()
        change = (layer.scale * layer.lora_B.double() @ layer.lora_A.double()).detach()
        spectrum = torch.linalg.svdvals(change)[:4]
        assert row["spectrum"] == pytest.approx(spectrum.tolist())
        assert row["stable_rank"] == pytest.approx(stable_rank(spectrum))
        assert row["effective_rank"] == pytest.approx(effective_rank(spectrum))
        whole = compare_spectra(before, before + change)
        asked = row["kind"] == "v_proj" or row["name"] == "model.layers.0.mlp.down_proj"
        assert ("spectral_shift" in row) == asked
        if asked:
            assert {key: row[key] for key in whole} == pytest.approx(whole)


def test_what_bf16_shows_is_what_merging_changes():
    model = adapted(size=0.002).bfloat16()
    for layer in lora_layers(model).values():
        layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.float(), layer.lora_B.data.float()
    found = module_measures(model)
    changes = {name: layer.weight.detach().clone() for name, layer in lora_layers(model).items()}
    report = merge(model)
    assert 0.05 < report["changed"] < 0.95 and found["changed_bf16"] == pytest.approx(report["changed"])
    for row in found["modules"]:
        weight = lora_layers(model)[row["name"]].weight
        assert row["changed_bf16"] == (weight != changes[row["name"]]).double().mean().item()
    assert module_measures(model) == found                              # merged or not
    assert len({row["changed_bf16"] for row in found["modules"]}) > 1


def test_of_an_fp32_model_it_is_the_share_that_a_bf16_copy_would_show():
    model = adapted(size=0.002)
    (row, *_) = module_measures(model)["modules"]
    layer = lora_layers(model)[row["name"]]
    with torch.no_grad():
        after = (layer.weight + layer.delta()).bfloat16()
    assert 0.05 < row["changed_bf16"] == (after != layer.weight.bfloat16()).double().mean().item() < 0.95


def test_layers_kinds_and_the_whole_are_the_means_over_modules_and_the_share_over_weights():
    found = module_measures(adapted(targets=TARGETS, size=0.005), spectra=("q_proj",))
    groups = [(found["modules"], found)]
    for key in ("layer", "kind"):
        groups += [([row for row in found["modules"] if row[key] == group[key]], group) for group in found[f"{key}s"]]
    assert len(groups) == 1 + 3 + 3
    for rows, group in groups:
        weights = [row["weights"] for row in rows]
        changed = sum(row["changed_bf16"] * row["weights"] for row in rows)
        assert group["changed_bf16"] == pytest.approx(changed / sum(weights))
        for name in ("stable_rank", "effective_rank"):
            assert group[name] == pytest.approx(sum(row[name] for row in rows) / len(rows))
        taken = [row["intruders"] for row in rows if "intruders" in row]
        assert group.get("intruders") == (sum(taken) / len(taken) if taken else None)


def test_full_fine_tuning_is_measured_from_the_weights():
    model = adapted()
    seed = copy.deepcopy(model)
    merge(model)
    tuned, change = copy.deepcopy(model), lora_layers(model)["model.layers.1.self_attn.v_proj"].delta()
    for each in (seed, tuned):
        for layer in lora_layers(each).values():                   # as full fine-tuning leaves it: no adapter
            layer.unmerged = None
        remove_lora(each)
    found = module_measures(tuned, seed, spectra=("v_proj",))
    assert found["total"] == pytest.approx(measure_shift(tuned, seed)["total"])
    rows = {row["name"]: row for row in found["modules"]}
    assert len(rows) == len(list(seed.parameters()))
    row = rows["model.layers.1.self_attn.v_proj"]
    # fp32 weights of size 0.2 were subtracted: 1e-8 of each value, against changes of 0.05.
    assert row["stable_rank"] == pytest.approx(stable_rank(torch.linalg.svdvals(change.double())), rel=1e-5)
    assert "stable_rank" not in rows["lm_head"] and rows["lm_head"]["changed_bf16"] == 0


def test_the_measures_of_a_run_are_json():
    found = module_measures(adapted(), spectra=("q_proj",))
    assert json.loads(json.dumps(found)) == found
    assert {"total", "relative", "changed_bf16", "stable_rank", "effective_rank", "spectral_shift", "left_cosine",
            "right_cosine", "intruders", "modules", "layers", "kinds"} == found.keys()


def test_factors_that_are_not_finite_are_one_line():
    model = adapted()
    layer = lora_layers(model)["model.layers.2.self_attn.q_proj"]
    layer.lora_B.data[0, 0] = float("nan")
    for measure in (module_measures, measure_shift):
        with pytest.raises(SdftError, match=r"^model.layers.2.self_attn.q_proj: expected finite weights"):
            measure(model)
    with pytest.raises(SdftError, match="'k_proj' names nothing here"):
        module_measures(adapted(), spectra=("k_proj",))


def test_layers_to_decompose_are_spread_from_the_first_to_the_last():
    names = [f"model.layers.{layer}.self_attn.{kind}" for layer in range(2, 12) for kind in ("q_proj", "v_proj")]

    def layers(count):
        return sorted({int(name.split(".")[2]) for name in spread_out(["lm_head", *names], count)})

    assert layers(0) == [] and layers(1) == [2] and layers(2) == [2, 11] and layers(4) == [2, 5, 8, 11]
    assert layers(10) == layers(99) == list(range(2, 12))
    assert spread_out(names, 1) == names[:2]                        # every matrix of a layer
