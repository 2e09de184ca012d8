"""distilled.jsonl: the answer that each record is trained on, and why.

Its lines are `sdft.results.DistilledLine`s, so the file can be read as a data set. Lines are joined with records and
rewrites by `id`, never by position.
"""
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdft.data.records import Record
from sdft.errors import SdftError
from sdft.files import Journal, write_text

TEXTS = ("id", "instruction", "reference", "response", "source", "reason")


@dataclass(frozen=True, kw_only=True)
class Distilled(Record):
    """A record whose `response` is the answer chosen for training. The fields below are given by keyword."""

    reference: str             # the data's own answer
    source: str                # of the response: "rewrite" or "original"
    reason: str = ""           # why the original was kept; "" for an accepted rewrite


def write_distilled(path: Path, distilled: Iterable[Distilled]) -> None:
    """Write the records as JSON lines, atomically; their `extra` columns are left out."""
    def line(record: Distilled) -> str:
        values = {name: getattr(record, name) for name in (*TEXTS, "system", "history")}
        return json.dumps({name: value for name, value in values.items() if name in TEXTS or value}, ensure_ascii=False)

    write_text(path, "".join(line(record) + "\n" for record in distilled))


def read_distilled(path: Path) -> list[Distilled]:
    """Read the file of `write_distilled` (SdftError with the line when a field is missing or has another type)."""
    if not Path(path).is_file():
        raise SdftError(f"{path}: no such file; make it with `sdft distill`")
    distilled = []
    for number, line in enumerate(Journal(path).read(), start=1):
        if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in TEXTS):
            raise SdftError(f"{path}, line {number}: expected the texts {', '.join(TEXTS)}; make the file again with "
                            "`sdft distill`")
        try:
            history = tuple((user, assistant) for user, assistant in line.get("history", ()))
        except (TypeError, ValueError) as error:
            raise SdftError(f"{path}, line {number}: expected history as [user, assistant] pairs; make the file again "
                            "with `sdft distill`") from error
        texts = {name: line[name] for name in TEXTS}
        distilled.append(Distilled(**texts, system=line.get("system"), history=history))
    return distilled
