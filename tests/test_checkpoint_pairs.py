"""Comparing two full trainings of one base model, against forming their changes."""
from __future__ import annotations

import copy

import pytest
import torch
from adapted import adapted
from tiny import tiny_llama

from sdft.errors import SdftError
from sdft.measure.weights.compare import compare_adapters, compare_changes, weights_of
from sdft.measure.weights.spectrum import Factors
from sdft.model.io.checkpoints import open_checkpoint, save_checkpoint
from sdft.model.lora import lora_layers, merge, remove_lora


def tuned(seed: int):
    """A tiny model whose q and v moved by a change of rank 4, as full fine-tuning leaves it, and its factors."""
    model = adapted(tiny_llama().double(), seed=seed)
    factors = {name: Factors(layer.lora_A.detach().clone(), layer.lora_B.detach().clone(), layer.scale)
               for name, layer in lora_layers(model).items()}
    merge(model)
    for layer in lora_layers(model).values():
        layer.unmerged = None
    remove_lora(model)
    return model, factors


def test_two_tunings_of_every_weight_are_compared_as_their_adapters_were():
    (first, factors), (second, others) = tuned(1), tuned(2)
    found = compare_changes(*map(weights_of, (tiny_llama().double(), first, second)), spectra=("q_proj",), k=4)
    expected = compare_adapters(factors, others)
    rows = {row["name"]: row for row in found["modules"]}
    close = {"abs": 1e-6}                       # `merge` adds a ΔW that was made in fp32
    assert found["cosine"] == pytest.approx(expected["cosine"], **close)
    assert found["norms"] == pytest.approx(expected["norms"], **close)
    for row in expected["modules"]:
        own = rows[row["name"]]
        assert own["cosine"] == pytest.approx(row["cosine"], **close)
        assert own["left"] == (pytest.approx(row["left"], **close) if row["kind"] == "q_proj" else [])
        assert own["right"] == (pytest.approx(row["right"], **close) if row["kind"] == "q_proj" else [])
    untouched = rows["model.layers.0.mlp.down_proj"]
    assert untouched["norms"] == [0, 0] and untouched["cosine"] == 0 and untouched["left_cosine"] is None


def test_a_change_and_its_opposite():
    seed, (first, _) = tiny_llama().double(), tuned(1)
    second = copy.deepcopy(seed)
    with torch.no_grad():
        for (_, old), (_, new), (_, weight) in zip(
                *(model.named_parameters() for model in (seed, first, second)), strict=True):
            weight.copy_(old - 2 * (new - old))
    found = compare_changes(*map(weights_of, (seed, first, second)), spectra=("v_proj",), k=2)
    assert found["cosine"] == pytest.approx(-1) and found["left_cosine"] == pytest.approx(1)
    assert found["norms"][1] == pytest.approx(2 * found["norms"][0])


def test_they_are_read_from_folders(tmp_path):
    models = [tiny_llama(), *(tuned(seed)[0].float() for seed in (1, 2))]
    folders = [tmp_path / name for name in "abc"]
    for folder, model in zip(folders, models, strict=True):
        save_checkpoint(model, None, folder)
    with open_checkpoint(folders[0]) as a, open_checkpoint(folders[1]) as b, open_checkpoint(folders[2]) as c:
        read, given = compare_changes(a, b, c), compare_changes(*map(weights_of, models))
    assert {row["name"]: row for row in read["modules"]} == {row["name"]: row for row in given["modules"]}
    assert read["cosine"] == pytest.approx(given["cosine"]) and read["unmatched"] == []


def test_what_cannot_be_compared_is_one_line():
    seed, other = weights_of(tiny_llama()), weights_of(tiny_llama(intermediate_size=40))
    with pytest.raises(SdftError, match=r"mlp.gate_proj.weight is \(.*expected checkpoints of one architecture"):
        compare_changes(seed, seed, other)
    with pytest.raises(SdftError, match="no tensor is in all three"):
        compare_changes(seed, seed, ([], None))
