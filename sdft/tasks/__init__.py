"""Tasks: one file per task, and the two suites that every experiment runs besides the target task.

May import: sdft.data. Start at base.py (the types), then scorers.py and passages.py (the built-in task). gsm8k.py,
openfunctions.py and free_text.py read the user's files; instructions.py and general.py are the suites of every run.

    task = sdft.tasks.load_task("passages")
"""
from sdft.tasks.base import Item, Selection, Suite, Task
from sdft.tasks.general import general_suite
from sdft.tasks.instructions import instruction_suite
from sdft.tasks.load import TASKS, load_task

__all__ = ["Item", "Selection", "Suite", "TASKS", "Task", "general_suite", "instruction_suite", "load_task"]
