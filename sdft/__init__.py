"""sdft: self-distillation fine-tuning of chat models (arXiv 2402.13669), from scratch in PyTorch.

    import sdft
    model, tokenizer = sdft.load("smollm2-135m", dtype="bfloat16")
    outputs = sdft.generate(model, tokenizer, ["Why is the sky blue?"], max_new_tokens=64)

The names below are imported on first use, so that `import sdft` (and `sdft --help`) costs no `import torch`.
"""
from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "SdftError": "sdft.errors",
    "add_lora": "sdft.model.lora",
    "generate": "sdft.generation",
    "load": "sdft.model",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'sdft' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
