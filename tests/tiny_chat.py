"""A tiny chat model to distill and measure with: one token per byte, ChatML, and a Llama of random weights."""
from __future__ import annotations

from tiny import tiny_llama

from sdft.data.records import Record
from sdft.tokenizers.bpe import BYTE_CHARS, ByteLevelBPE
from sdft.tokenizers.tokenizer import Settings

SPECIAL = ("<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(SPECIAL)


def byte_tokenizer() -> ByteLevelBPE:
    """Ids 0 to 255 are the bytes, then come the two marks of ChatML."""
    added = [{"id": 256 + index, "content": text, "special": True, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False} for index, text in enumerate(SPECIAL)]
    spec = {"model": {"type": "BPE", "vocab": {char: byte for byte, char in enumerate(BYTE_CHARS)}, "merges": []},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "decoder": {"type": "ByteLevel"}, "added_tokens": added}
    config = {"eos_token": "<|im_end|>", "chat_template": "{{'<|im_start|>' + message['role']}}"}
    return ByteLevelBPE(spec, Settings("the tests", config), "the tests")


def tiny_chat_model(context: int = 512, seed: int = 0):
    """A random Llama over the bytes, in fp32."""
    return tiny_llama("smollm2", seed, vocab_size=VOCABULARY, max_position_embeddings=context, eos_token_id=257)


def records(count: int) -> list[Record]:
    """Small questions with one-word answers."""
    return [Record(f"r{index}", f"What is {index} and {index}?", f"{2 * index}") for index in range(count)]
