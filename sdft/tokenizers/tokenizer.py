"""The interface of every tokenizer, and what a Hugging Face folder names: special tokens and the chat format.

    tokenizer = load_tokenizer(folder)              # sdft.tokenizers.loading
    ids = tokenizer.encode("Hello")                 # adds no BOS or EOS
    text = tokenizer.decode(ids)
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.files import write_json
from sdft.tokenizers.added_tokens import AddedToken

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>")     # these end an assistant's turn in ChatML and Llama 3's format

# Texts that the published Jinja template of each format contains, the most specific format first
_SIGNS = (
    ("qwen3", ("<|im_start|>", "<think>")), ("smollm2", ("<|im_start|>", "named SmolLM")),
    ("qwen2.5", ("<|im_start|>", "You are Qwen")), ("qwen2", ("<|im_start|>", "You are a helpful assistant")),
    ("chatml", ("<|im_start|>",)), ("llama3.1", ("<|start_header_id|>", "Cutting Knowledge Date")),
    ("llama3", ("<|start_header_id|>",)), ("llama2", ("[INST]", "<<SYS>>")),
    ("mistral-v0.3", ('"[INST] "', '"[/INST]"', "loop.last")), ("mistral", (" [/INST]",)),
    ("zephyr", ("<|user|>", "message['content'] + eos_token")), ("alpaca", ("### Instruction", "### Response")))


@dataclass(frozen=True)
class Settings:
    """The settings of a tokenizer that are not part of its vocabulary.

    config: tokenizer_config.json, with the chat template and special_tokens_map.json.
    generation: generation_config.json or {}; its eos_token_id may be a list.
    model: config.json or {}: the fallback for BOS and EOS.
    where: the folder or file, for error messages.
    """

    where: str
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)


class Tokenizer(ABC):
    """Converts text to ids and back.

    vocab_size: number of ids, including added tokens. bos_id: None if the model has no BOS. stop_ids: every id that
    ends generation, eos_id first. add_bos: whether the model expects a BOS before its input. special: text → id of the
    special tokens. chat: name of the model's chat format.
    """

    vocab_size: int

    def __init__(self, settings: Settings, added: Iterable[AddedToken], add_bos: bool):
        self.settings = settings
        self.added = {token.id: token for token in added}
        self.special = {token.content: token.id for token in self.added.values() if token.special}
        self.special_ids = frozenset(self.special.values())
        self.bos_id = self._named("bos_token")
        eos_id = self._named("eos_token")
        if eos_id is None:
            raise SdftError(f"{settings.where}: no end-of-sequence token; set eos_token in tokenizer_config.json")
        self.eos_id = eos_id
        self.stop_ids = self._stops()
        self.add_bos = bool(settings.config.get("add_bos_token", add_bos)) and self.bos_id is not None

    @abstractmethod
    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of `text`, without BOS or EOS; special=True converts special tokens in it to their ids."""

    @abstractmethod
    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 (part of a character) become U+FFFD."""

    @abstractmethod
    def piece(self, id: int) -> str:
        """Return the text of one token; bytes that are not UTF-8 by themselves become \\xNN."""

    @abstractmethod
    def token_id(self, text: str) -> int | None:
        """Return the id of the token or added token with exactly this text; None if there is none."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the tokenizer's files to `folder` in Hugging Face's format, each atomically."""

    @cached_property
    def chat(self) -> str:
        return detect_chat_format(self.settings.config.get("chat_template"))

    def _named(self, name: str) -> int | None:
        """Return the id of bos_token or eos_token: by its text in tokenizer_config.json, else from config.json."""
        text = self.settings.config.get(name)
        if isinstance(text, Mapping):
            text = text.get("content")
        if text is not None:
            id = self.token_id(text)
            if id is None:
                raise SdftError(f"{self.settings.where}: {name} is {text!r}, which the vocabulary does not hold")
            return id
        ids = self.settings.model.get(f"{name}_id") if name not in self.settings.config else None
        return next(iter(ids), None) if isinstance(ids, list) else ids

    def _stops(self) -> tuple[int, ...]:
        stops = [self.eos_id]
        for source in (self.settings.generation, self.settings.model):
            ids = source.get("eos_token_id")
            stops += ids if isinstance(ids, list) else [] if ids is None else [ids]
        stops += [self.special[text] for text in _END_OF_TURN if text in self.special]
        return tuple(dict.fromkeys(stops))

    def _save_settings(self, folder: Path) -> None:
        """Write tokenizer_config.json, and generation_config.json with every stop token."""
        write_json(Path(folder) / "tokenizer_config.json", dict(self.settings.config))
        write_json(Path(folder) / "generation_config.json",
                   {**self.settings.generation, "eos_token_id": list(self.stop_ids)})


def detect_chat_format(chat_template: str | None) -> str:
    """Return the chat format (sdft/data/chat.py) of a Jinja template; "alpaca" if None (SdftError if it is unknown)."""
    if not chat_template:
        return "alpaca"
    for name, signs in _SIGNS:
        if all(sign in chat_template for sign in signs):
            return name
    raise SdftError("the model's chat template has an unknown format; name one of `sdft prompt --help` with --chat")
