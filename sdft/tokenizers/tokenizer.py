"""The interface of every tokenizer, its added and special tokens, and the chat format that a model folder names.

    tokenizer = load_tokenizer(folder)              # sdft.tokenizers.loading
    ids = tokenizer.encode("Hello")                 # adds no BOS or EOS
    text = tokenizer.decode(ids)

Added tokens are texts that become one id each. They are found before anything else is done to the text:

    "<|im_start|>user\\nHi"  →  [id of <|im_start|>]  "user\\nHi"
"""
from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.files import write_json, write_text

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>")     # these end an assistant's turn in ChatML and Llama 3's format

# Texts that the published Jinja template of each format contains, the most specific format first
_SIGNS = (
    ("qwen3", ("<|im_start|>", "<think>")), ("smollm2", ("<|im_start|>", "named SmolLM")),
    ("qwen2.5", ("<|im_start|>", "You are Qwen")), ("qwen2", ("<|im_start|>", "You are a helpful assistant")),
    ("chatml", ("<|im_start|>",)), ("llama3.1", ("<|start_header_id|>", "Cutting Knowledge Date")),
    ("llama3", ("<|start_header_id|>",)), ("llama2", ("[INST]", "<<SYS>>")),
    ("mistral-v0.3", ('"[INST] "', '"[/INST]"', "loop.last")), ("mistral", (" [/INST]",)),
    ("zephyr", ("<|user|>", "message['content'] + eos_token")), ("alpaca", ("### Instruction", "### Response")))

# White space and word characters of Rust's regex crate: \s excludes U+001C to U+001F; \w includes alphabetic symbols
# (the circled letters) and the two joiners.
_SPACES = ("\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
           "\u2009\u200a\u2028\u2029\u202f\u205f\u3000")
_WORD_CATEGORIES = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"))
_WORD_SYMBOL = re.compile("[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")


@dataclass(frozen=True)
class AddedToken:
    """An added token, with the fields of tokenizer.json's "added_tokens"."""

    id: int
    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Settings:
    """The settings of a tokenizer that are not part of its vocabulary; `where` is for error messages."""

    where: str                                                          # the folder or file
    config: Mapping[str, Any] = field(default_factory=dict)             # tokenizer_config.json, with the chat template
    generation: Mapping[str, Any] = field(default_factory=dict)         # generation_config.json or {}
    model: Mapping[str, Any] = field(default_factory=dict)              # config.json or {}: names BOS and EOS otherwise


class Tokenizer(ABC):
    """Converts text to ids and back.

    vocab_size: number of ids, including added tokens. bos_id: None if the model has no BOS. stop_ids: every id that
    ends generation, eos_id first. add_bos: whether the model expects a BOS before its input. special: text → id of the
    special tokens. chat: name of the model's chat format.
    """

    def __init__(self, settings: Settings, pieces: Mapping[int, str], added: Iterable[AddedToken], add_bos: bool):
        self.settings = settings
        self.added = {token.id: token for token in added}
        names = {token.content: token.id for token in self.added.values()}
        self._texts = {**pieces, **{id: token.content for id, token in self.added.items()}}
        self._ids = {text: id for id, text in pieces.items()} | names
        self.vocab_size = max(self._texts) + 1
        self.special = {token.content: token.id for token in self.added.values() if token.special}
        self.special_ids = frozenset(self.special.values())
        self.bos_id = self._named("bos_token")
        eos_id = self._named("eos_token")
        if eos_id is None:
            raise SdftError(f"{settings.where}: no end-of-sequence token; set eos_token in tokenizer_config.json")
        self.eos_id = eos_id
        stops = [eos_id]
        for source in (settings.generation, settings.model):
            ids = source.get("eos_token_id")
            stops += ids if isinstance(ids, list) else [] if ids is None else [ids]
        stops += [self.special[text] for text in _END_OF_TURN if text in self.special]
        self.stop_ids = tuple(dict.fromkeys(stops))
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
    def spec(self) -> Mapping[str, Any]:
        """Return the content of a tokenizer.json."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files to `folder` in Hugging Face's format, each atomically, with every stop token."""
        folder = Path(folder)
        write_text(folder / "tokenizer.json", json.dumps(self.spec(), ensure_ascii=False))
        write_json(folder / "tokenizer_config.json", dict(self.settings.config))
        write_json(folder / "generation_config.json", {**self.settings.generation, "eos_token_id": list(self.stop_ids)})

    @cached_property
    def chat(self) -> str:
        return detect_chat_format(self.settings.config.get("chat_template"))

    def _named(self, name: str) -> int | None:
        """Return the id of bos_token or eos_token: by its text in tokenizer_config.json, else from config.json."""
        text = self.settings.config.get(name)
        if isinstance(text, Mapping):
            text = text.get("content")
        if text is not None:
            if text not in self._ids:
                raise SdftError(f"{self.settings.where}: {name} is {text!r}, which the vocabulary does not hold")
            return self._ids[text]
        ids = self.settings.model.get(f"{name}_id") if name not in self.settings.config else None
        return next(iter(ids), None) if isinstance(ids, list) else ids


def detect_chat_format(chat_template: str | None) -> str:
    """Return the chat format (sdft/data/chat.py) of a Jinja template; "alpaca" if None (SdftError if it is unknown)."""
    if not chat_template:
        return "alpaca"
    for name, signs in _SIGNS:
        if all(sign in chat_template for sign in signs):
            return name
    raise SdftError("the model's chat template has an unknown format; name one of the formats in "
                    "`sdft prompt --help` with --chat")


def bos_template(bos: str, id: int) -> dict[str, Any]:
    """Return the post_processor of a tokenizer.json that puts a BOS before the text."""
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}}


class AddedTokens:
    """Splits text into added tokens and the normalised text between them.

    The longest token wins if several begin at one position. `lstrip` and `rstrip` let a token absorb the white space
    next to it; `single_word` refuses a match inside a word; a `normalized` token is searched in normalised text.
    """

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] = str):
        tokens = list(tokens)
        self._normalize = normalize
        self._raw = _Finder(token for token in tokens if not token.normalized)
        self._normalized = _Finder(replace(token, content=normalize(token.content))
                                   for token in tokens if token.normalized)

    def split(self, text: str, special: bool) -> Iterator[str | int]:
        """Yield text (str) and ids of added tokens (int), in order; with special=False, special tokens are text."""
        for part in self._raw.split(text, special):
            if isinstance(part, int):
                yield part
            else:
                yield from self._normalized.split(self._normalize(part), special)


class _Finder:
    def __init__(self, tokens: Iterable[AddedToken]):
        self._by_text = {token.content: token for token in tokens if token.content}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._find = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def split(self, text: str, special: bool) -> Iterator[str | int]:
        done = 0
        for match in self._find.finditer(text):
            token = self._by_text[match.group()]
            start, end = match.span()
            if token.special and not special or token.single_word and _inside_word(text, start, end):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(_SPACES))
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip(_SPACES))
            if done < start:
                yield text[done:start]
            yield token.id
            done = end
        if done < len(text):
            yield text[done:]


def _inside_word(text: str, start: int, end: int) -> bool:
    return any(unicodedata.category(char) in _WORD_CATEGORIES or _WORD_SYMBOL.match(char)
               for char in (text[start - 1 : start] + text[end : end + 1]))
