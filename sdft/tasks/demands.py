"""Demands that a program can verify: one function per kind, from a response to whether it does what was asked.

The idea is that of IFEval (arXiv 2311.07911); the kinds, the prompts and the functions are our own. Every function is
strict about what the prompt says and indifferent to the rest: quotation marks or asterisks around a whole response do
not hide its first or last words, and a Markdown fence around JSON is allowed. An empty response satisfies nothing.

    python -c "from sdft.tasks.demands import satisfies; print(satisfies('bullets', '- a\\n- b', {'count': 2}))"
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_WRAPPING = " \t\r\n\"'“”‘’*_"
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|vs|no|e\.g|i\.e)\.(?=\s)", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"^\s*\d+[.)](?=\s)", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)")


def _occurrences(word: str, response: str) -> int:
    """How often `word` occurs as a whole word or phrase, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", response, re.IGNORECASE))


def _plain(text: str) -> str:
    """One spelling for what keyboards and models write differently: quotes, apostrophes, white space, case."""
    return " ".join(text.replace("’", "'").replace("“", '"').replace("”", '"').split()).casefold()


def lower_case(response: str) -> bool:
    """No capital letter, and at least one letter."""
    return response == response.lower() and any(c.isalpha() for c in response)


def upper_case(response: str) -> bool:
    """No small letter, and at least one letter."""
    return response == response.upper() and any(c.isalpha() for c in response)


def bullets(response: str, count: int) -> bool:
    """Exactly `count` lines begin with a bullet: "-", "*" or "•"."""
    return len(re.findall(r"^[ \t]*[-*•][ \t]+\S", response, re.MULTILINE)) == count


def numbered(response: str, count: int) -> bool:
    """The lines that begin with a number ("1." or "1)") are numbered 1 … count."""
    found = re.findall(r"^[ \t]*(\d+)[.)][ \t]+\S", response, re.MULTILINE)
    return [int(number) for number in found] == list(range(1, count + 1))


def contains(response: str, words: list[str]) -> bool:
    """Every one of the words occurs."""
    return all(_occurrences(word, response) for word in words)


def avoids(response: str, words: list[str]) -> bool:
    """None of the words occurs."""
    return not any(_occurrences(word, response) for word in words)


def repeats(response: str, word: str, count: int) -> bool:
    """The word occurs at least `count` times."""
    return _occurrences(word, response) >= count


def json_keys(response: str, keys: list[str]) -> bool:
    """The whole response is one JSON object with exactly these keys."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?\s*```", response.strip(), re.DOTALL | re.IGNORECASE)
    try:
        value = json.loads(fenced.group(1) if fenced else response)
    except (json.JSONDecodeError, RecursionError):
        return False
    return isinstance(value, dict) and set(value) == set(keys)


def starts_with(response: str, phrase: str) -> bool:
    """The first words are the phrase."""
    text, wanted = _plain(response.lstrip(_WRAPPING)), _plain(phrase)
    return text.startswith(wanted) and not text[len(wanted):][:1].isalnum()


def ends_with(response: str, phrase: str) -> bool:
    """The last words are the phrase, with nothing behind it."""
    text, wanted = _plain(response.rstrip(_WRAPPING)), _plain(phrase)
    return text.endswith(wanted) and not text[: -len(wanted)][-1:].isalnum()


def words_at_most(response: str, count: int) -> bool:
    """At most `count` words, as separated by white space."""
    return len(response.split()) <= count


def words_at_least(response: str, count: int) -> bool:
    """At least `count` words, as separated by white space."""
    return len(response.split()) >= count


def sentences(response: str, count: int) -> bool:
    """Exactly `count` sentences, the last of them finished. "Dr." ends none, nor does the "1." of a list."""
    text = _LIST_NUMBER.sub("", _ABBREVIATION.sub("", response)).strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return len(ends) == count and ends[-1] == len(text)


def paragraphs(response: str, count: int) -> bool:
    """Exactly `count` paragraphs, with blank lines between them."""
    return len([part for part in re.split(r"\n[ \t]*\n", response) if part.strip()]) == count


def no_commas(response: str) -> bool:
    """Not a single comma."""
    return "," not in response


def quoted(response: str) -> bool:
    """The whole response stands in double quotation marks."""
    text = response.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


def one_of(response: str, options: list[str]) -> bool:
    """One of the options and nothing else; case and a full stop do not matter."""
    return _plain(response.strip(_WRAPPING + ".!")) in {_plain(option) for option in options}


def title(response: str) -> bool:
    """A title in double angular brackets, such as <<The Long Way Home>>, occurs."""
    return re.search(r"<<[^<>\n]*\w[^<>\n]*>>", response) is not None


DEMANDS: dict[str, Callable[..., bool]] = {
    demand.__name__: demand for demand in (
        lower_case, upper_case, bullets, numbered, contains, avoids, repeats, json_keys, starts_with, ends_with,
        words_at_most, words_at_least, sentences, paragraphs, no_commas, quoted, one_of, title)
}


def satisfies(kind: str, response: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a response that is not empty satisfies the demand `kind` with its arguments."""
    return bool(response.strip()) and DEMANDS[kind](response, **arguments)
