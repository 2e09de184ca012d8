"""Recognise a model's chat format by its Jinja chat template. sdft/data/chat.py renders the formats."""
from __future__ import annotations

from sdft.errors import SdftError

# Texts that the published Jinja template of each format contains, the most specific format first
_SIGNS = (
    ("qwen3", ("<|im_start|>", "<think>")), ("smollm2", ("<|im_start|>", "named SmolLM")),
    ("qwen2.5", ("<|im_start|>", "You are Qwen")), ("qwen2", ("<|im_start|>", "You are a helpful assistant")),
    ("chatml", ("<|im_start|>",)), ("llama3.1", ("<|start_header_id|>", "Cutting Knowledge Date")),
    ("llama3", ("<|start_header_id|>",)), ("llama2", ("[INST]", "<<SYS>>")),
    ("mistral-v0.3", ('"[INST] "', '"[/INST]"', "loop.last")), ("mistral", (" [/INST]",)),
    ("zephyr", ("<|user|>", "message['content'] + eos_token")), ("alpaca", ("### Instruction", "### Response")))


def detect_chat_format(chat_template: str | None) -> str:
    """Return the chat format of a Jinja template, "alpaca" if there is none (SdftError for an unknown format)."""
    if not chat_template:
        return "alpaca"
    for name, signs in _SIGNS:
        if all(sign in chat_template for sign in signs):
            return name
    raise SdftError("the model's chat template has an unknown format; name one of `sdft prompt --help` with --chat")
