"""The suite `instructions`: prompts of our own with one demand each that a program can verify, nine of every kind.

It measures an ability that terse targets damage early: doing what the prompt says (the base model's ability on tasks
that nobody trained, arXiv 2402.13669, section 4). A line of instructions.jsonl holds the kind, the prompt, and the
arguments of the kind's function in demands.py.

An item is `brief` where one word passes its own check. A model that forgot how to write more than a word wins such
items ("no commas") and loses the others, and the mean over both hides what it lost. So report the two parts apart.

    sdft eval --suite instructions
"""
from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from sdft.tasks.base import Item, Suite
from sdft.tasks.demands import one_word_passes, satisfies


def instruction_suite() -> Suite:
    """Return the suite: each prompt is a plain user turn, and a response that satisfies its demand scores 1."""
    items = []
    lines = Path(__file__).with_name("instructions.jsonl").read_text(encoding="utf-8").splitlines()
    for index, arguments in enumerate(map(json.loads, lines)):
        kind, prompt = arguments.pop("kind"), arguments.pop("prompt")
        brief = one_word_passes(partial(satisfies, kind, arguments=arguments), prompt)
        items.append(Item(f"instruction-{index:03d}", [{"role": "user", "content": prompt}], kind=kind, extra=arguments,
                          brief=brief, choices=len(arguments.get("options", ()))))
    return Suite("instructions", items, lambda item, output: float(satisfies(item.kind, output, item.extra)),
                 "demands satisfied", max_new_tokens=256)
