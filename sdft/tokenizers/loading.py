"""Load a tokenizer from a Hugging Face folder, or from the metadata of a GGUF file.

    tokenizer.json            a byte-level BPE (GPT-2, SmolLM2, Llama 3, Qwen); otherwise
    tokenizer.model           sentencepiece (Llama 2, TinyLlama, Mistral)
    tokenizer_config.json     BOS, EOS, chat template … (also special_tokens_map.json, chat_template.jinja)
    generation_config.json    more tokens that end generation (also config.json)
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.files import read_bytes, read_json, read_text
from sdft.tokenizers.bpe import ByteLevelBPE
from sdft.tokenizers.pretokenize import LLAMA3, QWEN2
from sdft.tokenizers.spm import SentencePiece
from sdft.tokenizers.tokenizer import AddedToken, Settings, Tokenizer, bos_template

_SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
# GGUF's tokenizer.ggml.pre → the pre-tokenisers of these models
_GGUF_PRE = {
    "gpt-2": [_BYTE_LEVEL | {"use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL | {"use_regex": True}],
    "llama-bpe": [_SPLIT | {"pattern": {"Regex": LLAMA3}}, _BYTE_LEVEL | {"use_regex": False}],
    "qwen2": [_SPLIT | {"pattern": {"Regex": QWEN2}}, _BYTE_LEVEL | {"use_regex": False}]}
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a model folder (SdftError if it is missing or not supported)."""
    folder = Path(folder)
    settings = _read_settings(folder)
    spec_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    spec = read_json(spec_path) if spec_path.is_file() else None
    byte_level = isinstance(spec, dict) and "ByteLevel" in json.dumps(spec.get("pre_tokenizer"))
    if model_path.is_file() and not byte_level:
        return SentencePiece(read_bytes(model_path), settings, str(model_path))
    if spec is None:
        raise SdftError(f"{folder}: expected tokenizer.json or tokenizer.model; copy it from the model's source")
    return ByteLevelBPE(spec, settings, str(spec_path))


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str = "GGUF") -> Tokenizer:
    """Make a tokenizer from a GGUF file's metadata ("tokenizer.ggml.*", "tokenizer.chat_template")."""

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
    named = {}
    for name, ours in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        if (id := metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            if not 0 <= id < len(tokens):
                raise SdftError(f"{where}: tokenizer.ggml.{name}_token_id is {id}, but there are {len(tokens)} tokens; "
                                "the file may be damaged")
            named[ours] = tokens[id]
    bos = named.get("bos_token")
    # A file that does not say whether its model expects a BOS is one that does if it is a Llama 3.
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe")) and bos is not None
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                              "add_bos_token": add_bos, **named}
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    spec = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [vars(AddedToken(id, tokens[id], special=kind == _GGUF_CONTROL))
                         for id, kind in enumerate(kinds) if kind in (_GGUF_CONTROL, _GGUF_USER_DEFINED)],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _GGUF_PRE[pre]},
        "post_processor": bos_template(bos, tokens.index(bos)) if bos and add_bos else None,
        "decoder": _BYTE_LEVEL | {"use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": pre == "llama-bpe", "vocab": {token: id for id, token in enumerate(tokens)},
                  "merges": list(key("merges"))}}
    return ByteLevelBPE(spec, Settings(where, config), where)


def _read_settings(folder: Path) -> Settings:
    def optional(name: str) -> dict[str, Any]:
        path = folder / name
        if not path.is_file():
            return {}
        value = read_json(path)
        if not isinstance(value, dict):
            raise SdftError(f"{path}: expected a JSON object, found {type(value).__name__}")
        return value

    if not folder.is_dir():
        raise SdftError(f"{folder}: no such folder")
    config = optional("special_tokens_map.json") | optional("tokenizer_config.json")
    template = folder / "chat_template.jinja"
    if template.is_file():
        config["chat_template"] = read_text(template)
    if isinstance(config.get("chat_template"), list):       # named templates: "default" is for chat
        named = {entry["name"]: entry["template"] for entry in config["chat_template"]}
        config["chat_template"] = named.get("default")
    return Settings(str(folder), config, optional("generation_config.json"), optional("config.json"))
