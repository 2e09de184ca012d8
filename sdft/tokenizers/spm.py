"""SentencePiece models (tokenizer.model): Llama 2, TinyLlama, Mistral.

The sentencepiece package segments text. This file prepares the text for it, as transformers does:

    "<s>Hi there</s> Hi"  ─added tokens→  <s>  "Hi there"  </s>  " Hi"
                          ─prefix→             "▁Hi▁there"       "▁Hi"         legacy
                                               "Hi▁there"        "▁Hi"         not legacy: only at the string's begin

The prefix space is added only to text that does not begin with a space. Characters outside the vocabulary become byte
tokens <0x00> … <0xFF>, which `decode` joins to characters.

`save` also writes a tokenizer.json: transformers 5 reads a tokenizer.model without the scores of its pieces, and then
splits runs of spaces differently from both sentencepiece and the published tokenizer.json.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from sdft.errors import SdftError
from sdft.files import write_bytes
from sdft.tokenizers.pretokenize import replace_surrogates
from sdft.tokenizers.tokenizer import AddedToken, AddedTokens, Settings, Tokenizer, bos_template

_SPACE = "▁"
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")
_BYTE = re.compile("<0x([0-9A-F]{2})>")
# A serialised ModelProto with only normalizer_spec {add_dummy_prefix: false}. Protocol buffers merge appended messages,
# so sentencepiece adds no prefix for a model with these bytes appended.
_NO_PREFIX = b"\x1a\x02\x18\x00"


class SentencePiece(Tokenizer):
    """The tokenizer of a tokenizer.model, whose content is `model`.

    It reads `legacy` (default false), `add_prefix_space` (default true), `add_bos_token` (default true) and
    `added_tokens_decoder` from tokenizer_config.json.
    """

    def __init__(self, model: bytes, settings: Settings, where: str):
        self._model = model
        try:
            self._sp = SentencePieceProcessor(model_proto=model + _NO_PREFIX)
        except RuntimeError as error:
            raise SdftError(f"{where}: not a readable sentencepiece model; copy or download it again") from error
        if self._sp.normalize(" ﬁ  é\u0301 ") != "▁ﬁ▁▁é\u0301▁":
            raise SdftError(f"{where}: a sentencepiece model that normalises text is not supported")
        named = {f"{name}_token": self._sp.id_to_piece(id) for name, id in
                 (("bos", self._sp.bos_id()), ("eos", self._sp.eos_id()), ("unk", self._sp.unk_id())) if id >= 0}
        config = {"tokenizer_class": "LlamaTokenizer", **named, **settings.config}
        self._prefix = config.get("add_prefix_space") is not False
        self._legacy = bool(config.get("legacy", False))
        pieces = dict(enumerate(self._sp.id_to_piece(list(range(self._sp.get_piece_size())))))
        added = _added_tokens(config, self._sp, settings.where)
        self._added = AddedTokens(added)
        super().__init__(replace(settings, config=config), pieces, added, add_bos=True)

    def encode(self, text: str, special: bool = False) -> list[int]:
        ids: list[int] = []
        first = True
        for part in self._added.split(replace_surrogates(text), special):
            if isinstance(part, int):
                ids.append(part)
            else:
                prefix = self._prefix and (first or self._legacy) and part[0] not in (" ", _SPACE)
                ids += self._sp.encode(" " + part if prefix else part)
            first = False
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        hidden = self.special_ids if skip_special else ()
        pieces = [self._texts.get(id, "").replace(_SPACE, " ") for id in map(int, ids) if id not in hidden]
        text = ""
        for is_byte, run in groupby(pieces, key=lambda piece: _BYTE.fullmatch(piece) is not None):
            text += (_decode_bytes if is_byte else "".join)(list(run))
        return text[1:] if self._prefix and text.startswith(" ") else text

    def piece(self, id: int) -> str:
        text = self._texts.get(id, "")
        byte = _BYTE.fullmatch(text)
        if byte:
            return bytes([int(byte[1], 16)]).decode("utf-8", "backslashreplace")
        return text.replace(_SPACE, " ")

    def save(self, folder: Path) -> None:
        write_bytes(Path(folder) / "tokenizer.model", self._model)
        super().save(folder)

    def spec(self) -> dict[str, Any]:
        """Return the tokenizer as a tokenizer.json: a BPE whose merges are sorted by their pieces' scores."""
        scheme = "never" if not self._prefix else "always" if self._legacy else "first"
        decoders = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"},
                    {"type": "Fuse"}]
        if self._prefix:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        vocab = {self._sp.id_to_piece(id): id for id in range(self._sp.get_piece_size())}
        # The merges: every split of a piece into two others, best score first, then longest left part first.
        splits = [(self._sp.get_score(id), at, len(piece), piece) for piece, id in vocab.items()
                  if not (self._sp.is_control(id) or self._sp.is_byte(id) or self._sp.is_unknown(id))
                  for at in range(1, len(piece)) if piece[:at] in vocab and piece[at:] in vocab]
        splits.sort(key=lambda split: split[:3], reverse=True)
        return {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [vars(token) for _, token in sorted(self.added.items())],
            "normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False},
            "post_processor": (bos_template(self._texts[self.bos_id], self.bos_id)
                               if self.add_bos and self.bos_id is not None else None),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "dropout": None, "unk_token": self._texts[self._sp.unk_id()],
                      "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
                      "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
                      "merges": [(piece[:at], piece[at:]) for _, at, _, piece in splits]},
        }


def _decode_bytes(pieces: list[str]) -> str:
    """Return the text of a run of byte tokens: one U+FFFD for each, as in the library, if the run is not UTF-8."""
    try:
        return bytes(int(piece[3:5], 16) for piece in pieces).decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(pieces)


def _added_tokens(config: Mapping[str, Any], sp: SentencePieceProcessor, where: str) -> list[AddedToken]:
    """Return the model's control tokens and unknown token, with the configuration's additions and changes."""
    added = {id: AddedToken(id, sp.id_to_piece(id)) for id in range(sp.get_piece_size())
             if sp.is_control(id) or sp.is_unknown(id)}
    try:
        for id, token in config.get("added_tokens_decoder", {}).items():
            flags = {name: bool(token.get(name, False)) for name in _FLAGS}
            added[int(id)] = AddedToken(int(id), token["content"], **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SdftError(f"{where}: added_tokens_decoder in tokenizer_config.json is malformed "
                        f"({type(error).__name__}: {error})") from error
    return list(added.values())
