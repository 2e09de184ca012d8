"""Tiny models of every family, with fixed random weights, made by transformers and copied into ours."""
from __future__ import annotations

import torch

from sdft.model.config import LlamaConfig
from sdft.model.llama import Llama

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
         "bos_token_id": 1, "eos_token_id": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
FAMILIES = {
    "llama2": {"model_type": "llama"},
    "llama-mha": {"model_type": "llama", "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "llama3.1": {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "smollm2": {"model_type": "llama", "rope_theta": 100000.0, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 64, "head_dim": 16},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1000000.0, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": False},
}


def hf_config(family: str, **changes):
    """Return the family's transformers configuration."""
    from transformers import AutoConfig

    values = {**SIZES, **FAMILIES[family], **changes}
    return AutoConfig.for_model(values.pop("model_type"), **values)


def hf_model(family: str, seed: int = 0, **changes):
    """Return a transformers model in eval mode and fp32, with random weights so large that every part matters."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(hf_config(family, **changes), dtype=torch.float32,
                                             attn_implementation="eager").eval()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    return model


def copy_of(hf) -> Llama:
    """Return our model with the same weights."""
    model = Llama(LlamaConfig.from_hf(hf.config.to_dict()))
    model.load_state_dict({name: weight.clone() for name, weight in hf.named_parameters()})
    return model.eval()


def tiny_llama(family: str = "llama2", seed: int = 0, **changes) -> Llama:
    """Return a tiny random model, made without transformers."""
    values = {**SIZES, **FAMILIES[family], **changes}
    torch.manual_seed(seed)
    model = Llama(LlamaConfig.from_hf(values))
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    return model.eval()
