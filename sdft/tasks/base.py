"""What a task is: its records, its suites of test items, its templates and its check.

A *task* is what a model is fine-tuned on; a *suite* is a set of prompts on which an ability is measured. The first
suite of a task measures the ability that the task trains (arXiv 2402.13669, section 4: each data set has a training
part, an evaluation part and the check that decides whether a rewrite is kept).

    Record ──template──→ Item.messages ──model──→ output ──Suite.score(item, output)──→ 0 … 1
       └──rewrite by the seed──→ Task.check(record, rewrite) ──→ None: kept, else the reason why not

    python -c "from sdft.tasks import load_task; print(load_task('passages').train[0].instruction)"
"""
from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdft.data.records import Record, read_records
from sdft.data.templates import Message, get_template
from sdft.errors import SdftError


@dataclass(frozen=True)
class Item:
    """One test prompt: the messages as the model gets them, and what its scorer needs beside them."""

    id: str
    messages: list[Message]
    reference: str = ""
    kind: str = ""                                          # results are also reported kind by kind
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Test items with their scorer. `score` returns 0 … 1; None means that only the outputs are kept."""

    name: str
    items: list[Item]
    score: Callable[[Item, str], float] | None
    metric: str                                             # what the mean score is called, e.g. "accuracy"
    max_new_tokens: int


@dataclass(frozen=True)
class Task:
    """Everything that an experiment needs to know of a data set. `suites[0]` measures the target ability."""

    name: str
    train: list[Record]
    suites: list[Suite]
    distill_template: str
    train_template: str
    epochs: int
    check: Callable[[Record, str], str | None]              # None: accepted, else the reason in a few words
    source: str                                             # one line: where the records come from
    rewrite_tokens: int = 256                               # the longest rewrite

    @property
    def decides(self) -> dict[str, Any]:
        """The settings that are the task's where nobody has set them."""
        return {name: getattr(self, name) for name in ("epochs", "distill_template", "train_template", "rewrite_tokens")}


@dataclass(frozen=True)
class Selection:
    """Which records the user wants: from where, and how many.

    `limit` = N keeps the first N training records, and with them at most max(32, N // 2) items of each test suite:
    a trial run shrinks as a whole, yet its test set never becomes too small to show anything. `train_records` and
    `test_records` set either size outright.
    """

    task: str
    data: Path | None = None
    columns: Mapping[str, str] | None = None
    max_records: int | None = None
    train_records: int | None = None
    test_records: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_records", "train_records", "test_records"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SdftError(f"{name} = {value}: expected a whole number of at least 1")

    def train_size(self, available: int) -> int:
        """The number of training records out of `available`."""
        return min(x for x in (self._asked("train_records", available), self.max_records) if x is not None)

    def test_size(self, available: int) -> int:
        """The number of test items out of `available`."""
        if self.test_records is not None or self.max_records is None:
            return self._asked("test_records", available)
        return min(available, max(32, self.max_records // 2))

    def _asked(self, name: str, available: int) -> int:
        asked = getattr(self, name)
        if asked is None:
            return available
        if asked > available:
            raise SdftError(f"{name} = {asked}, but task {self.task} has only {available}; ask for fewer")
        return asked

    def records(self, file: str) -> list[Record]:
        """Read `file` of the user's data folder (one line of error says which file was expected where)."""
        if self.data is None:
            raise SdftError(f"task {self.task} reads {file} from a folder of yours: pass --data FOLDER")
        path = self.data / file
        if not self.data.is_dir():
            what = "is a file, but a folder was expected" if self.data.exists() else "is not a folder"
            raise SdftError(f"task {self.task} expects {path}, and {self.data} {what}; pass --data with the folder "
                            f"that holds {file}")
        if not path.is_file():
            raise SdftError(f"task {self.task} expects {path}, which is not there; pass --data with the folder that "
                            f"holds {file}")
        return self.answered(read_records(path, self.columns), path)

    def answered(self, records: list[Record], path: Path) -> list[Record]:
        """The records with an answer: without one there is nothing to rewrite, to learn or to score against."""
        kept = [record for record in records if record.response.strip()]
        if not kept:
            raise SdftError(f"{path}: expected records with an answer, but none of the {len(records)} has one; fill "
                            "it, or say which column it is with --columns response=NAME")
        if len(kept) < len(records):
            print(f"task {self.task}: left out {len(records) - len(kept)} of {len(records)} records of {path}, which "
                  "have no answer", file=sys.stderr)
        return kept

    def held_out(self, records: list[Record]) -> tuple[list[Record], list[Record]]:
        """Split one file into (train, test): a tenth is held out, at most 150 records, or `test_records` of them.

        Records are ranked by a hash of seed and conversation, and the first ranks are held out, so the split does
        not depend on the order of the file, and two records with the same question fall on the same side.
        """
        def rank(record: Record) -> str:
            conversation = repr((self.seed, record.system, record.history, record.instruction))
            return hashlib.sha256(conversation.encode()).hexdigest()

        ranks = {record.id: rank(record) for record in records}
        distinct = sorted(set(ranks.values()))
        if len(distinct) < 2:
            raise SdftError(f"task {self.task}: expected at least 2 different records to hold one out for the test, "
                            f"but {self.data} has {len(distinct)}")
        count = self.test_records or min(150, max(1, len(distinct) // 10))
        if count >= len(distinct):
            raise SdftError(f"test_records = {count} leaves nothing to train on: {self.data} has {len(distinct)} "
                            "different records; ask for fewer")
        border = distinct[count]
        train = [record for record in records if ranks[record.id] >= border]
        test = [record for record in records if ranks[record.id] < border]
        return train, test


def items_of(records: Iterable[Record], template: str) -> list[Item]:
    """Turn test records into items, with the evaluation template applied."""
    form = get_template(template)
    return [Item(record.id, form.messages(record), record.response, str(record.extra.get("kind", "")), record.extra)
            for record in records]
