"""distilled.jsonl: which answer every record is to be trained on, and why.

A line holds `id`, `instruction`, `reference` (the data's answer y), `response` (the rewrite, or y again), `source`
("rewrite" or "original") and `reason` (why the rewrite was not taken; "" where it was); where the record has them, also
its `system` text and the earlier turns, `history`: a file of records to train on. Lines are joined with records and
rewrites by `id`, never by position.
"""
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft.data.records import Record
from sdft.errors import SdftError
from sdft.files import Journal, write_text

TEXTS = ("id", "instruction", "reference", "response", "source", "reason")


@dataclass(frozen=True, kw_only=True)
class Distilled(Record):
    """A record whose `response` is the answer chosen for training. The fields of its own are given by keyword."""

    reference: str             # the data's own answer
    source: str                # of the response: "rewrite" or "original"
    reason: str = ""           # why the original was kept; "" for an accepted rewrite


def write_distilled(path: Path, rows: Iterable[Distilled]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(_line(row), ensure_ascii=False) + "\n" for row in rows))


def read_distilled(path: Path) -> list[Distilled]:
    """Read what `write_distilled` wrote (SdftError with the line when a field is missing or has another type)."""
    if not Path(path).is_file():
        raise SdftError(f"{path}: no such file; make it with `sdft distill`")
    rows = []
    for number, line in enumerate(Journal(path).read(), start=1):
        if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in TEXTS):
            raise SdftError(f"{path}, line {number}: expected the texts {', '.join(TEXTS)}; make the file again with "
                            "`sdft distill`")
        try:
            history = tuple((user, assistant) for user, assistant in line.get("history", ()))
        except (TypeError, ValueError) as error:
            raise SdftError(f"{path}, line {number}: expected history as [user, assistant] pairs; make the file again "
                            "with `sdft distill`") from error
        rows.append(Distilled(**{name: line[name] for name in TEXTS}, system=line.get("system"), history=history))
    return rows


def _line(row: Distilled) -> dict[str, Any]:
    line: dict[str, Any] = {name: getattr(row, name) for name in TEXTS}
    return line | {name: getattr(row, name) for name in ("system", "history") if getattr(row, name)}
