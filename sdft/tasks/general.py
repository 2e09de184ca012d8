"""The suite `general`: chat prompts of our own, for abilities that the model had before and that no task here trains.

They have no right answer. Each arm's outputs are kept, and the drift from the base model is measured on the base
model's own answers: forward KL, top-1 agreement, response length, ROUGE-L (arXiv 2402.13669, section 3, asks for the
gap between distributions; whether forward KL predicts forgetting is disputed: sdft/measure/outputs/drift.py).

The prompts are in general.txt: a line "# kind", then one prompt per line.

    sdft eval --suite general
"""
from __future__ import annotations

from pathlib import Path

from sdft.tasks.base import Item, Suite


def general_suite() -> Suite:
    """Return the suite: each prompt is a plain user turn. `score` is None: only the outputs are kept."""
    items: list[Item] = []
    kind = ""
    for line in Path(__file__).with_name("general.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            kind = line[2:]
        else:
            items.append(Item(f"general-{len(items):03d}", [{"role": "user", "content": line}], kind=kind))
    return Suite("general", items, None, "", max_new_tokens=128)
