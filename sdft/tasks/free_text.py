"""Alpaca, Dolly and the user's own files (`custom`): free answers, which no check can prove right or wrong.

arXiv 2402.13669, section 4: Alpaca and Dolly are rewritten with the template `using` and trained with `alpaca` for 2
epochs, with no check beyond the ban-list. The paper trains on all 2000 records and measures no target ability on them
(it measures GSM8K, HumanEval, safety and AlpacaEval's win rate). Here a part of the file is held out, and the suite is
the ROUGE-L F1 of the response against the held-out reference.

A `custom` file is trained with the template `plain`, so that conversations of several turns keep the format that the
chat model knows; everything else is the same.

    sdft run --task dolly --data FOLDER --max_records 64
    sdft run --task custom --data mine.csv --columns instruction=prompt,response=answer
"""
from __future__ import annotations

from sdft.data.records import Record, read_records
from sdft.errors import SdftError
from sdft.tasks.base import Selection, Suite, Task, accept, items_of
from sdft.tasks.scorers import rouge_l


def load(selection: Selection) -> Task:
    """Read the task's file, and hold out a part of it for the test."""
    if selection.task == "custom":
        records, template, where = _own_records(selection), "plain", str(selection.data)
    else:
        file = f"{selection.task}_train.json"
        records, template, where = selection.records(file), "alpaca", f"{file} in {selection.data}"
    train, test = selection.held_out(records)
    items = items_of(test, template)
    suite = Suite(selection.task, items[: selection.test_size(len(items))],
                  lambda item, output: rouge_l(item.reference, output), "rouge-l", max_new_tokens=512)
    return Task(selection.task, train[: selection.train_size(len(train))], [suite], "using", template, 2, accept,
                f"{where}, {len(test)} of {len(records)} records held out for the test", rewrite_tokens=512)


def _own_records(selection: Selection) -> list[Record]:
    if selection.data is None:
        raise SdftError("task custom reads your own file: pass --data FILE (.json, .jsonl or .csv)")
    if not selection.data.is_file():
        what = "is a folder" if selection.data.is_dir() else "does not exist"
        raise SdftError(f"task custom expects a .json, .jsonl or .csv file, but {selection.data} {what}; "
                        "pass --data FILE")
    return selection.answered(read_records(selection.data, selection.columns), selection.data)
