"""Read a tokenizer.json, or the vocabulary in a GGUF's metadata, as the parts of a byte-level BPE.

A part that is not supported exactly is refused by name.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdft.errors import SdftError
from sdft.tokenizers.added_tokens import AddedToken
from sdft.tokenizers.pretokenize import DIGIT, GPT2, LLAMA3, QWEN2

_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
# GGUF's tokenizer.ggml.pre → the pre-tokenisers of these models
_GGUF_PRE = {
    "gpt-2": [_BYTE_LEVEL | {"use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL | {"use_regex": True}],
    "llama-bpe": [_SPLIT | {"pattern": {"Regex": LLAMA3}}, _BYTE_LEVEL | {"use_regex": False}],
    "qwen2": [_SPLIT | {"pattern": {"Regex": QWEN2}}, _BYTE_LEVEL | {"use_regex": False}],
}
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4


@dataclass(frozen=True)
class Parts:
    """The parts of a byte-level BPE; `merged[rank]` is the id that the merge of this rank makes."""

    vocab: dict[str, int]
    ranks: dict[tuple[int, int], int]
    merged: list[int]
    added: list[AddedToken]
    patterns: list[str]
    nfc: bool
    ignore_merges: bool
    unk_id: int | None
    add_bos: bool


def is_byte_level(spec: Any) -> bool:
    """Whether a parsed tokenizer.json is byte-level."""
    return isinstance(spec, dict) and "ByteLevel" in json.dumps(spec.get("pre_tokenizer"))


def read_spec(spec: Mapping[str, Any], where: str) -> Parts:
    """Return the parts of a parsed tokenizer.json (SdftError, naming `where`, if it is damaged or not supported)."""
    try:
        model = spec["model"]
        _check_model(model, where)
        vocab = model["vocab"]
        ranks, merged = _read_merges(model["merges"], vocab, where)
        patterns = _patterns(spec.get("pre_tokenizer"), where)
        if (decoder := spec.get("decoder") or {}).get("type") != "ByteLevel":
            raise _unsupported(where, "decoder", decoder.get("type"))
        unk, names = model.get("unk_token"), AddedToken.__dataclass_fields__
        added = [AddedToken(**{name: token[name] for name in names}) for token in spec.get("added_tokens") or ()]
        return Parts(vocab, ranks, merged, added, patterns,
                     _is_nfc(spec.get("normalizer"), where), bool(model.get("ignore_merges")),
                     None if unk is None else vocab[unk], _adds_bos(spec.get("post_processor")))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SdftError(f"{where}: not a complete tokenizer.json ({type(error).__name__}: {error}); "
                        "copy or download it again") from error


def _unsupported(where: str, part: str, name: object) -> SdftError:
    return SdftError(f"{where}: {part} {name} is not supported (supported: byte-level BPE as of GPT-2, SmolLM2, "
                     "Llama 3, Qwen; a sentencepiece model as tokenizer.model)")


def _check_model(model: Mapping[str, Any], where: str) -> None:
    if model.get("type", "BPE") != "BPE":
        raise _unsupported(where, "model", model["type"])
    for name in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise _unsupported(where, "a BPE model with", name)
    if model.get("fuse_unk") and model.get("unk_token") is not None:
        raise _unsupported(where, "a BPE model with", "fuse_unk")


def _read_merges(merges: Sequence, vocab: Mapping[str, int],
                 where: str) -> tuple[dict[tuple[int, int], int], list[int]]:
    ranks, merged = {}, []
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        try:
            ranks[vocab[left], vocab[right]] = rank
            merged.append(vocab[left + right])
        except KeyError as error:
            raise SdftError(f"{where}: merge {rank} ({left!r}, {right!r}) needs the token {error}, which the "
                            "vocabulary does not hold; copy or download the file again") from error
    return ranks, merged


def _patterns(pre: Mapping[str, Any] | None, where: str) -> list[str]:
    """Return the regular expressions of a pre-tokeniser that ends with ByteLevel, in order."""
    steps = (pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]) if pre else []
    patterns = []
    for step in steps:
        kind = step["type"]
        if kind == "Split" and step["behavior"] == "Isolated" and "Regex" in step["pattern"]:
            patterns.append(step["pattern"]["Regex"])
        elif kind == "Digits":
            patterns.append(DIGIT if step["individual_digits"] else DIGIT + "+")
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            patterns += [GPT2] if step.get("use_regex", True) else []
        else:
            raise _unsupported(where, "pre_tokenizer", {"Split": f"Split with behavior {step.get('behavior')}",
                                                        "ByteLevel": "ByteLevel with add_prefix_space"}.get(kind, kind))
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise _unsupported(where, "pre_tokenizer", "without ByteLevel as its last step")
    return patterns


def _is_nfc(normalizer: Mapping[str, Any] | None, where: str) -> bool:
    steps = (normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]) if normalizer else []
    for step in steps:
        if step["type"] != "NFC":
            raise _unsupported(where, "normalizer", step["type"])
    return bool(steps)


def _adds_bos(post: Mapping[str, Any] | None) -> bool:
    """Whether the post-processor's template puts a special token before the text."""
    steps = (post["processors"] if post["type"] == "Sequence" else [post]) if post else []
    return any("SpecialToken" in step["single"][0] for step in steps if step["type"] == "TemplateProcessing")


def spec_from_gguf(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Make a parsed tokenizer.json from the "tokenizer.ggml.*" keys of a GGUF file."""

    def key(name: str, default: Any = None) -> Any:
        value = metadata.get(f"tokenizer.ggml.{name}", default)
        if value is None:
            raise SdftError(f"{where}: its metadata have no tokenizer.ggml.{name}; use a file with the whole tokenizer")
        return value

    if key("model") != "gpt2":
        raise SdftError(f"{where}: tokenizer.ggml.model {key('model')!r} is not supported (supported: gpt2); "
                        "load the model's Hugging Face folder instead")
    pre = key("pre")
    if pre not in _GGUF_PRE:
        raise SdftError(f"{where}: tokenizer.ggml.pre {pre!r} is not supported (supported: {', '.join(_GGUF_PRE)})")
    tokens = list(key("tokens"))
    kinds = list(key("token_type", [1] * len(tokens)))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise SdftError(f"{where}: expected distinct tokens and a type of each, got {len(tokens)} tokens and "
                        f"{len(kinds)} types; the file may be damaged")
    bos = gguf_token(metadata, "bos", where)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [vars(AddedToken(id, tokens[id], special=kind == _GGUF_CONTROL))
                         for id, kind in enumerate(kinds) if kind in (_GGUF_CONTROL, _GGUF_USER_DEFINED)],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _GGUF_PRE[pre]},
        "post_processor": bos_template(bos, tokens.index(bos)) if bos and gguf_adds_bos(metadata) else None,
        "decoder": _BYTE_LEVEL | {"use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": pre == "llama-bpe", "vocab": {token: id for id, token in enumerate(tokens)},
                  "merges": list(key("merges"))},
    }


def gguf_token(metadata: Mapping[str, Any], name: str, where: str) -> str | None:
    """Return the text of the "bos", "eos", "unknown" or "padding" token of a GGUF; None if it has none."""
    id, tokens = metadata.get(f"tokenizer.ggml.{name}_token_id"), metadata["tokenizer.ggml.tokens"]
    if id is not None and not 0 <= id < len(tokens):
        raise SdftError(f"{where}: tokenizer.ggml.{name}_token_id is {id}, but there are {len(tokens)} tokens; "
                        "the file may be damaged")
    return None if id is None else tokens[id]


def gguf_adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF's model expects a BOS. A file that does not say so expects one if it is a Llama 3."""
    says = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.pre") == "llama-bpe")
    return bool(says) and "tokenizer.ggml.bos_token_id" in metadata


def bos_template(bos: str, id: int) -> dict[str, Any]:
    """Return the post_processor of a tokenizer.json that puts a BOS before the text."""
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}}
