"""The tasks room: one file per task, and the two suites that every experiment runs beside the target task.

Reading order: base (what a task is) → scorers → passages (the built-in task) → gsm8k, openfunctions, free_text →
instructions, general.

    from sdft.tasks import load_task
    task = load_task("passages")
"""
from sdft.tasks.base import Item, Selection, Suite, Task
from sdft.tasks.general import general_suite
from sdft.tasks.instructions import instruction_suite
from sdft.tasks.load import TASKS, load_task

__all__ = ["Item", "Selection", "Suite", "TASKS", "Task", "general_suite", "instruction_suite", "load_task"]
