"""The types of a task: its records, its suites of test items, its templates and its check.

A *task* is the data that a model is fine-tuned on; a *suite* is a set of prompts that measures an ability. The first
suite of a task measures the ability that the task trains (arXiv 2402.13669, section 4: each data set has a training
part, an evaluation part and a check that decides whether a rewrite is kept).

    Record ──template──→ Item.messages ──model──→ output ──Suite.score(item, output)──→ 0 … 1
       └──rewrite by the base model──→ Task.check(record, rewrite) ──→ None: accepted, else the reason
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
    """One test prompt: the messages that the model gets, and the data that its scorer needs."""

    id: str
    messages: list[Message]
    reference: str = ""
    kind: str = ""                                          # results are also reported by kind
    extra: Mapping[str, Any] = field(default_factory=dict)
    brief: bool = False                                     # one word, or the prompt itself, passes the item's check
    choices: int = 0                                        # options of a multiple-choice item, one of them right


@dataclass(frozen=True)
class Suite:
    """Test items with their scorer. `score` returns 0 … 1; with None only the outputs are kept."""

    name: str
    items: list[Item]
    score: Callable[[Item, str], float] | None
    metric: str                                             # the name of the mean score, e.g. "accuracy"
    max_new_tokens: int


Check = Callable[[Record, str], str | None]     # (record, rewrite) → None to accept it, else the reason in a few words


@dataclass(frozen=True)
class Task:
    """Everything that an experiment needs to know about a data set. `suites[0]` tests what the task trains."""

    name: str
    train: list[Record]
    suites: list[Suite]
    distill_template: str
    train_template: str
    epochs: int
    check: Check
    source: str                                             # the origin of the records, in one line
    rewrite_tokens: int = 256                               # maximum length of a rewrite

    @property
    def default_settings(self) -> dict[str, Any]:
        """The settings that the task decides unless the user sets them."""
        return {"epochs": self.epochs, "distill_template": self.distill_template,
                "train_template": self.train_template, "rewrite_tokens": self.rewrite_tokens}


@dataclass(frozen=True)
class Selection:
    """Which records the user wants, from where, and how many.

    `max_records` = N keeps the first N training records and at most max(32, N // 2) items of each test suite: a trial
    run shrinks as a whole, and its test set stays large enough to show something. `train_records` and `test_records`
    set each size alone.
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
        return min(self._asked("train_records", available), self.max_records or available)

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
        """Read `file` of the user's data folder; the error says which file was expected where."""
        if self.data is None:
            raise SdftError(f"task {self.task} reads {file} from your folder: pass --data FOLDER")
        path = self.data / file
        if not path.is_file():
            what = ("which does not exist" if self.data.is_dir() else
                    f"but {self.data} is {'a file, not a folder' if self.data.exists() else 'not a folder'}")
            raise SdftError(f"task {self.task} expects {path}, {what}; pass --data with the folder that holds {file}")
        return self.answered(read_records(path, self.columns), path)

    def answered(self, records: list[Record], path: Path) -> list[Record]:
        """Keep the records that have an answer; the others cannot be rewritten, trained on or scored against."""
        kept = [record for record in records if record.response.strip()]
        if not kept:
            raise SdftError(f"{path}: expected records with an answer, but none of the {len(records)} has one; fill "
                            "the column, or name another with --columns response=NAME")
        if len(kept) < len(records):
            print(f"task {self.task}: skipped {len(records) - len(kept)} of {len(records)} records of {path}, which "
                  "have no answer", file=sys.stderr)
        return kept

    def held_out(self, records: list[Record]) -> tuple[list[Record], list[Record]]:
        """Split one file into (train, test): a tenth is held out, at most 150 records, or `test_records` of them.

        Records are ranked by a hash of seed and conversation, and the first ranks are held out. So the split does not
        depend on the order of the file, and two records with the same question are on the same side.
        """
        asked = {record.id: repr((self.seed, record.system, record.history, record.instruction)) for record in records}
        ranks = {id: hashlib.sha256(conversation.encode()).hexdigest() for id, conversation in asked.items()}
        distinct = sorted(set(ranks.values()))
        if len(distinct) < 2:
            raise SdftError(f"task {self.task}: expected at least 2 different records to hold one out for the test, "
                            f"but {self.data} has {len(distinct)}")
        count = self.test_records or min(150, max(1, len(distinct) // 10))
        if count >= len(distinct):
            raise SdftError(f"test_records = {count} leaves nothing to train on: {self.data} has {len(distinct)} "
                            "different records; ask for fewer")
        train = [record for record in records if ranks[record.id] >= distinct[count]]
        test = [record for record in records if ranks[record.id] < distinct[count]]
        return train, test


def accept(record: Record, response: str) -> str | None:
    """The check of data without a check of its own: it accepts every rewrite."""
    return None


def items_of(records: Iterable[Record], template: str) -> list[Item]:
    """Turn test records into items whose messages follow the evaluation template."""
    form = get_template(template)
    return [Item(record.id, form.messages(record), record.response, str(record.extra.get("kind", "")), record.extra)
            for record in records]
