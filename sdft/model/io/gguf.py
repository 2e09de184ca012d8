"""Read GGUF, llama.cpp's file format, versions 2 and 3: metadata, and tensors in F32, F16, BF16, Q8_0, Q4_0, Q4_1.

    "GGUF" version n_tensors n_pairs │ key type value … │ name dims type offset … │ padding │ tensor data, aligned

A quantised tensor is a sequence of blocks of 32 weights, each with a scale d (and a minimum m) in fp16:

    Q8_0: d, 32 × int8   w = d·q        Q4_0: d, 16 bytes   w = d·(q − 8)        Q4_1: d, m, 16 bytes   w = d·q + m

A byte of Q4 holds weight i in its low half and weight i + 16 in its high half. llama.cpp rotates the pairs (2i, 2i + 1)
of a head, Hugging Face's Llama the pairs (i, i + C/2), so "llama" files store q and k with permuted rows; `to_hf`
undoes it. Of Llama 3.1's RoPE scaling, a file stores only the divisor of each frequency.
"""
from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.model.config import LlamaConfig
from sdft.model.io.checkpoints import build
from sdft.model.llama import Llama, rope_frequencies

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
TYPE_NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K",
              12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 20: "IQ4_NL", 23: "IQ4_XS", 30: "BF16", 39: "MXFP4"}
LAYER_NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
               "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
               "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
               "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}                  # for 3.1, 3.2 and 3.3; only `factor` differs


class GGUF:
    """An open GGUF file: `metadata`; `entries`: name → shape (outermost size first), type, offset; `tensor(name)`."""

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.data = np.memmap(self.path, dtype=np.uint8, mode="r").view(np.ndarray)     # to slice faster
        except (OSError, ValueError) as error:
            raise SdftError(f"{path}: cannot read this file: {error}") from error
        self.at = 0
        if bytes(self._take(4)) != b"GGUF":
            raise SdftError(f"{path}: expected a GGUF file, which begins with the letters GGUF")
        version = self._scalar("I")
        if version not in (2, 3):
            raise SdftError(f"{path}: GGUF version {version} is not supported; expected 2 or 3")
        tensors, pairs = self._scalar("Q"), self._scalar("Q")
        self.metadata = {self._string(): self._value(self._scalar("I")) for _ in range(pairs)}
        self.entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name, dims = self._string(), self._scalar("I")
            if dims > 4:
                raise self._corrupt(f"a tensor of {dims} dimensions")
            shape = tuple(self._scalar("Q") for _ in range(dims))[::-1]
            self.entries[name] = shape, self._scalar("I"), self._scalar("Q")
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise self._corrupt(f"alignment {alignment!r}")
        self.start = -(-self.at // alignment) * alignment               # of the tensor data

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor and dequantise it to fp32."""
        shape, kind, offset = self.entries[name]
        if kind not in DECODERS:
            raise SdftError(f"{self.path}: tensor {name} has type {TYPE_NAMES.get(kind, f'number {kind}')}, which is "
                            f"not supported; expected one of {', '.join(TYPE_NAMES[k] for k in sorted(DECODERS))}")
        block, size, decode = DECODERS[kind]
        count, start = math.prod(shape), self.start + offset
        if count % block:
            raise SdftError(f"{self.path}: tensor {name} has {count} weights, no multiple of its block of {block}")
        end = start + count // block * size
        if end > len(self.data):
            raise SdftError(f"{self.path}: the file ends within tensor {name} (byte {len(self.data)} of at least "
                            f"{end}); it is truncated: copy or download it again")
        return decode(self.data[start:end].reshape(-1, size)).reshape(shape)

    def _corrupt(self, what: str) -> SdftError:
        return SdftError(f"{self.path}: {what} in the header; the file is corrupt: copy or download it again")

    def _take(self, size: int) -> memoryview:
        if self.at + size > len(self.data):
            raise SdftError(f"{self.path}: the file ends at byte {len(self.data)}, within its header; it is truncated "
                            "or corrupt: copy or download it again")
        self.at += size
        return self.data[self.at - size : self.at].data

    def _scalar(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]

    def _string(self) -> str:
        return bytes(self._take(self._scalar("Q"))).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            element, count = self._scalar("I"), self._scalar("Q")
            if element in SCALARS:
                letter = SCALARS[element]
                return list(struct.unpack(f"<{count}{letter}", self._take(count * struct.calcsize(letter))))
            if element == STRING:
                return [self._string() for _ in range(count)]
        raise self._corrupt(f"unknown kind of value {kind}")


def _half(columns: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(columns).view(np.float16).astype(np.float32)      # (blocks, 2 bytes) → (blocks, 1)


def _nibbles(columns: np.ndarray) -> np.ndarray:
    return np.concatenate((columns & 15, columns >> 4), axis=1)                   # (blocks, 16) → (blocks, 32)


# type → (weights per block, bytes per block, function from the blocks x (blocks, bytes) to fp32)
DECODERS: dict[int, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: (1, 4, lambda x: np.ascontiguousarray(x).view(np.float32)),
    1: (1, 2, _half),
    2: (32, 18, lambda x: _half(x[:, :2]) * (_nibbles(x[:, 2:]).astype(np.float32) - np.float32(8))),
    3: (32, 20, lambda x: _half(x[:, :2]) * _nibbles(x[:, 4:]).astype(np.float32) + _half(x[:, 2:4])),
    8: (32, 34, lambda x: _half(x[:, :2]) * np.ascontiguousarray(x[:, 2:]).view(np.int8).astype(np.float32)),
    30: (1, 2, lambda x: (np.ascontiguousarray(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32)),
}


def load_gguf(path: Path, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> Llama:
    """Load a GGUF model in eval mode (SdftError if it is incomplete, damaged or not supported)."""
    file = GGUF(path)
    config = gguf_config(file)
    names = {_hf_name(name, file.path): name for name in file.entries if name != ROPE_FACTORS}

    def read(name: str) -> Tensor:
        return to_hf(torch.tensor(file.tensor(names[name])), name, config)

    return build(config, names, read, dtype, device, where=str(path), config_name="its header")


def to_hf(weight: Tensor, name: str, config: LlamaConfig) -> Tensor:
    """Undo llama.cpp's permutation of q's and k's rows (heads·C, …) in the family "llama"; return others unchanged."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or config.model_type != "llama" or len(weight) != heads * config.head_dim:
        return weight
    pairs = weight.view(heads, config.head_dim // 2, 2, *weight.shape[1:])        # (heads, C/2, 2, …)
    return pairs.transpose(1, 2).reshape(weight.shape)                            # (heads, 2, C/2, …) → (heads·C, …)


def gguf_config(file: GGUF) -> LlamaConfig:
    """Read the configuration from a GGUF file's metadata."""
    meta = file.metadata
    family = meta.get("general.architecture", "none named")

    def get(key: str, default: Any = None) -> Any:
        return meta.get(f"{family}.{key}", default)

    scaling = get("rope.scaling.type", "none")
    vocabulary = meta.get("tokenizer.ggml.tokens", [])
    config = LlamaConfig.from_hf({
        "model_type": family, "vocab_size": get("vocab_size", len(vocabulary) if isinstance(vocabulary, list) else 0),
        "hidden_size": get("embedding_length"), "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"), "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"), "head_dim": get("attention.key_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", 1e-5), "rope_theta": get("rope.freq_base", 10000.0),
        "rope_scaling": None if scaling == "none" else {"rope_type": scaling, "factor": get("rope.scaling.factor")},
        "max_position_embeddings": get("context_length", 2048),
        "tie_word_embeddings": "output.weight" not in file.entries,
        "attention_bias": family == "llama" and "blk.0.attn_q.bias" in file.entries,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
    }, str(file.path))
    if ROPE_FACTORS not in file.entries:
        return config
    divisors = torch.tensor(file.tensor(ROPE_FACTORS))                            # (C/2,), one per frequency
    scaled = replace(config, rope_scaling={**LLAMA3, "factor": round(divisors.max().item(), 4)})
    ours = rope_frequencies(config) / rope_frequencies(scaled)
    if ours.shape != divisors.shape or not torch.allclose(ours, divisors, rtol=1e-4):
        raise SdftError(f"{file.path}: {ROPE_FACTORS} is another RoPE scaling than Llama 3.1's, which is not supported")
    return scaled


def _hf_name(name: str, path: Path) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in OTHER_NAMES:
        return f"{OTHER_NAMES[stem]}.{kind}"
    _, _, rest = stem.partition(".")
    number, _, part = rest.partition(".")
    if not stem.startswith("blk.") or part not in LAYER_NAMES:
        raise SdftError(f"{path}: tensor {name!r} has no place in a Llama-family model")
    return f"model.layers.{number}.{LAYER_NAMES[part]}.{kind}"
