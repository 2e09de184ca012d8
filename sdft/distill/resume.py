"""Resume a journal of answers; refuse to if its lines were made with other settings.

    rewrites.jsonl             one line per answer, appended as each finishes
    rewrites.settings.json     how all of them were made: model, template, chat format, sampling

The settings have a file of their own, written before the first line, so that the journal is a plain table.
"""
from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.files import Journal, read_json, write_json
from sdft.generation import Request


def settings_path(journal: Path) -> Path:
    """The path of the settings of a journal: "rewrites.jsonl" → "rewrites.settings.json"."""
    return Path(journal).with_suffix(".settings.json")


def resume(path: Path | None, made_with: Mapping[str, Any]) -> tuple[Journal, dict[str, dict]]:
    """Open the journal of answers at `path`; return it and its lines by id. None: a new journal, kept in memory.

    Raises SdftError with the differences when its lines were not made with the settings `made_with` (JSON values).
    """
    journal = Journal(path)
    if path is None:
        return journal, {}
    settings = settings_path(path)
    lines = {line["id"]: line for line in answers(journal)}
    if not lines:
        write_json(settings, dict(made_with))
        return journal, lines
    if not settings.exists():
        raise SdftError(f"{path}: expected {settings.name} next to it, which says how its lines were made; bring it "
                        "back, or name another folder to start again")
    old = read_json(settings)
    other_model = ["another model or adapter"] if old.get("model") != made_with.get("model") else []
    if differ := [*other_model, *differences(old, made_with)]:
        raise SdftError(f"{path} was made with other settings: {'; '.join(differ)}. Use the old settings to resume, "
                        "or another folder to start again")
    return journal, lines


def answers(journal: Journal) -> list[dict]:
    """Read the lines of a journal of answers (SdftError with the line where one is not an object with an id)."""
    lines = journal.read()
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("id"), str):
            raise SdftError(f"{journal.path}, line {number}: expected an object with the text \"id\", got "
                            f"{_short(line)}; remove the line, and its answer is written again")
    return lines


def differences(old: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> list[str]:
    """List the differences of two settings as "name was …, is …", nested names as "sampling.seed"."""
    texts = []
    for key in dict.fromkeys((*old, *new)):
        was, now, name = old.get(key), new.get(key), within + key
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            texts += differences(was, now, f"{name}.")
        elif was != now:
            texts.append(f"{name} was {_short(was)}, is {_short(now)}")
    return texts


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def fitting(requests: Iterable[Request], context: int, what: str) -> list[Request]:
    """Keep the requests that leave room for an answer in a context of `context` tokens; report the others on stderr."""
    requests = list(requests)
    if long := [request.id for request in requests if len(request.tokens) >= context]:
        named = ", ".join(long[:3]) + (", …" if len(long) > 3 else "")
        print(f"{what}: skipped {len(long)} of {len(requests)}, whose prompts fill the model's context of {context} "
              f"tokens ({named})", file=sys.stderr)
    return [request for request in requests if len(request.tokens) < context]
