"""Load a tokenizer from a Hugging Face folder, or from the metadata of a GGUF file.

    tokenizer.json            a byte-level BPE (GPT-2, SmolLM2, Llama 3, Qwen); otherwise
    tokenizer.model           sentencepiece (Llama 2, TinyLlama, Mistral)
    tokenizer_config.json     BOS, EOS, chat template … (also special_tokens_map.json, chat_template.jinja)
    generation_config.json    more tokens that end generation (also config.json)
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.files import read_bytes, read_json, read_text
from sdft.tokenizers.bpe import ByteLevelBPE
from sdft.tokenizers.bpe_spec import gguf_adds_bos, gguf_token, is_byte_level, spec_from_gguf
from sdft.tokenizers.spm import SentencePiece
from sdft.tokenizers.tokenizer import Settings, Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a model folder (SdftError if it is missing or not supported)."""
    folder = Path(folder)
    settings = _read_settings(folder)
    spec_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    spec = read_json(spec_path) if spec_path.is_file() else None
    if model_path.is_file() and (spec is None or not is_byte_level(spec)):
        return SentencePiece(read_bytes(model_path), settings, str(model_path))
    if spec is None:
        raise SdftError(f"{folder}: expected tokenizer.json or tokenizer.model; copy it from the model's source")
    return ByteLevelBPE(spec, settings, str(spec_path))


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str = "GGUF") -> Tokenizer:
    """Make a tokenizer from a GGUF file's metadata ("tokenizer.ggml.*", "tokenizer.chat_template")."""
    spec = spec_from_gguf(metadata, where)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
                              "add_bos_token": gguf_adds_bos(metadata)}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        token = gguf_token(metadata, key, where)
        if token is not None:
            config[name] = token
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
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
