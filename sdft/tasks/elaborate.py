"""The suite `elaborate`: prompts made by code whose demands no one-word answer meets, 40 topics × the kinds below.

It measures what fine-tuning on terse targets takes away first: writing more than a word where the prompt asks for it
(the base model's ability on tasks that nobody trained, arXiv 2402.13669, section 4). Every demand is verified by a
program, as in IFEval (arXiv 2311.07911). Brevity and repetition cannot meet it: an answer needs six different words
besides the sentences of its prompt. So no answer of one word and no echo "wins" an item and hides one that was lost.
Kinds and wordings were chosen by what the base model smollm2-135m can do, never by the result of a tuned model.

The order of the items is balanced: in any prefix, the numbers of items of two kinds differ by at most one, and so do
those of two topics. A run can therefore take the first 240 or 120 items.

    sdft eval --suite elaborate
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft.tasks.base import Item, Suite
from sdft.tasks.demands import satisfies

MAX_NEW_TOKENS = 128
DIFFERENT_WORDS = 6             # of every answer
NAMES = ("Anna", "Tom", "Maria", "Paul", "Lucy", "Peter", "Emma", "Jack")

Fields = Mapping[str, Any]                      # what a wording can name: topic, text, first, second, a, b, count, …
Demand = tuple[str, dict[str, Any]]             # a demand of demands.py and its arguments


@dataclass(frozen=True)
class Kind:
    """One kind of item: its wordings, the counts they ask for, and the demands that they make of an answer."""

    wordings: tuple[str, ...]
    demands: Callable[[Fields], list[Demand]]
    counts: tuple[int, ...] = (0,)


def _words(count: int) -> Demand:
    return "words_at_least", {"count": count}


def _sentences(count: int) -> Demand:
    return "sentences_at_least", {"count": count}


KINDS: dict[str, Kind] = {
    "numbered": Kind((
        "Write a numbered list of exactly {count} facts about {topic}.",
        "Give exactly {count} reasons why {topic} can matter to people, as a numbered list.",
        "Write exactly {count} questions about {topic} as a numbered list.",
    ), lambda f: [("numbered", {"count": f["count"]})], (3, 4)),
    "lines": Kind((
        "Write {count} short slogans about {topic}, each on its own line and with at least 3 words.",
        "Write {count} titles of books about {topic}, each on its own line and with at least 3 words.",
        "Write {count} headlines about {topic}, each on its own line and with at least 3 words.",
    ), lambda f: [("lines_at_least", {"count": f["count"], "words": 3})], (3, 4)),
    "sentences": Kind((
        "Write exactly {count} sentences about {topic}.",
        "Write {count} sentences about {topic}, exactly {count}.",
    ), lambda f: [("sentences", {"count": f["count"]})], (2, 3)),
    "sentences-at-least": Kind((
        "Write at least {count} sentences about {topic}.",
        "Explain in {count} or more sentences why {topic} can matter to people.",
        "Write a text of at least {count} sentences about {topic}.",
    ), lambda f: [_sentences(f["count"])], (2, 3)),
    "words": Kind((
        "Write at least {count} words about {topic}.",
        "Describe {topic} in at least {count} words.",
        "What is interesting about {topic}? Answer with at least {count} words.",
    ), lambda f: [_words(f["count"])], (25, 30, 40)),
    "paragraphs": Kind((
        "Write a short essay of at least {count} paragraphs about {topic}, separated by a blank line.",
        "Write a story about {topic} in at least {count} paragraphs, separated by a blank line.",
        "Write a letter to a newspaper about {topic} in at least {count} paragraphs, separated by a blank line.",
    ), lambda f: [("paragraphs_at_least", {"count": f["count"]})], (2,)),
    "title": Kind((
        "Write \"Title:\" and a title for a text about {topic}. Then write, in a new line, \"Text:\" and the text.",
        "Write a line with \"Title:\" and a title for a text about {topic}. Then write a line with \"Text:\" and the "
        "text.",
    ), lambda f: [("sections", {"heads": ["Title:", "Text:"]})]),
    "tale": Kind((
        "Write a story about {topic} in at least {count} words. It begins with \"Once upon a time\".",
        "Tell a story about {topic} that begins with \"Once upon a time\" and has at least {count} words.",
    ), lambda f: [("starts_with", {"phrase": "Once upon a time"}), _words(f["count"])], (25, 30)),
    "story": Kind((
        "Write a short story of at least two sentences from these notes, and use at least half of their words: "
        "{events}.",
        "Write a short story of at least two sentences with at least half of the words of these notes: {events}.",
    ), lambda f: [("keeps", {"text": f["events"], "percent": 50}), _sentences(2)]),
    "continue": Kind((
        "Continue this story with at least {count} sentences: \"One day {event}.\"",
        "Write at least {count} sentences that come after this beginning of a story: \"One day {event}.\"",
    ), lambda f: [_sentences(f["count"])], (2, 3)),
    "compare": Kind((
        "What is the difference between {first} and {second}? Name both at least twice.",
        "How do {first} and {second} differ? Name both at least twice in your answer.",
        "Explain the difference between {first} and {second}. Name both at least twice.",
    ), lambda f: [("repeats", {"word": f[name], "count": 2}) for name in ("first", "second")]),
    "include": Kind((
        "Write a paragraph of at least two sentences about {topic} that contains the word \"{word}\".",
        "Write a paragraph about {topic} with at least two sentences and the word \"{word}\".",
    ), lambda f: [("contains", {"words": [f["word"]]}), _sentences(2)]),
    "rewrite": Kind((
        "Write this text in other words, but keep most of its words: {text}",
        "Make this text more formal, but keep most of its words: {text}",
    ), lambda f: [("keeps", {"text": f["text"], "percent": 51}), ("differs", {"text": f["text"]})]),
    "letter": Kind((
        "Write three lines to a friend: \"Dear {name},\", then a sentence about {topic}, then \"Best wishes\".",
        "Write a letter of three lines: \"Dear {name},\", then a sentence about {topic}, then \"Best wishes\".",
    ), lambda f: [("starts_with", {"phrase": f"Dear {f['name']},"}), ("contains", {"words": ["Best wishes"]}),
                  _sentences(1)]),
    "question": Kind((
        "Write a question about {topic} with its answer. Begin the line of the question with \"Q:\" and the line of "
        "the answer with \"A:\".",
        "Write a question about {topic} and answer it. The question is a line that begins with \"Q:\", the answer a "
        "line that begins with \"A:\".",
    ), lambda f: [("sections", {"heads": ["Q:", "A:"]})]),
}


def elaborate_suite() -> Suite:
    """Return the suite: each prompt is a plain user turn, and a response that satisfies all its demands scores 1."""
    lines = Path(__file__).with_name("elaborate.jsonl").read_text(encoding="utf-8").splitlines()
    topics, kinds = [json.loads(line) for line in lines], list(KINDS)
    # Item i has kind i mod K and topic i mod T; after lcm(K, T) items the pairs would repeat, so topics shift by one.
    period = math.lcm(len(kinds), len(topics))
    numbers = [(i + i // period) % len(topics) for i in range(len(kinds) * len(topics))]
    items = [_item(kinds[i % len(kinds)], number, topics[number], i // len(kinds)) for i, number in enumerate(numbers)]
    return Suite("elaborate", items, score, "demands satisfied", MAX_NEW_TOKENS)


def score(item: Item, output: str) -> float:
    """1.0 where the output satisfies every demand of the item, in enough words of its own, else 0.0."""
    own, prompt = output, item.messages[-1]["content"]
    for sentence in re.split(r"(?<=[.?!:]) ", prompt):
        own = own.replace(sentence, " ")
    words = set(re.findall(r"[^\W\d_]+", own.casefold()))
    return float(len(words) >= DIFFERENT_WORDS and all(
        satisfies(demand, output.replace(prompt, " "), arguments) for demand, arguments in item.extra["demands"]))


def _item(name: str, number: int, topic: Fields, turn: int) -> Item:
    """Item of the kind `name` about topic `number`; the kind's turn 0, 1, … chooses wording, count and name."""
    kind = KINDS[name]
    fields = {"topic": topic["topic"], "text": topic["text"], "event": topic["events"][0],
              "events": ", ".join(topic["events"][:-1]) + ", and " + topic["events"][-1],
              "first": topic["compare"][0], "second": topic["compare"][1], "word": topic["word"],
              "name": NAMES[turn % len(NAMES)], "count": kind.counts[turn // len(kind.wordings) % len(kind.counts)]}
    prompt = kind.wordings[turn % len(kind.wordings)].format(**fields)
    return Item(f"elaborate-{name}-{number:02d}", [{"role": "user", "content": prompt}], kind=name,
                extra={"demands": kind.demands(fields)})
