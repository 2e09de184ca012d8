"""GGUF: every supported type equal to the gguf library bit for bit; whole models; damaged files."""
import gguf
import numpy as np
import pytest
import torch
from tiny import copy_of, hf_model

from sdft.errors import SdftError
from sdft.model.io.gguf import GGUF, load_gguf

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]
TOKENS = torch.arange(3, 23)[None]


def _write(path, tensors, metadata=(), architecture="llama"):
    """Write a GGUF with the library: tensors name → (fp32 array, type)."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in metadata:
        writer.add_key_value(key, value, {int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32,
                                          str: gguf.GGUFValueType.STRING}[type(value)])
    for name, (array, kind) in tensors.items():
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", TYPES)
def test_tensors_equal_the_library_bit_for_bit(tmp_path, kind):
    array = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    path = _write(tmp_path / "t.gguf", {"other": (array[:1], "F32"), "x": (array, kind)})
    theirs = next(tensor for tensor in gguf.GGUFReader(str(path)).tensors if tensor.name == "x")
    expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type).reshape(6, 96).astype(np.float32)
    ours = GGUF(path).tensor("x")
    assert ours.dtype == np.float32 and np.array_equal(ours, expected)


def _permute(weight, heads):
    """Permute q or k of the family "llama", as llama.cpp's converter does."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _export(path, hf, architecture, more=()):
    """Write a transformers model as llama.cpp's converter does, in F32, with `more` tensors."""
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
             "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
             "q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}
    config, tensors = hf.config, dict(more)
    for name, weight in hf.named_parameters():
        parts, array = name.split("."), weight.detach().numpy()
        prefix = f"blk.{parts[2]}." if "layers" in parts else ""
        if architecture == "llama" and parts[-2] in ("q_proj", "k_proj"):
            array = _permute(array, config.num_attention_heads if parts[-2] == "q_proj" else config.num_key_value_heads)
        tensors[f"{prefix}{names[parts[-2]]}.{parts[-1]}"] = (np.ascontiguousarray(array), "F32")
    a = architecture
    return _write(path, tensors, [
        (f"{a}.block_count", config.num_hidden_layers), (f"{a}.embedding_length", config.hidden_size),
        (f"{a}.feed_forward_length", config.intermediate_size), (f"{a}.vocab_size", config.vocab_size),
        (f"{a}.attention.head_count", config.num_attention_heads),
        (f"{a}.context_length", config.max_position_embeddings),
        (f"{a}.attention.head_count_kv", config.num_key_value_heads),
        (f"{a}.attention.key_length", hf.model.layers[0].self_attn.head_dim),
        (f"{a}.attention.layer_norm_rms_epsilon", float(config.rms_norm_eps)),
        (f"{a}.rope.freq_base", float(config.rope_parameters["rope_theta"]))], a)


@pytest.mark.parametrize(("family", "architecture"), [("llama2", "llama"), ("smollm2", "llama"), ("qwen2", "qwen2"),
                                                      ("qwen3", "qwen3")])
def test_a_model_loads_with_its_heads_in_hugging_faces_order(tmp_path, family, architecture):
    hf = hf_model(family)
    path = _export(tmp_path / "m.gguf", hf, architecture)
    torch.testing.assert_close(load_gguf(path, "float32")(TOKENS), copy_of(hf)(TOKENS), atol=1e-5, rtol=1e-5)


LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}            # Llama 3.2


def _divisors(hf):
    """Return what llama.cpp's converter writes as rope_freqs: the factor by which transformers slows each frequency."""
    size = 2 * len(hf.model.rotary_emb.inv_freq)
    plain = 1.0 / hf.config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2) / size)
    return (plain / hf.model.rotary_emb.inv_freq).numpy().astype(np.float32)


def test_llama_3s_rope_scaling_is_read_from_its_divisors(tmp_path):
    hf = hf_model("llama3.1", rope_scaling=dict(LLAMA3), head_dim=32, max_position_embeddings=131072)
    divisors = _divisors(hf)
    assert divisors.min() == 1 and len(set(divisors.tolist())) == 3         # kept, blended and slowed
    path = _export(tmp_path / "m.gguf", hf, "llama", {"rope_freqs.weight": (divisors, "F32")})
    model = load_gguf(path, "float32")
    assert model.config.rope_scaling == LLAMA3
    torch.testing.assert_close(model(TOKENS), copy_of(hf)(TOKENS), atol=1e-5, rtol=1e-5)
    path = _export(tmp_path / "o.gguf", hf, "llama", {"rope_freqs.weight": (divisors**0.5, "F32")})
    with pytest.raises(SdftError, match="another RoPE scaling than Llama 3.1's"):
        load_gguf(path)


def test_a_damaged_header_is_one_line(tmp_path):
    """Whichever byte of the header changes, the model loads, or one line says why not."""
    path = _export(tmp_path / "m.gguf", hf_model("qwen2", num_hidden_layers=1), "qwen2")
    data, draw = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for position in draw.integers(0, data.find(b"output_norm"), 150):
        path.write_bytes(data[:position] + bytes([draw.integers(256)]) + data[position + 1 :])
        try:
            load_gguf(path)
        except SdftError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 100                                              # not all: a changed name or token id may pass


def test_unsupported_types_and_damaged_files_are_one_line(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    path = _write(tmp_path / "q.gguf", {"x": (array, "Q5_0")})
    with pytest.raises(SdftError, match="x has type Q5_0, which is not supported; expected one of F32, F16, Q4_0"):
        GGUF(path).tensor("x")
    path = _write(tmp_path / "t.gguf", {"x": (array, "Q8_0")})
    data = path.read_bytes()
    for cut, message in ((len(data) - 64, "ends within tensor x"), (40, "within its header"), (2, "within its header")):
        path.write_bytes(data[:cut])
        with pytest.raises(SdftError, match=message):
            GGUF(path).tensor("x")
    at = data.find(b"x", data.find(b"general.architecture") + 40) + 1          # the dimensions follow the tensor's name
    path.write_bytes(data[:at] + b"\x05" + data[at + 1 :])
    with pytest.raises(SdftError, match="a tensor of 5 dimensions in the header; the file is corrupt"):
        GGUF(path)
    path.write_bytes(b"GGML" + data[4:])
    with pytest.raises(SdftError, match="expected a GGUF file"):
        GGUF(path)
    path.write_bytes(b"")
    with pytest.raises(SdftError, match="cannot read this file"):
        GGUF(path)
    path.write_bytes(data)
    with pytest.raises(SdftError, match="expected vocab_size to be a positive whole number, got 0"):
        load_gguf(path)
    other = _write(tmp_path / "o.gguf", {"x": (array, "F32")}, architecture="mamba")
    with pytest.raises(SdftError, match="mamba is not supported"):
        load_gguf(other)
