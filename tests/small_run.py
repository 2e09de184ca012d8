"""A tiny chat model as a folder, and the options of a run with it that takes seconds."""
from __future__ import annotations

from pathlib import Path

from tiny_chat import byte_tokenizer, tiny_chat_model

from sdft.model.saving import save_checkpoint

ARMS = ("seed", "sft", "sdft")


def save_tiny_model(folder: Path) -> Path:
    """Write the model to `folder`."""
    save_checkpoint(tiny_chat_model(context=2048), byte_tokenizer(), folder)
    return folder


def options(model: Path) -> list[str]:
    """`sdft run` on four records and a few prompts."""
    return [f"--model={model}", "--dtype=float32", "--train_records=4", "--test_records=3", "--rewrite_tokens=8",
            "--instruction_items=2", "--general_items=2", "--epochs=1", "--batch_size=2", "--save_every=1", "--max_length=2048"]
