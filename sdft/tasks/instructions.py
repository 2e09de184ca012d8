"""The suite `instructions`: prompts of our own with one verifiable demand each, nine of every kind in `demands`.

It measures what fine-tuning on terse targets damages first: doing what the prompt says (the seed's ability on tasks
that nobody trained, arXiv 2402.13669, section 4). A line of instructions.jsonl holds the kind, the prompt, and the
arguments of the kind's function.

    sdft eval --suite instructions
"""
from __future__ import annotations

import json
from pathlib import Path

from sdft.tasks.base import Item, Suite
from sdft.tasks.demands import satisfies

PROMPTS = Path(__file__).with_name("instructions.jsonl")


def instruction_suite() -> Suite:
    """The prompts as plain user turns; the score is 1 where the demand is satisfied, else 0."""
    items = []
    for index, line in enumerate(PROMPTS.read_text(encoding="utf-8").splitlines()):
        arguments = json.loads(line)
        kind, prompt = arguments.pop("kind"), arguments.pop("prompt")
        items.append(Item(f"instruction-{index:03d}", [{"role": "user", "content": prompt}], "", kind, arguments))
    return Suite("instructions", items, score, "demands satisfied", max_new_tokens=256)


def score(item: Item, output: str) -> float:
    """1 when the output satisfies the item's demand, else 0."""
    return float(satisfies(item.kind, output, item.extra))
