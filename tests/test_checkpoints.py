"""Two checkpoint folders against the difference of all their weights at once."""
from __future__ import annotations

import math
import weakref

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_llama

from sdft.errors import SdftError
from sdft.files import write_json
from sdft.measure.weights.compare import compare_checkpoints
from sdft.measure.weights.shift import distance, measure_shift


def two_models():
    seed, tuned = tiny_llama(), tiny_llama()
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight += 0.01
        tuned.model.layers[2].mlp.up_proj.weight[3] = 0
    return seed, tuned


def save(model, folder, shards: int = 1):
    folder.mkdir()
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names = sorted(weights)
    where = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == file}, folder / file)
    write_json(folder / "model.safetensors.index.json", {"weight_map": where})
    return folder


def test_folders_are_compared_as_the_models_in_them_whatever_their_files(tmp_path):
    seed, tuned = two_models()
    found = compare_checkpoints(save(seed, tmp_path / "a"), save(tuned, tmp_path / "b", shards=3))
    direct = measure_shift(tuned, seed)
    flat = torch.cat([(new.double() - old.double()).flatten()
                      for new, old in zip(tuned.parameters(), seed.parameters(), strict=True)])
    assert found["total"] == pytest.approx(flat.norm().item()) == pytest.approx(direct["total"])
    by_name = {row["name"]: row for row in found["modules"]}
    assert {row["name"] for row in direct["modules"]} == by_name.keys() and found["unmatched"] == []
    for row in direct["modules"]:
        assert by_name[row["name"]]["norm"] == pytest.approx(row["norm"])
        assert by_name[row["name"]]["relative"] == pytest.approx(row["relative"])
    changed = {name: row["changed_bf16"] for name, row in by_name.items() if row["changed_bf16"]}
    assert changed == {"model.layers.1.self_attn.q_proj": 1, "model.layers.2.mlp.up_proj": pytest.approx(1 / 48)}
    assert found["changed_bf16"] == pytest.approx((32 * 32 + 32) / len(flat))


def test_folders_of_different_dtypes_are_compared_by_value(tmp_path):
    seed, tuned = two_models()
    tuned = tuned.half()
    found = compare_checkpoints(save(seed.bfloat16(), tmp_path / "a"), save(tuned, tmp_path / "b", shards=2))
    for row in found["modules"]:
        old, new = (model.get_parameter(f"{row['name']}.weight") for model in (seed, tuned))
        assert row["norm"] == pytest.approx((new.double() - old.double()).norm().item())
        assert row["changed_bf16"] == (new.bfloat16() != old).double().mean().item()


def test_two_tensors_are_the_most_that_is_held(tmp_path, monkeypatch):
    seed, tuned = two_models()
    folders, held = (save(seed, tmp_path / "a"), save(tuned, tmp_path / "b")), []

    def watched(before, after):
        assert not [each for each in held if each() is not None]
        held.extend(weakref.ref(tensor) for tensor in (before, after))
        return distance(before, after)

    monkeypatch.setattr("sdft.measure.weights.shift.distance", watched)
    compare_checkpoints(*folders)
    assert len(held) == 2 * len(list(seed.parameters()))


def test_spectra_are_taken_where_asked(tmp_path):
    seed, tuned = two_models()
    folders = save(seed, tmp_path / "a"), save(tuned, tmp_path / "b")
    rows = compare_checkpoints(*folders, spectra=("q_proj", "model.layers.0.mlp.*"))["modules"]
    taken = [row for row in rows if "intruders" in row]
    assert len(taken) == 3 + 3
    (moved,) = [row for row in taken if row["spectral_shift"] > 0]
    assert moved["name"] == "model.layers.1.self_attn.q_proj"
    assert moved["stable_rank"] == pytest.approx(1, abs=1e-5)       # the same 0.01 everywhere, but for fp32's rounding
    assert "stable_rank" not in next(row for row in rows if row["kind"] == "k_proj")


def test_values_taken_some_at_a_time_do_not_show(monkeypatch):
    before, after = torch.randn(50, 7), torch.randn(50, 7)
    whole = distance(before, after)
    monkeypatch.setattr("sdft.measure.weights.shift.AT_ONCE", 20)
    assert distance(before, after) == pytest.approx(whole)
    assert distance(torch.tensor(2.0), torch.tensor(5.0)) == (3, 2, 1)
    assert distance(torch.tensor([1.0, 1.0]), torch.tensor([1.001, 1.1]))[2] == 0.5       # bf16 has steps of 2⁻⁷ at 1
    assert whole[0] == pytest.approx((after - before).norm().item(), rel=1e-6)
    assert math.isclose(whole[1], before.norm().item(), rel_tol=1e-6) and whole[2] == 1


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = save(tiny_llama(), tmp_path / "a")
    with pytest.raises(SdftError, match=r"lm_head.weight is \(97, 32\) in .*a and \(98, 32\) in"):
        compare_checkpoints(a, save(tiny_llama(vocab_size=98), tmp_path / "b"))
    (tmp_path / "c").mkdir()
    save_file({"other": torch.zeros(1)}, tmp_path / "c" / "model.safetensors")
    with pytest.raises(SdftError, match="no tensor in common"):
        compare_checkpoints(a, tmp_path / "c")
    with pytest.raises(SdftError, match="expected model.safetensors"):
        compare_checkpoints(a, tmp_path)
    tied = save(tiny_llama("smollm2"), tmp_path / "d")
    assert compare_checkpoints(a, tied)["unmatched"] == ["lm_head.weight"]
    with pytest.raises(SdftError, match="spectra: 'q_prj' names nothing here .did you mean q_proj"):
        compare_checkpoints(a, a, spectra=("q_prj",))
    for folder, weight, message in (("e", torch.tensor([1.0, math.nan]), "x: expected finite weights, but its norm is"),
                                    ("f", torch.tensor([1, 2]), "f: x holds int64; expected floating-point weights")):
        (tmp_path / folder).mkdir()
        save_file({"x": weight}, tmp_path / folder / "model.safetensors")
        with pytest.raises(SdftError, match=message):
            compare_checkpoints(tmp_path / folder, tmp_path / folder)
    broken = save(tiny_llama(), tmp_path / "g", shards=2)
    save_file({"other": torch.zeros(1)}, broken / "model-1.safetensors")
    with pytest.raises(SdftError, match="model-1.safetensors: expected .*, as model.safetensors.index.json says"):
        compare_checkpoints(a, broken)
