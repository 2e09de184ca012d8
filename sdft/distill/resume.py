"""Going on with a journal of answers, and refusing to do so where its lines were made in another way.

    rewrites.jsonl             one line an answer, appended as each finishes
    rewrites.settings.json     how all of them were made: model, template, chat format, sampling

The settings stand beside the journal, so that the journal itself is a clean table. They are written before its first
line; a journal whose settings are not there is not trusted.
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
    """Where the settings of a journal stand: "rewrites.jsonl" → "rewrites.settings.json"."""
    return Path(journal).with_suffix(".settings.json")


def resume(path: Path | None, made_with: Mapping[str, Any]) -> tuple[Journal, dict[str, dict]]:
    """Open the journal of answers at `path`: return it and the lines it has, by id. None: a journal kept in memory.

    Raises SdftError when lines are there that were not made with `made_with` (JSON values), saying what differs.
    """
    journal = Journal(path)
    if path is None:
        return journal, {}
    settings = settings_path(path)
    lines = {line["id"]: line for line in answers(journal)}
    if lines:
        if not settings.exists():
            raise SdftError(f"{path}: expected {settings.name} beside it, which tells how its lines were made; bring "
                            "it back, or name another folder to start anew")
        old = read_json(settings)
        differ = differences(old, made_with)
        if old.get("model") != made_with.get("model"):
            differ[0:0] = ["by another model or adapter than the one given now"]
        if differ:
            raise SdftError(f"{path} was made in another way: {'; '.join(differ)}. Use the old settings to go on, or "
                            "another folder to start anew")
    else:
        write_json(settings, dict(made_with))
    return journal, lines


def answers(journal: Journal) -> list[dict]:
    """The lines of a journal of answers (SdftError with the line where one is no object with an id)."""
    lines = journal.read()
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict) or not isinstance(line.get("id"), str):
            raise SdftError(f"{journal.path}, line {number}: expected an object with the text \"id\", got "
                            f"{_short(line)}; remove the line, and its answer is written again")
    return lines


def differences(old: Mapping[str, Any], new: Mapping[str, Any], within: str = "") -> list[str]:
    """What two settings disagree on, as "name was …, is …", nested ones as "sampling.seed"."""
    found = []
    for key in dict.fromkeys((*old, *new)):
        was, now, name = old.get(key), new.get(key), within + key
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += differences(was, now, f"{name}.")
        elif was != now:
            found.append(f"{name} was {_short(was)}, is {_short(now)}")
    return found


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def fitting(requests: Iterable[Request], context: int, what: str) -> list[Request]:
    """Keep the requests that leave room for an answer in a context of so many tokens; tell on stderr of the others."""
    requests = list(requests)
    kept = [request for request in requests if len(request.tokens) < context]
    if len(kept) < len(requests):
        long = [request.id for request in requests if len(request.tokens) >= context]
        named = ", ".join(long[:3]) + (", …" if len(long) > 3 else "")
        print(f"{what}: left out {len(long)} of {len(requests)}, whose prompts fill the model's context of {context} "
              f"tokens ({named})", file=sys.stderr)
    return kept
