"""From a record to a training example: record ─template→ messages ─chat format→ tokens and loss mask."""
from __future__ import annotations

from sdft.data.chat import Example, encode_example
from sdft.data.records import Record
from sdft.data.templates import Template
from sdft.tokenizers.tokenizer import Tokenizer


def training_example(tokenizer: Tokenizer, record: Record, template: Template, chat: str | None = None) -> Example:
    """Encode a record as an example whose targets are its response; earlier assistant turns are targets too."""
    answer = {"role": "assistant", "content": record.response}
    return encode_example(tokenizer, [*template.messages(record), answer], record.id, chat)
