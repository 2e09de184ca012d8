"""GSM8K: grade-school word problems; the answer is the last integer of the response. MultiArith is a second suite.

arXiv 2402.13669, section 4: trained with the template `gsm8k`, rewritten with `gsm8k_distill`, evaluated with
`gsm8k_infer` (their training and evaluation prompts differ), 5 epochs, at most 512 new tokens. Its files:
gsm8k_train.json and gsm8k_test.json (question, answer), multiarith_test.json (instruction, output).

    sdft run --task gsm8k --data FOLDER --max_records 64
"""
from __future__ import annotations

from sdft.data.records import Record
from sdft.tasks.base import Item, Selection, Suite, Task, items_of
from sdft.tasks.scorers import last_integer


def check(record: Record, response: str) -> str | None:
    """Accept a rewrite whose last integer is the reference's."""
    expected, answer = last_integer(record.response), last_integer(response)
    if expected is None:
        return "the reference has no integer"
    if answer is None:
        return "no integer at the end"
    return None if answer == expected else "wrong answer"


def score(item: Item, output: str) -> float:
    """1 when the last integer of the output is the reference's, else 0."""
    expected = last_integer(item.reference)
    return float(expected is not None and last_integer(output) == expected)


def load(selection: Selection) -> Task:
    """Read the training file and both test files from the user's folder."""
    train = selection.records("gsm8k_train.json")
    suites = []
    for name, file in (("gsm8k", "gsm8k_test.json"), ("multiarith", "multiarith_test.json")):
        items = items_of(selection.records(file), "gsm8k_infer")
        suites.append(Suite(name, items[: selection.test_size(len(items))], score, "accuracy", max_new_tokens=512))
    return Task("gsm8k", train[: selection.train_size(len(train))], suites, "gsm8k_distill", "gsm8k", 5, check,
                f"gsm8k_train.json, gsm8k_test.json and multiarith_test.json in {selection.data}", rewrite_tokens=512)
