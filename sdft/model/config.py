"""The configuration of a model: the fields of Hugging Face's config.json that decide the mathematics.

Families: Llama 2 and 3, TinyLlama, SmolLM and SmolLM2 ("llama"), Mistral ("mistral"), Qwen2 and Qwen2.5 ("qwen2": a
bias on q, k, v), Qwen3 ("qwen3": RMSNorm on the heads of q and k). Any other variant is refused by name, since a model
that is computed almost right is worse than none.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sdft.errors import SdftError

FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM"}
ROPE_SCALINGS = {"default": (), "linear": ("factor",),
                 "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and variants of a Llama-family model, with Hugging Face's names."""

    vocab_size: int                                  # V
    hidden_size: int                                 # D
    intermediate_size: int                           # F
    num_hidden_layers: int                           # L
    num_attention_heads: int                         # H
    num_key_value_heads: int                         # K; H/K query heads share one key/value head
    head_dim: int                                    # C
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)     # {} or {"rope_type": "linear" | "llama3", …}
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False                     # on q, k, v
    output_bias: bool = False                        # on o
    mlp_bias: bool = False
    qk_norm: bool = False
    model_type: str = "llama"
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def context_length(self) -> int:
        """Maximum tokens of a document. A sliding window bounds it: full attention is exact only within the window."""
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
        """Read a config.json of transformers 4 or 5 (SdftError, naming `where`, if it is wrong or not supported)."""
        family = values.get("model_type")
        if not isinstance(family, str) or family not in FAMILIES:
            name = " ".join(str(family or "a model without model_type").split())
            raise SdftError(f"{where}: {name} is not supported; expected one of {', '.join(FAMILIES)}")
        act = values.get("hidden_act", "silu")
        if act not in ("silu", "swish"):
            raise SdftError(f"{where}: hidden_act {act!r} is not supported; expected 'silu'")
        if family in ("qwen2", "qwen3") and values.get("use_sliding_window"):
            raise SdftError(f"{where}: use_sliding_window is not supported; expected full attention")
        if values.get("quantization_config") is not None:
            raise SdftError(f"{where}: quantised weights are not supported; expected the model in bf16, fp16 or fp32, "
                            "or a GGUF")
        sizes = {name: _whole(values, name, where) for name in SIZES}
        heads = sizes["num_attention_heads"]
        kv_heads = _whole(values, "num_key_value_heads", where, default=heads)
        per_head = 128 if family == "qwen3" else sizes["hidden_size"] // heads
        head_dim = _whole(values, "head_dim", where, default=per_head)
        if heads % kv_heads or head_dim % 2:
            raise SdftError(f"{where}: expected num_attention_heads to be a multiple of num_key_value_heads and an "
                            f"even head_dim, got {heads}, {kv_heads} and {head_dim}")
        theta, scaling = _rope(values, where)
        windowed = family == "mistral" and values.get("sliding_window", 4096) is not None
        bias = bool(values.get("attention_bias"))
        return cls(
            **sizes, num_key_value_heads=kv_heads, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling,
            rms_norm_eps=_positive(values, "rms_norm_eps", where, default=1e-6),
            max_position_embeddings=_whole(values, "max_position_embeddings", where, default=2048),
            sliding_window=_whole(values, "sliding_window", where, default=4096) if windowed else None,
            tie_word_embeddings=bool(values.get("tie_word_embeddings")),
            attention_bias=bias or family == "qwen2", output_bias=bias and family in ("llama", "qwen3"),
            mlp_bias=bool(values.get("mlp_bias")) and family == "llama", qk_norm=family == "qwen3", model_type=family,
            bos_token_id=values.get("bos_token_id"), eos_token_id=values.get("eos_token_id"))

    def to_hf(self) -> dict[str, Any]:
        """Return the values of a config.json, which transformers 4 and 5 and `from_hf` read as the same model."""
        left_out = {"output_bias": True, "qk_norm": True, "mlp_bias": self.model_type != "llama",
                    "sliding_window": self.model_type != "mistral"}
        values = {name: value for name, value in asdict(self).items() if not left_out.get(name)}
        return values | {"rope_scaling": dict(self.rope_scaling) or None, "hidden_act": "silu",
                         "architectures": [FAMILIES[self.model_type]]}


def _whole(values: Mapping[str, Any], name: str, where: str, default: int | None = None) -> int:
    """Return a size; the upper bound refuses the numbers of a damaged file."""
    value = default if values.get(name) is None else values[name]
    if type(value) is not int or not 0 < value < 2**28:
        raise SdftError(f"{where}: expected {name} to be a positive whole number, got {value!r}")
    return value


def _positive(values: Mapping[str, Any], name: str, where: str, default: float | None = None) -> float:
    value = default if values.get(name) is None else values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SdftError(f"{where}: expected {name} to be a positive number, got {value!r}")
    return float(value)


def _rope(values: Mapping[str, Any], where: str) -> tuple[float, dict[str, Any]]:
    """Return the base and the scaling of the rotary embedding; transformers 5 keeps both in `rope_parameters`."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise SdftError(f"{where}: expected the RoPE scaling to be an object, got {rope!r}")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if not isinstance(kind, str) or kind not in ROPE_SCALINGS:
        raise SdftError(f"{where}: RoPE scaling {kind!r} is not supported; expected one of {', '.join(ROPE_SCALINGS)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise SdftError(f"{where}: partial_rotary_factor is not supported; expected the whole head to be rotated")
    missing = [name for name in ROPE_SCALINGS[kind] if name not in rope]
    if missing:
        raise SdftError(f"{where}: RoPE scaling {kind!r} needs {', '.join(missing)}")
    theta = _positive(rope if "rope_theta" in rope else values, "rope_theta", where, default=10000.0)
    numbers = {name: _positive(rope, name, where) for name in ROPE_SCALINGS[kind]}
    if kind == "llama3" and numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        raise SdftError(f"{where}: expected low_freq_factor to be less than high_freq_factor, got "
                        f"{numbers['low_freq_factor']} and {numbers['high_freq_factor']}")
    return theta, {"rope_type": kind, **numbers} if numbers else {}
