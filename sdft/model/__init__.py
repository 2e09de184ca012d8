"""The model room: Llama and its LoRA, and how both come from files and go back to them."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdft.model.io.fetch import resolve

if TYPE_CHECKING:
    import torch

    from sdft.model.llama import Llama
    from sdft.tokenizers.tokenizer import Tokenizer


def load(name: str | Path, dtype: str | torch.dtype = "auto", device: str = "cpu") -> tuple[Llama, Tokenizer]:
    """Load a model and its tokenizer, in eval mode.

    name: an embedded model ("smollm2-135m", fetched where it is missing), a Hugging Face folder, a .gguf file, or a hub
    repository. dtype: of the weights; auto: bfloat16, or float32 on a CPU without instructions for it. Raises SdftError
    when any of it is missing, damaged or not supported.
    """
    from sdft.model.io.gguf import load_gguf
    from sdft.model.io.loading import load_model

    path = resolve(name)
    model = load_gguf(path, dtype, device) if path.suffix == ".gguf" else load_model(path, dtype, device)
    return model, tokenizer_at(path)


def tokenizer_at(path: Path) -> Tokenizer:
    """The tokenizer of a model folder or a .gguf file."""
    from sdft.model.io.gguf import GGUF
    from sdft.tokenizers.loading import load_tokenizer, tokenizer_from_gguf

    return tokenizer_from_gguf(GGUF(path).metadata, str(path)) if path.suffix == ".gguf" else load_tokenizer(path)
