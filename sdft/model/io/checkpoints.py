"""Models as Hugging Face folders: config.json, and safetensors in one file or sharded; and a hash of a model in memory.

When a model is loaded, each tensor is read and cast straight into it: the peak memory is the model and one tensor.
transformers reads the folders that we save.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sdft.errors import SdftError
from sdft.files import read_json, save_tensors, write_json
from sdft.model.config import LlamaConfig
from sdft.model.llama import Llama
from sdft.model.lora import lora_layers
from sdft.tokenizers.tokenizer import Tokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SAMPLES = 64          # numbers of every weight that `fingerprint` reads


def load_config(folder: Path) -> LlamaConfig:
    """Read config.json of a model folder."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise SdftError(f"{folder}: expected a model folder with config.json, found "
                        f"{'no such file in it' if Path(folder).is_dir() else 'no such folder'}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise SdftError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return LlamaConfig.from_hf(values, str(path))


def load_model(folder: Path, dtype: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> Llama:
    """Load the model in `folder` in eval mode (SdftError if it is incomplete, damaged or not supported)."""
    config = load_config(folder)
    with open_checkpoint(folder) as (names, read):
        return build(config, names, read, dtype, device, where=str(folder), config_name="config.json")


def build(config: LlamaConfig, names: Collection[str], read: Callable[[str], Tensor], dtype: str | torch.dtype,
          device: str | torch.device, where: str, config_name: str) -> Llama:
    """Build the model of `config` in eval mode and read each weight with `read(name)`; `names` are the stored tensors.

    SdftError, naming `where` the weights and `config_name` the sizes come from, for missing or unsuitable tensors.
    """
    device = as_device(device)
    dtype = as_dtype(dtype, device)
    layers = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
    if len(layers) < config.num_hidden_layers:
        raise SdftError(f"{where}: {config_name} asks for {config.num_hidden_layers} layers, found the weights of "
                        f"{len(layers)}")
    with torch.device("meta"):
        model = Llama(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    missing = [name for name in shapes if name not in names]
    if missing:
        raise SdftError(f"{where}: {len(missing)} tensors that {config_name} asks for are missing, first {missing[0]}")
    extra = [name for name in names if name not in shapes and not name.endswith("rotary_emb.inv_freq")
             and not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if extra:
        raise SdftError(f"{where}: {len(extra)} tensors have no place in the model of {config_name}, first {extra[0]}")
    for name, shape in shapes.items():
        stored = read(name)
        if tuple(stored.shape) != shape:
            raise SdftError(f"{where}: {name} has shape {tuple(stored.shape)}, {config_name} asks for {shape}")
        if not stored.is_floating_point():
            raise SdftError(f"{where}: {name} holds {str(stored.dtype).removeprefix('torch.')}; expected "
                            "floating-point weights")
        weight = torch.empty(shape, dtype=dtype, device=device).copy_(stored)   # aligned, and independent of the file
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(weight))
    return model.eval()


def as_dtype(dtype: str | torch.dtype, device: str | torch.device = "cpu") -> torch.dtype:
    """Return the torch dtype of a name such as "bfloat16" (SdftError for an unknown name).

    "auto" is bfloat16, or float32 on a CPU without bfloat16 instructions, where bfloat16 is many times slower.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if torch.device(device).type == "cpu" and not multiplies_bfloat16() else torch.bfloat16
    if dtype not in DTYPES:
        raise SdftError(f"dtype: expected auto or one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def multiplies_bfloat16() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this CPU; otherwise torch uses slow loops of its own."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def as_device(device: str | torch.device) -> torch.device:
    """Return the torch device of a name such as "cuda:1" (SdftError if it is unknown or missing).

    A GPU becomes the current one, for CUDA graphs capture what runs on the current device. Its matrix products get a
    workspace of fixed size, without which PyTorch has no deterministic ones; torch reads the variable once.
    """
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        if resolved.type not in ("cpu", "cuda"):
            raise RuntimeError("sdft was not tested on it")
        if resolved.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.cuda.set_device(resolved.index or 0)
    except (RuntimeError, AssertionError) as error:
        raise SdftError(f"device: {device!s} cannot be used here ({str(error).splitlines()[0][:100]}); expected cpu, "
                        "or cuda with a GPU") from error
    return resolved


@contextmanager
def open_checkpoint(folder: Path) -> Iterator[tuple[Collection[str], Callable[[str], Tensor]]]:
    """Open a folder's safetensors files; yield the names of their tensors and a function that reads one by name."""
    files = _weight_files(Path(folder))
    with ExitStack() as stack:
        shards = {path: stack.enter_context(_open_tensors(path)) for path in dict.fromkeys(files.values())}
        names = {path: set(shard.keys()) for path, shard in shards.items()}
        for name, path in files.items():
            if name not in names[path]:
                raise SdftError(f"{path}: expected {name}, as {INDEX} says, found no such tensor")
        yield files, lambda name: shards[files[name]].get_tensor(name)


def _weight_files(folder: Path) -> dict[str, Path]:
    """Return the safetensors file of each tensor name (SdftError if a file is missing)."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise SdftError(f"{folder / INDEX}: expected a weight_map from tensor names to files")
        missing = sorted({name for name in shards.values() if not (folder / name).is_file()})
        if missing:
            raise SdftError(f"{folder}: expected the shard {missing[0]}, found none; copy or download it again")
        return {name: folder / file for name, file in shards.items()}
    path = folder / SINGLE
    if not path.is_file():
        raise SdftError(f"{folder}: expected {SINGLE} or {INDEX}, found neither (pickled weights are never read)")
    with _open_tensors(path) as file:
        return dict.fromkeys(file.keys(), path)


@contextmanager
def _open_tensors(path: Path) -> Iterator:
    """Open a safetensors file to read it tensor by tensor (SdftError if it is truncated or corrupt)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise SdftError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())}); it may be "
                        "truncated: copy or download it again") from error


def save_checkpoint(model: Llama, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write model.safetensors, config.json and the tokenizer's files to `folder`, each atomically.

    A merged adapter is saved as part of the weights. Raises SdftError for an adapter that is not merged.
    """
    layers = lora_layers(model)
    if any(layer.unmerged is None for layer in layers.values()):
        raise SdftError("the adapter is not part of the weights yet: merge(model) first, or save it with save_adapter")
    factors = {f"{name}.{factor}" for name in layers for factor in ("lora_A", "lora_B")}
    weights = {name: weight for name, weight in model.named_parameters() if name not in factors}
    folder = Path(folder)
    save_tensors(folder / SINGLE, weights, {"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)
    dtype = str(model.dtype).removeprefix("torch.")
    write_json(folder / "config.json", model.config.to_hf() | {"dtype": dtype, "torch_dtype": dtype})


@torch.no_grad()
def fingerprint(model: Llama) -> str:
    """Return 16 hex digits for configuration, dtypes and weights, including an adapter that is on.

    It reads about 64 numbers of every weight, so that it is fast enough for every stage. It tells different models
    apart, but not copies of a model that differ in a few single weights.
    """
    adapters = lora_layers(model)
    off = tuple(f"{name}.lora_" for name, layer in adapters.items() if not layer.enabled)
    scales = {name: layer.scale for name, layer in adapters.items() if layer.enabled}
    digest = hashlib.sha256(json.dumps([model.config.to_hf(), scales], sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        if name.startswith(off):
            continue
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLES)].double().cpu()
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]
