"""Save a model as a Hugging Face folder, which transformers and `load_model` read."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdft.errors import SdftError
from sdft.files import save_tensors, write_json
from sdft.model.llama import Llama
from sdft.model.lora import lora_layers

if TYPE_CHECKING:
    from sdft.tokenizers.tokenizer import Tokenizer


def save_checkpoint(model: Llama, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write model.safetensors, config.json and the tokenizer's files to `folder`, each atomically.

    A merged adapter is saved as part of the weights. Raises SdftError for an adapter that is not merged.
    """
    layers = lora_layers(model)
    if any(layer.unmerged is None for layer in layers.values()):
        raise SdftError("the adapter is not part of the weights yet: merge(model) first, or save it with save_adapter")
    factors = {f"{name}.{factor}" for name in layers for factor in ("lora_A", "lora_B")}
    weights = {name: weight for name, weight in model.named_parameters() if name not in factors}
    folder = Path(folder)
    save_tensors(folder / "model.safetensors", weights, {"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)
    dtype = str(model.dtype).removeprefix("torch.")
    write_json(folder / "config.json", model.config.to_hf() | {"dtype": dtype, "torch_dtype": dtype})
