"""Comparing two adapters, against their products as vectors and as spaces."""
from __future__ import annotations

import math

import pytest
import torch
from adapted import adapted
from tiny import tiny_llama

from sdft.errors import SdftError
from sdft.measure.weights.compare import adapter_in, compare_adapters
from sdft.measure.weights.spectrum import Factors
from sdft.model.io.adapters import save_adapter
from sdft.model.lora import lora_layers


def adapter_of(model) -> dict[str, Factors]:
    return {name: Factors(layer.lora_A.detach(), layer.lora_B.detach(), layer.scale)
            for name, layer in lora_layers(model).items()}


def delta(factors) -> torch.Tensor:
    return factors.scale * factors.B.double() @ factors.A.double()


def test_an_adapter_is_read_without_its_model(tmp_path):
    for rslora, scale in ((False, 16 / 4), (True, 16 / math.sqrt(4))):
        model = adapted(rslora=rslora)
        save_adapter(model, tmp_path)
        read = adapter_in(tmp_path)
        assert read.keys() == lora_layers(model).keys()
        for name, factors in adapter_of(model).items():
            assert torch.equal(read[name].A, factors.A) and torch.equal(read[name].B, factors.B)
            assert read[name].scale == factors.scale == scale


def test_arms_are_compared_as_vectors_and_as_spaces():
    """Both start with the same A, so their row spaces are equal; the column spaces are independent."""
    first, second = adapter_of(adapted(seed=1)), adapter_of(adapted(seed=2, alpha=8))
    found = compare_adapters(first, second)
    deltas = [{name: delta(factors) for name, factors in each.items()} for each in (first, second)]
    flat = [torch.cat([change.flatten() for change in each.values()]) for each in deltas]
    assert found["cosine"] == pytest.approx(torch.nn.functional.cosine_similarity(*flat, dim=0).item())
    assert found["norms"] == pytest.approx([vector.norm().item() for vector in flat])
    for row in found["modules"]:
        mine, other = (each[row["name"]] for each in deltas)
        assert row["cosine"] == pytest.approx(torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), 0)
                                              .item())
        U, U_2 = (torch.linalg.svd(change).U[:, :4] for change in (mine, other))
        assert row["left"] == pytest.approx(torch.linalg.svdvals(U.t() @ U_2).tolist())
        assert row["left_cosine"] == pytest.approx(sum(row["left"]) / 4) and row["left_cosine"] < 0.9
        assert row["right"] == pytest.approx([1] * 4)
    for group in (*found["layers"], *found["kinds"]):
        key = "layer" if "layer" in group else "kind"
        names = [row["name"] for row in found["modules"] if row[key] == group[key]]
        flat = [torch.cat([each[name].flatten() for name in names]) for each in deltas]
        assert group["cosine"] == pytest.approx(torch.nn.functional.cosine_similarity(*flat, dim=0).item())
    assert len(found["layers"]) == 3 and [group["kind"] for group in found["kinds"]] == ["q_proj", "v_proj"]


def test_the_right_space_is_that_of_what_is_read():
    first, second = adapter_of(adapted()), adapter_of(adapted())
    name = next(iter(second))
    second[name].A[:] = torch.randn(second[name].A.shape, generator=torch.Generator().manual_seed(9))
    row = compare_adapters(first, second)["modules"][0]
    assert row["left"] == pytest.approx([1] * 4)
    V, V_2 = (torch.linalg.svd(delta(each[name])).Vh[:4].t() for each in (first, second))
    assert row["right"] == pytest.approx(torch.linalg.svdvals(V.t() @ V_2).tolist())


def test_an_arm_that_did_not_move_has_no_directions():
    first, second = adapter_of(adapted()), adapter_of(adapted(size=0))
    found = compare_adapters(first, second)
    assert found["cosine"] == 0 and found["norms"][1] == 0 and found["left_cosine"] is None
    assert found["modules"][0]["left"] == found["modules"][0]["right"] == []


def test_ranks_and_targets_may_differ_and_shapes_may_not():
    first, second = adapter_of(adapted()), adapter_of(adapted(rank=2, targets=("q_proj", "o_proj")))
    found = compare_adapters(first, second)
    assert [row["kind"] for row in found["modules"]] == ["q_proj"] * 3 and len(found["modules"][0]["left"]) == 2
    assert len(found["unmatched"]) == 6
    with pytest.raises(SdftError, match="no module in common"):
        compare_adapters(first, adapter_of(adapted(targets=("o_proj",))))
    wide = adapter_of(adapted(tiny_llama(hidden_size=64, head_dim=16)))
    with pytest.raises(SdftError, match=r"q_proj of \(32, 32\) and of \(64, 64\); expected two of one base"):
        compare_adapters(first, wide)
    first["model.layers.0.self_attn.q_proj"].B[0] = math.inf
    with pytest.raises(SdftError, match="q_proj: expected finite factors"):
        compare_adapters(first, second)
