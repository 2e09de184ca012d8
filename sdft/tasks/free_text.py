"""Alpaca, Dolly and files of the user's own: free answers, which no check can prove right or wrong.

arXiv 2402.13669, section 4: Alpaca and Dolly are rewritten with the template `using`, trained with `alpaca`, 2
epochs, no check beyond the ban-list. The paper measures no target ability on them (it looks at GSM8K, HumanEval,
safety and AlpacaEval's win rate instead); here a part of the file is held out, and the suite is ROUGE-L F1 of the
response against the held-out reference. The paper trains on all 2000 records, this on those that are not held out.

A file of the user's own (`custom`) is trained with the template `plain`, so that conversations of several turns keep
the shape that the chat model knows; everything else is the same.

    sdft run --task dolly --data FOLDER --max_records 64
    sdft run --task custom --data mine.csv --columns instruction=prompt,response=answer
"""
from __future__ import annotations

from sdft.data.records import Record, read_records
from sdft.errors import SdftError
from sdft.tasks.base import Item, Selection, Suite, Task, items_of
from sdft.tasks.rouge import rouge_l


def check(record: Record, response: str) -> str | None:
    """Accept every rewrite: the general filters (ban-list, unfinished, …) are all there is."""
    return None


def score(item: Item, output: str) -> float:
    """ROUGE-L F1 of the output against the reference."""
    return rouge_l(item.reference, output)


def load(selection: Selection) -> Task:
    """Read the task's one file, and hold a part of it out for the test."""
    if selection.task == "custom":
        records, template, where = _own_records(selection), "plain", str(selection.data)
    else:
        file = f"{selection.task}_train.json"
        records, template, where = selection.records(file), "alpaca", f"{file} in {selection.data}"
    train, test = selection.held_out(records)
    items = items_of(test, template)
    suite = Suite(selection.task, items[: selection.test_size(len(items))], score, "rouge-l", max_new_tokens=512)
    return Task(selection.task, train[: selection.train_size(len(train))], [suite], "using", template, 2, check,
                f"{where}, {len(test)} of {len(records)} records held out for the test", rewrite_tokens=512)


def _own_records(selection: Selection) -> list[Record]:
    if selection.data is None:
        raise SdftError("task custom reads a file of yours: pass --data FILE (.json, .jsonl or .csv)")
    if not selection.data.is_file():
        what = "a folder" if selection.data.is_dir() else "not there"
        raise SdftError(f"task custom expects a .json, .jsonl or .csv file, but {selection.data} is {what}; "
                        "pass --data FILE")
    return selection.answered(read_records(selection.data, selection.columns), selection.data)
