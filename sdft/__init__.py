"""sdft: self-distillation fine-tuning of chat models (arXiv 2402.13669), from scratch in PyTorch.

    import sdft
    model, tokenizer = sdft.load("smollm2-135m")
    adapter = sdft.self_distill(model, tokenizer, sdft.read_records("mine.jsonl"))
    outputs = sdft.generate(model, tokenizer, ["Why is the sky blue?"], max_new_tokens=64)

Start reading at sdft/method.py. The names below are imported on first use, so that `import sdft` and `sdft --help` are
instant.
"""
from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "Limits": "sdft.distill",
    "Record": "sdft.data.records",
    "Sampling": "sdft.generation",
    "SdftError": "sdft.errors",
    "TrainSettings": "sdft.train",
    "add_lora": "sdft.model.lora",
    "choose": "sdft.distill",
    "finetune": "sdft.method",
    "generate": "sdft.generation",
    "load": "sdft.model",
    "load_adapter": "sdft.model.io.adapters",
    "measure_drift": "sdft.measure.outputs.drift",
    "measure_gap": "sdft.measure.outputs.gap",
    "measure_shift": "sdft.measure.weights.shift",
    "merge": "sdft.model.lora",
    "read_records": "sdft.data.records",
    "remove_lora": "sdft.model.lora",
    "rewrite": "sdft.distill",
    "save_adapter": "sdft.model.io.adapters",
    "self_distill": "sdft.method",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'sdft' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
