"""Tasks: one file per task, and the three suites that every experiment runs besides the target task.

May import: sdft.data. Start at base.py (the types), then scorers.py and passages.py (the built-in task). gsm8k.py,
openfunctions.py and free_text.py read the user's files. The suites of every run are elaborate.py and instructions.py,
whose checkers are in demands.py, and general.py.

    task = sdft.tasks.load_task("passages")
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sdft.errors import SdftError, nearest
from sdft.tasks import free_text, gsm8k, openfunctions, passages
from sdft.tasks.base import Item, Selection, Suite, Task
from sdft.tasks.elaborate import elaborate_suite
from sdft.tasks.general import general_suite
from sdft.tasks.instructions import instruction_suite

__all__ = ["Item", "Selection", "Suite", "TASKS", "Task", "elaborate_suite", "general_suite", "instruction_suite",
           "load_task"]

TASKS = {"passages": passages.load, "gsm8k": gsm8k.load, "openfunctions": openfunctions.load,
         **dict.fromkeys(("alpaca", "dolly", "custom"), free_text.load)}


def load_task(name: str, data: Path | str | None = None, columns: Mapping[str, str] | None = None,
              max_records: int | None = None, train_records: int | None = None, test_records: int | None = None,
              seed: int = 0) -> Task:
    """Load a task by its name; a path of a file is loaded as `custom`, with the name of the file, without its ending.

    data: the folder with the task's files, or for `custom` the file. The other arguments are those of `Selection`; the
    seed decides what `passages` generates and what is held out. Raises SdftError when the task, the folder or a file
    does not exist, has too few records, or has the name of a suite of every run.
    """
    if name not in TASKS and data is None and Path(name).is_file():
        own = Path(name).name.partition(".")[0]
        if own in (taken := ("elaborate", "instructions", "general")):
            raise SdftError(f"{name}: expected a file whose name is no suite of every run ({', '.join(taken)}), since "
                            "its task is named by it; rename the file")
        task = load_task("custom", name, columns, max_records, train_records, test_records, seed)
        return replace(task, name=own, suites=[replace(suite, name=own) for suite in task.suites])
    if name not in TASKS:
        raise SdftError(f"unknown task {name!r}{nearest(name, TASKS)}; known tasks: {', '.join(TASKS)}, or the path "
                        "of a .json, .jsonl or .csv file")
    if name == "passages" and columns and data is None:
        raise SdftError("--columns: task passages is generated and has no columns; leave it out, or use --task custom "
                        "--data FILE")
    path = None if data is None else Path(data)
    return TASKS[name](Selection(name, path, columns, max_records, train_records, test_records, seed))
