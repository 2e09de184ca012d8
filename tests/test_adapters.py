"""Adapters on disk: PEFT loads ours, we load PEFT's, and both compute the same."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import copy_of, hf_model, tiny_llama

from sdft.errors import SdftError
from sdft.model.io.adapters import load_adapter, save_adapter
from sdft.model.lora import add_lora, lora_layers

TOKENS = torch.arange(3, 23)[None]
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}          # fp32, sums in another order; logits of size 1 to 10


def _shake(model):
    generator = torch.Generator().manual_seed(0)
    for layer in lora_layers(model).values():
        layer.lora_B.data.normal_(0, 0.2, generator=generator)


@pytest.mark.parametrize("settings", [
    {"targets": ("q_proj", "v_proj")}, {"targets": ("*.1.*", "down_proj"), "rslora": True, "rank": 3, "alpha": 5.0}])
def test_peft_loads_ours(tmp_path, settings):
    from peft import PeftModel

    hf = hf_model("llama2")
    model = copy_of(hf)
    add_lora(model, **settings)
    _shake(model)
    save_adapter(model, tmp_path, "base")
    theirs = PeftModel.from_pretrained(hf, str(tmp_path)).eval()
    torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, **TOLERANCE)
    assert not torch.allclose(model(TOKENS), copy_of(hf_model("llama2"))(TOKENS), atol=1e-2)
    adapted = [name for name, _ in theirs.named_parameters() if ".lora_A." in name]
    assert len(adapted) == len(lora_layers(model))          # an extra layer of zeros would compute the same


@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_pefts(tmp_path, rslora):
    from peft import LoraConfig, get_peft_model

    hf = hf_model("qwen2")
    model = copy_of(hf)
    torch.manual_seed(3)
    theirs = get_peft_model(hf, LoraConfig(r=4, lora_alpha=8, target_modules=["k_proj", "up_proj"], use_rslora=rslora,
                                           init_lora_weights=False)).eval()
    theirs.save_pretrained(str(tmp_path))
    load_adapter(model, tmp_path)
    torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, **TOLERANCE)


def test_ours_round_trips_bit_for_bit(tmp_path):
    model = tiny_llama()
    add_lora(model, rank=4)
    _shake(model)
    save_adapter(model, tmp_path)
    other = tiny_llama()
    add_lora(other, rank=2, targets=("o_proj",))          # load_adapter replaces it
    load_adapter(other, tmp_path)
    assert torch.equal(model(TOKENS), other(TOKENS))
    assert list(lora_layers(other)) == list(lora_layers(model))


@pytest.fixture
def saved(tmp_path):
    model = tiny_llama()
    add_lora(model, rank=4)
    save_adapter(model, tmp_path)
    return tmp_path


def test_an_adapter_for_another_model_is_one_line_and_changes_nothing(saved):
    other = tiny_llama(hidden_size=64, head_dim=16)
    with pytest.raises(SdftError, match="for another model: for model.layers.0.self_attn.q_proj it expects a"):
        load_adapter(other, saved)
    shallow = tiny_llama(num_hidden_layers=1)
    with pytest.raises(SdftError, match="it changes model.layers.1.self_attn.q_proj, which this model lacks"):
        load_adapter(shallow, saved)
    assert lora_layers(other) == lora_layers(shallow) == {}


def test_damaged_adapters_are_one_line(saved):
    path = saved / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}   # the file is memory-mapped
    config = json.loads((saved / "adapter_config.json").read_text())
    data = path.read_bytes()

    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SdftError, match="not a readable safetensors file"):
        load_adapter(tiny_llama(), saved)
    head = {f"base_model.model.lm_head.{factor}.weight": torch.zeros(shape)
            for factor, shape in (("lora_A", (4, 32)), ("lora_B", (97, 4)))}
    for changed, message in (
            ({name: tensor for name, tensor in tensors.items() if "lora_A" in name}, "found lora_A alone"),
            ({name: tensor for name, tensor in tensors.items() if "lora_B" in name}, "found lora_B alone"),
            (tensors | {"base_model.model.score.weight": torch.zeros(2, 2)}, "unexpected tensor .*score.weight"),
            (tensors | head, "changes lm_head, which is not supported"),
            ({name: tensor[:, :3] if "lora_B" in name else tensor[:3] for name, tensor in tensors.items()},
             "to have rank 4, as adapter_config.json says, got 3 and 3")):
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, str(path))
        with pytest.raises(SdftError, match=message):
            load_adapter(tiny_llama(), saved)
    path.write_bytes(data)
    for change, message in (({"use_dora": True}, "use_dora is not supported"), ({"peft_type": "IA3"}, "peft_type LORA"),
                            ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is not supported"),
                            ({"init_lora_weights": "pissa"}, "changes the base weights too"),
                            ({"lora_alpha": "x"}, "a number lora_alpha"), ({"r": None}, "expected r of at least 1")):
        (saved / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(SdftError, match=message):
            load_adapter(tiny_llama(), saved)
    (saved / "adapter_config.json").unlink()
    with pytest.raises(SdftError, match="found no adapter_config.json"):
        load_adapter(tiny_llama(), saved)


def test_a_model_without_an_adapter_has_none_to_save(tmp_path):
    with pytest.raises(SdftError, match="no adapter to save"):
        save_adapter(tiny_llama(), tmp_path)
