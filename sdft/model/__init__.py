"""The model room: Llama and its LoRA, and how both come from files and go back to them."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdft.model.fetch import resolve

if TYPE_CHECKING:
    import torch

    from sdft.model.llama import Llama
    from sdft.text.tokenizer import Tokenizer


def load(name: str | Path, dtype: str | torch.dtype = "bfloat16", device: str = "cpu") -> tuple[Llama, Tokenizer]:
    """Load a model and its tokenizer, in eval mode.

    name: an embedded model ("smollm2-135m", fetched where it is missing), a Hugging Face folder, a .gguf file, or a hub
    repository. dtype: of the weights. Raises SdftError when any of it is missing, damaged or not supported.
    """
    from sdft.model.gguf import load_gguf
    from sdft.model.loading import load_model
    from sdft.text.tokenizer_files import load_tokenizer, tokenizer_from_gguf

    path = resolve(name)
    if path.suffix == ".gguf":
        model, file = load_gguf(path, dtype, device)
        return model, tokenizer_from_gguf(file.metadata, str(path))
    return load_model(path, dtype, device), load_tokenizer(path)
