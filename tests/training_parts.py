"""What the training tests share: a Llama of two layers with random weights, and a handful of chat-like examples."""
from __future__ import annotations

import torch

from sdft.data.chat import Example
from sdft.model.config import LlamaConfig
from sdft.model.llama import Llama

VOCABULARY = 61
HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": True,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
}


def tiny_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Llama:
    """Random weights of a trained model's size (normal, σ 0.3; norms near 1), the same for the same seed."""
    model = Llama(LlamaConfig.from_hf(HF_CONFIG, "the tests"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            centre = 1.0 if "norm" in name else 0.0
            weight.copy_(centre + 0.3 * torch.randn(weight.shape, generator=generator))
    return model.to(dtype)


def examples(count: int, seed: int = 0, longest: int = 24, shared: int = 0) -> list[Example]:
    """Examples of 6 to `longest` tokens, after `shared` common tokens; the second half of each is target tokens."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = int(torch.randint(6, longest + 1, (), generator=generator))
        tokens = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        tokens = [*range(shared), *tokens]
        length, prompt = shared + length, shared + length // 2
        made.append(Example(f"record-{index}", tokens, [False] * prompt + [True] * (length - prompt)))
    return made
