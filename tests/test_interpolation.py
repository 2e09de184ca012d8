"""The loss along θ₀ + t·ΔW against models whose weights are those."""
from __future__ import annotations

import copy

import pytest
import torch
from adapted import adapted
from tiny import tiny_llama
from training_parts import examples, tiny_model

from sdft.errors import SdftError
from sdft.measure.outputs.gap import gap
from sdft.measure.weights.interpolation import AT, loss_along, moved
from sdft.model.lora import adapter_off, lora_layers, merge


def state(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def test_the_loss_along_an_adapter_is_that_of_merged_weights():
    model, data = adapted(tiny_model()), examples(6)
    before = {name: layer.scale for name, layer in lora_layers(model).items()}
    found = loss_along(model, data)
    assert [row["t"] for row in found] == list(AT)
    for row in found:
        other = tiny_model()
        for name, layer in lora_layers(model).items():
            other.get_submodule(name).weight.data += row["t"] * layer.delta()
        assert row["nll"] == pytest.approx(gap(other, data)["nll"], rel=1e-5)       # fp32, in another order
    assert {name: layer.scale for name, layer in lora_layers(model).items()} == before
    assert found[4]["nll"] == gap(model, data)["nll"]
    with adapter_off(model):
        assert found[0]["nll"] == gap(model, data)["nll"]


def test_the_loss_between_two_models():
    seed, data = tiny_model(), examples(6)
    model = copy.deepcopy(seed)
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    before = state(model)
    found = loss_along(model, data, at=(0, 0.5, 1, 1.5), base=seed)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert found[0]["nll"] == gap(seed, data)["nll"] and found[2]["nll"] == gap(model, data)["nll"]
    for row in (found[1], found[3]):
        other = copy.deepcopy(seed)
        for weight, tuned in zip(other.parameters(), model.parameters(), strict=True):
            weight.data += row["t"] * (tuned - weight).detach()
        assert row["nll"] == pytest.approx(gap(other, data)["nll"], rel=1e-5)


def test_the_model_is_restored_bit_for_bit_whatever_happens():
    """In bf16 the way there and back would not lead home."""
    seed = tiny_model().bfloat16()
    tuned = copy.deepcopy(seed)
    for weight in tuned.parameters():
        weight.data += torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)).to(weight.dtype)
    for model, other in ((adapted(tiny_model()), None), (tuned, seed)):
        before, scales = state(model), [layer.scale for layer in lora_layers(model).values()]
        with pytest.raises(KeyError), moved(model, 0.3, other):
            assert scales != [layer.scale for layer in lora_layers(model).values()] or not scales
            raise KeyError
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        assert [layer.scale for layer in lora_layers(model).values()] == scales


def test_what_has_no_way_to_go_is_refused():
    merged = adapted(tiny_model())
    merge(merged)
    for model, seed, message in ((tiny_model(), None, "no adapter"), (merged, None, "unmerge.model. first"),
                                 (tiny_model(), tiny_llama(), "names or shapes differ")):
        with pytest.raises(SdftError, match=message):
            loss_along(model, examples(2), base=seed)
