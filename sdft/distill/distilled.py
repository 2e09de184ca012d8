"""distilled.jsonl: which answer every record is to be trained on, and why.

A line holds `id`, `instruction`, `reference` (the data's answer y), `response` (the rewrite, or y again), `source`
("rewrite" or "original") and `reason` (why the rewrite was rejected; "" where it was accepted). Lines are joined with
records and rewrites by `id`, never by position.
"""
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sdft.errors import SdftError
from sdft.files import Journal, write_text


@dataclass(frozen=True)
class Distilled:
    """The chosen answer of one record."""

    id: str
    instruction: str
    reference: str
    response: str
    source: str                # "rewrite" or "original"
    reason: str                # why the original was kept; "" for an accepted rewrite


def write_distilled(path: Path, rows: Iterable[Distilled]) -> None:
    """Write rows as JSON lines, atomically."""
    write_text(path, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def read_distilled(path: Path) -> list[Distilled]:
    """Read what `write_distilled` wrote (SdftError with the line when a field is missing or has another type)."""
    if not Path(path).is_file():
        raise SdftError(f"{path}: no such file; make it with `sdft distill`")
    names = [field.name for field in fields(Distilled)]
    rows = []
    for number, line in enumerate(Journal(path).read(), start=1):
        if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in names):
            raise SdftError(f"{path}, line {number}: expected the texts {', '.join(names)}; make the file again with "
                            "`sdft distill`")
        rows.append(Distilled(**{name: line[name] for name in names}))
    return rows
