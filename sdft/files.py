"""Write results so that an interruption never leaves half of one.

A file is written to a temporary file in the same folder, flushed to the disk and renamed: a reader sees the old file or
the new one. Results that grow record by record are a `Journal`: JSON lines, each flushed before the next begins; a line
that an interruption tore is recognised, dropped and written again.
"""
from __future__ import annotations

import errno
import json
import os
import struct
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from sdft.errors import SdftError

if TYPE_CHECKING:
    from torch import Tensor


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path`, flush it to the disk, and rename it to `path`."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)      # mkstemp made it private; a result has the user's ordinary permissions
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise SdftError(f"cannot write {path}: {_reason(error)}; free some space or name another folder "
                        "with --out") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def is_temporary(path: Path) -> bool:
    """Whether a process that was killed while writing left this file."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process (SdftError where another one has it); the lock ends with the process."""
    try:
        import fcntl
    except ImportError:         # Windows: two runs in one folder are not detected there
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):         # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SdftError(f"{folder}: another run is at work in this folder: wait for it, or name another with "
                                "--out") from error
        yield
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    _replace(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to `path` atomically, as safetensors."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    _replace(path, lambda temporary: save_file(contiguous, str(temporary), metadata=dict(metadata or {})))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file (SdftError when it is missing, truncated or corrupt)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError as error:
        raise SdftError(f"{path}: no such file") from error
    except (SafetensorError, OSError, struct.error) as error:
        raise SdftError(f"{path}: not a readable safetensors file ({_reason(error)}); it may be truncated: "
                        "copy or download it again") from error


def read_text(path: Path) -> str:
    """Read a UTF-8 text file (SdftError when it is missing, unreadable or not UTF-8)."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SdftError(f"{path}: cannot read this file: {_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise SdftError(f"{path}: expected UTF-8 text, but byte {error.start} is not UTF-8; save the file as "
                        "UTF-8") from error


def read_bytes(path: Path) -> bytes:
    """Read a whole file (SdftError when it is missing or unreadable)."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SdftError(f"{path}: cannot read this file: {_reason(error)}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file (SdftError with the line when it is malformed)."""
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SdftError(f"{path}, line {error.lineno}: malformed JSON ({error.msg})") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file (SdftError when it is malformed)."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise SdftError(f"{path}: malformed TOML: {error}") from error


class Journal:
    """An append-only file of JSON lines that survives being killed at any moment.

        {"id": "a", …}⏎
        {"id": "b", …}⏎
        {"id": "c", "te          ← torn: no line end. Dropped by `read`, cut off before the next `append`.

    A journal without a path keeps its lines in memory: for work that needs no files.
    """

    def __init__(self, path: Path | None):
        self.path = None if path is None else Path(path)
        self._memory: list[dict] = []
        self._file: BinaryIO | None = None

    def read(self) -> list[dict]:
        """Return every complete line, oldest first ([] when there is no file yet)."""
        if self.path is None:
            return list(self._memory)
        if not self.path.is_file():
            return []
        lines = []
        for number, line in enumerate(_complete_lines(self.path).splitlines(), start=1):
            try:
                lines.append(json.loads(line))
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise SdftError(f"{self.path}, line {number}: expected one JSON object; the file was edited or "
                                "damaged: correct the line or remove it") from error
        return lines

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one line and flush it to the disk before returning."""
        if self.path is None:
            self._memory.append(dict(value))
            return
        line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
        try:
            if self._file is None:
                self._file = self._open(self.path)
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise SdftError(f"cannot write {self.path}: {_reason(error)}; what it holds so far is kept: free some "
                            "space and run the same command again") from error

    def close(self) -> None:
        """Close the file (a later `append` opens it again)."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @staticmethod
    def _open(path: Path) -> BinaryIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            keep = len(_complete_lines(path))
            with open(path, "rb+") as file:
                file.truncate(keep)
        return cast(BinaryIO, open(path, "ab", buffering=0))    # unbuffered: no failed write may wait for the closing

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _complete_lines(path: Path) -> bytes:
    data = read_bytes(path)
    return data[: data.rfind(b"\n") + 1]
