"""The model: Llama and its LoRA, packed batches, and in `sdft.model.io` the files of all three kinds.

It imports kernels, tokenizers and data, and knows nothing of tasks, generation or training.
Start reading with llama.py, then lora.py, then batches.py. `load` and `tokenizer_at` are in io/fetch.py.
"""
from __future__ import annotations

from sdft.model.io.fetch import load, tokenizer_at

__all__ = ["load", "tokenizer_at"]
