"""A tiny chat model as a folder, and the options of a run with it that takes seconds."""
from __future__ import annotations

from pathlib import Path

from tiny import tiny_llama
from tiny_chat import VOCABULARY, byte_tokenizer

from sdft.model.io.checkpoints import save_checkpoint

ARMS = ("base", "sft", "sdft")


def save_tiny_model(folder: Path) -> Path:
    """Write the model to `folder`: one layer, since it never ends an answer before the limit."""
    model = tiny_llama("smollm2", vocab_size=VOCABULARY, max_position_embeddings=2048, eos_token_id=257,
                       num_hidden_layers=1)
    save_checkpoint(model, byte_tokenizer(), folder)
    return folder


def options(model: Path) -> list[str]:
    """`sdft run` on four records and a few prompts."""
    return [f"--model={model}", "--dtype=float32", "--train_records=4", "--test_records=3", "--rewrite_tokens=8",
            "--elaborate_items=2", "--instruction_items=2", "--general_items=2", "--epochs=1", "--batch_size=2",
            "--save_every=1", "--max_length=2048", "--measure=all"]
