"""Read a tokenizer.json as the parts of a byte-level BPE. A part that is not supported exactly is refused by name."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdft.errors import SdftError
from sdft.tokenizers.pretokenize import DIGIT, GPT2
from sdft.tokenizers.tokenizer import AddedToken


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


def read_spec(spec: Mapping[str, Any], where: str) -> Parts:
    """Return the parts of a parsed tokenizer.json (SdftError, naming `where`, if it is damaged or not supported)."""
    try:
        model = spec["model"]
        if model.get("type", "BPE") != "BPE":
            raise _unsupported(where, "model", model["type"])
        for name in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(name):
                raise _unsupported(where, "a BPE model with", name)
        if model.get("fuse_unk") and model.get("unk_token") is not None:
            raise _unsupported(where, "a BPE model with", "fuse_unk")
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


def bos_template(bos: str, id: int) -> dict[str, Any]:
    """Return the post_processor of a tokenizer.json that puts a BOS before the text."""
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}}
