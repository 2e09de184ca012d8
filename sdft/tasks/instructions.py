"""The suite `instructions`: prompts of our own with one demand each that a program can verify, nine of every kind.

It measures an ability that terse targets damage early: doing what the prompt says (the base model's ability on tasks
that nobody trained, arXiv 2402.13669, section 4). Verifiable demands are the idea of IFEval (arXiv 2311.07911); the
kinds, the prompts and the functions are our own. A line of instructions.jsonl holds the kind, the prompt, and the
arguments of the kind's function below.

A function is strict about what the prompt says and indifferent to the rest: quotation marks or asterisks around a whole
response do not hide its first or last words, and a Markdown fence around JSON is allowed.

    sdft eval --suite instructions
    python -c "from sdft.tasks.instructions import satisfies; print(satisfies('bullets', '- a\\n- b', {'count': 2}))"
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdft.tasks.base import Item, Suite

_WRAPPING = " \t\r\n\"'“”‘’*_"
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|vs|no|e\.g|i\.e)\.(?=\s)", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"^\s*\d+[.)](?=\s)", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)")


def instruction_suite() -> Suite:
    """Return the suite: each prompt is a plain user turn, and a response that satisfies its demand scores 1."""
    items = []
    lines = Path(__file__).with_name("instructions.jsonl").read_text(encoding="utf-8").splitlines()
    for index, arguments in enumerate(map(json.loads, lines)):
        kind, prompt = arguments.pop("kind"), arguments.pop("prompt")
        items.append(Item(f"instruction-{index:03d}", [{"role": "user", "content": prompt}], "", kind, arguments))
    return Suite("instructions", items, lambda item, output: float(satisfies(item.kind, output, item.extra)),
                 "demands satisfied", max_new_tokens=256)


def _occurrences(word: str, response: str) -> int:
    """Count `word` as a whole word or phrase, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE))


def _plain(text: str) -> str:
    """Unify quotes, apostrophes, white space and case, which keyboards and models write differently."""
    return " ".join(text.replace("’", "'").replace("“", '"').replace("”", '"').split()).casefold()


def numbered(response: str, count: int) -> bool:
    """The lines that begin with a number ("1." or "1)") are numbered 1 … count."""
    numbers = re.findall(r"^[ \t]*(\d+)[.)][ \t]+\S", response, re.MULTILINE)
    return [int(number) for number in numbers] == list(range(1, count + 1))


def json_keys(response: str, keys: list[str]) -> bool:
    """The whole response is one JSON object with exactly these keys."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?\s*```", response.strip(), re.DOTALL | re.IGNORECASE)
    try:
        value = json.loads(fenced.group(1) if fenced else response)
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def starts_with(response: str, phrase: str) -> bool:
    """The response begins with the phrase."""
    text, wanted = _plain(response.lstrip(_WRAPPING)), _plain(phrase)
    return text.startswith(wanted) and not text[len(wanted):][:1].isalnum()


def ends_with(response: str, phrase: str) -> bool:
    """The response ends with the phrase, with nothing after it."""
    text, wanted = _plain(response.rstrip(_WRAPPING)), _plain(phrase)
    return text.endswith(wanted) and not text[: -len(wanted)][-1:].isalnum()


def sentences(response: str, count: int) -> bool:
    """There are exactly `count` sentences, the last one finished. "Dr." and the "1." of a list end no sentence."""
    text = _LIST_NUMBER.sub("", _ABBREVIATION.sub("", response)).strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return len(ends) == count and ends[-1] == len(text)


DEMANDS: dict[str, Callable[..., bool]] = {
    # the response has letters, none of them a capital (all of them capitals)
    "lower_case": lambda response: response == response.lower() and any(c.isalpha() for c in response),
    "upper_case": lambda response: response == response.upper() and any(c.isalpha() for c in response),
    # exactly `count` lines begin with a bullet: "-", "*" or "•"
    "bullets": lambda response, count: len(re.findall(r"^[ \t]*[-*•][ \t]+\S", response, re.MULTILINE)) == count,
    "numbered": numbered,
    "contains": lambda response, words: all(_occurrences(word, response) for word in words),
    "avoids": lambda response, words: not any(_occurrences(word, response) for word in words),
    "repeats": lambda response, word, count: _occurrences(word, response) >= count,       # at least `count` times
    "json_keys": json_keys,
    "starts_with": starts_with,
    "ends_with": ends_with,
    "words_at_most": lambda response, count: len(response.split()) <= count,
    "words_at_least": lambda response, count: len(response.split()) >= count,
    "sentences": sentences,
    # exactly `count` paragraphs, separated by blank lines
    "paragraphs": lambda response, count: len(re.split(r"\n[ \t]*\n\s*", response.strip())) == count,
    "no_commas": lambda response: "," not in response,
    # the whole response is in double quotation marks
    "quoted": lambda response: re.fullmatch(r'["“].+["”]', response.strip(), re.DOTALL) is not None,
    # one of the options and nothing else; case and a full stop do not matter
    "one_of": lambda response, options: _plain(response.strip(_WRAPPING + ".!")) in map(_plain, options),
    # a title in double angular brackets, such as <<The Long Way Home>>, occurs
    "title": lambda response: re.search(r"<<[^<>\n]*\w[^<>\n]*>>", response) is not None,
}


def satisfies(kind: str, response: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the response satisfies the demand `kind` with its arguments; an empty response satisfies none."""
    return bool(response.strip()) and DEMANDS[kind](response, **arguments)
