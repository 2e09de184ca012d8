"""OpenFunctions: one function call per question; correct where the reference call occurs in the response.

arXiv 2402.13669, section 4: rewritten with the template `refer`, trained and evaluated with `alpaca`, 5 epochs, at
most 512 new tokens. Its files: openfunction_train.json and openfunction_test.json (instruction, output).

    sdft run --task openfunctions --data FOLDER --max_records 64
"""
from __future__ import annotations

from sdft.data.records import Record
from sdft.tasks.base import Selection, Suite, Task, items_of
from sdft.tasks.scorers import call_in, call_occurs


def check(record: Record, response: str) -> str | None:
    """Accept a rewrite in which the reference call occurs."""
    if call_in(record.response) is None:
        return "the reference has no call"
    return None if call_occurs(record.response, response) else "the reference call does not occur"


def load(selection: Selection) -> Task:
    """Read the training and the test file from the user's folder."""
    train = selection.records("openfunction_train.json")
    items = items_of(selection.records("openfunction_test.json"), "alpaca")
    suite = Suite("openfunctions", items[: selection.test_size(len(items))],
                  lambda item, output: float(call_occurs(item.reference, output)), "accuracy", max_new_tokens=512)
    return Task("openfunctions", train[: selection.train_size(len(train))], [suite], "refer", "alpaca", 5, check,
                f"openfunction_train.json and openfunction_test.json in {selection.data}", rewrite_tokens=512)
