"""General chat prompts of our own: what the model was good at before, and what no task here trains.

They have no right answer. Each arm's outputs are kept, and the drift from the seed is measured on the seed's own
answers: forward KL, top-1 agreement, response length, ROUGE-L (arXiv 2402.13669, section 3, asks for the gap between
distributions; whether forward KL predicts forgetting is disputed: sdft/measure/outputs/drift.py).

The prompts stand in general.txt: a line "# kind", then one prompt a line.

    sdft eval --suite general
"""
from __future__ import annotations

from pathlib import Path

from sdft.tasks.base import Item, Suite

PROMPTS = Path(__file__).with_name("general.txt")


def general_suite() -> Suite:
    """The general prompts, as plain user turns. `score` is None: only the outputs are kept."""
    items: list[Item] = []
    kind = ""
    for line in PROMPTS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            kind = line[2:]
        else:
            items.append(Item(f"general-{len(items):03d}", [{"role": "user", "content": line}], kind=kind))
    return Suite("general", items, None, "", max_new_tokens=128)
