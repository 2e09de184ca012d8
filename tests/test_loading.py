"""Model folders: one file or shards, written and read by transformers and by us, and everything that can be wrong."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, copy_of, hf_model, tiny_llama

from sdft.errors import SdftError
from sdft.model.io.checkpoints import as_dtype, load_model, save_checkpoint
from sdft.model.lora import add_lora, lora_layers, merge

TOKENS = torch.arange(3, 23)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_loads(tmp_path, family):
    hf = hf_model(family)
    hf.save_pretrained(str(tmp_path))
    model = load_model(tmp_path, "float32")
    assert torch.equal(model(TOKENS), copy_of(hf)(TOKENS))
    assert not model.training
    half = load_model(tmp_path, "bfloat16")
    assert half.dtype == torch.bfloat16 and all(weight.dtype == torch.bfloat16 for weight in half.parameters())


def test_a_sharded_folder_loads(tmp_path):
    hf = hf_model("llama2")
    hf.save_pretrained(str(tmp_path), max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(load_model(tmp_path, "float32")(TOKENS), copy_of(hf)(TOKENS))
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    with pytest.raises(SdftError, match="expected the shard model-00001"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_we_save(tmp_path, family):
    from transformers import AutoModelForCausalLM

    hf = hf_model(family)
    model = copy_of(hf)
    save_checkpoint(model, None, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32, attn_implementation="eager")
    torch.testing.assert_close(theirs(TOKENS).logits, hf(TOKENS).logits, atol=0, rtol=0)


def test_a_merged_adapter_is_saved_and_an_unmerged_one_refused(tmp_path):
    model = tiny_llama()
    add_lora(model, rank=4)
    for layer in lora_layers(model).values():
        layer.lora_B.data.fill_(0.05)
    with pytest.raises(SdftError, match="merge"):
        save_checkpoint(model, None, tmp_path)
    merge(model)
    save_checkpoint(model, None, tmp_path)
    assert torch.equal(load_model(tmp_path, "float32")(TOKENS), model(TOKENS))


def test_an_index_with_a_tensor_that_its_shard_lacks_is_one_line(tmp_path):
    hf_model("llama2").save_pretrained(str(tmp_path), max_shard_size="20kB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for weight_map, message in (
            ({**index["weight_map"], "model.norm.weight": index["weight_map"]["model.embed_tokens.weight"]},
             "expected model.norm.weight, as model.safetensors.index.json says, found no such tensor"),
            ({"model.norm.weight": 1}, "expected a weight_map from tensor names to files")):
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(SdftError, match=message):
            load_model(tmp_path)


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tiny_llama(), None, tmp_path)
    return tmp_path


def _change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}   # the file is memory-mapped
    change(tensors)
    save_file(tensors, str(path))


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("model.norm.weight"), "1 tensors that config.json asks for are missing, first model.norm.weight"),
    (lambda t: t.update({"model.extra": torch.zeros(1)}),
     "1 tensors have no place in the model of config.json, first model.extra"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(7)}),
     r"model.norm.weight has shape \(7,\), config.json asks for \(32,\)"),
    (lambda t: t.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}),
     "holds int8; expected floating-point"),
    (lambda t: [t.pop(name) for name in list(t) if ".layers.2." in name],
     "config.json asks for 3 layers, found the weights of 2"),
])
def test_wrong_tensors_are_named(folder, change, message):
    _change_tensors(folder, change)
    with pytest.raises(SdftError, match=message):
        load_model(folder)


def test_damaged_folders_are_one_line(folder):
    data = (folder / "model.safetensors").read_bytes()
    for damaged in (data[:100], data[:-10], b""):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(SdftError, match="not a readable safetensors file"):
            load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SdftError, match=r"expected model.safetensors or .* found neither"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(SdftError, match=r"config.json, line 1: malformed JSON"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(SdftError, match="mamba is not supported"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(SdftError, match="expected a model folder with config.json"):
        load_model(folder)


@pytest.mark.parametrize(("knows", "device", "dtype"), [(True, "cpu", torch.bfloat16), (False, "cpu", torch.float32),
                                                       (False, "cuda", torch.bfloat16)])
def test_auto_is_bfloat16_where_the_processor_multiplies_in_it(monkeypatch, knows, device, dtype):
    monkeypatch.setattr("sdft.model.io.checkpoints.multiplies_bfloat16", lambda: knows)
    assert as_dtype("auto", device) == dtype and as_dtype("float16", device) == torch.float16


def test_an_unknown_dtype_is_one_line(folder):
    with pytest.raises(SdftError, match="dtype: expected auto or one of bfloat16, float16, float32, got 'int4'"):
        load_model(folder, "int4")


def test_old_checkpoints_with_redundant_tensors_load(folder):
    """Checkpoints of 2023 hold the rotary frequencies; tied ones may hold both the head and the embedding."""
    save_checkpoint(tiny_llama("smollm2"), None, folder)
    expected = load_model(folder, "float32")(TOKENS)
    _change_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone(),
                                                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    assert torch.equal(load_model(folder, "float32")(TOKENS), expected)
