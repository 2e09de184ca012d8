"""Demands that a prompt makes and a program can verify: the checkers of the suites `instructions` and `elaborate`.

Verifiable demands are the idea of IFEval (arXiv 2311.07911); the demands and their functions are our own. A function is
strict about what the prompt says and indifferent to the rest: quotation marks or asterisks around a whole response do
not hide its first or last words, and a Markdown fence around JSON is allowed.

Some demands are met by any short answer ("no commas"), so a model that forgot how to write more than a word passes
them. `one_word_passes` tells such items apart without a model: one of ONE_WORD_ANSWERS, a word of the prompt, or the
prompt itself passes the check.

    python -c "from sdft.tasks.demands import satisfies; print(satisfies('bullets', '- a\\n- b', {'count': 2}))"
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from sdft.tasks.scorers import longest_common_subsequence

_WRAPPING = " \t\r\n\"'“”‘’*_"
_ABBREVIATION = re.compile(r"\b(?:(?:mr|mrs|ms|dr|st|vs|e\.g|i\.e)\.(?=\s)|no\.(?=\s*\d))", re.IGNORECASE)
_LIST_NUMBER = re.compile(r"^\s*\d+[.)](?=\s)", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)")

# Fifty answers of one word, as a model gives them that was fine-tuned on short answers.
ONE_WORD_ANSWERS = (
    "yes", "no", "Yes", "No", "Yes.", "No.", "YES", "NO!", '"Yes."', "**No**", "maybe", "Maybe.", "ok", "sure", "true",
    "False", "none", "unknown", "positive", "Negative.", "1", "2", "3.", "1.", "42", "100", "1987", "3.5", "50%", "two",
    "seven", "Four.", "the", "it", "...", "?", "- yes", "1. Yes", "water", "Paris", "Anna", "Monday.", "March", "blue",
    "winter", "bicycles", "Cats.", "trains", "bread", "friendship!")


def _occurrences(word: str, response: str) -> int:
    """Count `word` as a whole word or phrase, in any case, with any white space in a phrase."""
    pattern = re.escape(word).replace("\\ ", r"\s+")
    return len(re.findall(rf"(?<![^\W_]){pattern}(?![^\W_])", response, re.IGNORECASE))


def _plain(text: str) -> str:
    """Unify quotes, apostrophes, white space and case, which keyboards and models write differently."""
    return " ".join(text.replace("’", "'").replace("“", '"').replace("”", '"').split()).casefold()


def numbered(response: str, count: int) -> bool:
    """The lines that begin with a number ("1.", "1)", "**1.**") are numbered 1 … count."""
    numbers = re.findall(r"^[ \t>#*_(]*(\d+)\\?[.)][*_]*[ \t]+\S", response, re.MULTILINE)
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


def _sentence_ends(text: str) -> list[int]:
    """Where the sentences of `text` end. "Dr." and the "1." of a list end no sentence."""
    return [match.end() for match in _SENTENCE_END.finditer(text)]


def _unnumbered(response: str) -> str:
    return _LIST_NUMBER.sub("", _ABBREVIATION.sub("", response)).strip()


def _paragraphs(response: str) -> int:
    return len(re.split(r"\n[ \t]*\n\s*", response.strip()))


def sentences(response: str, count: int) -> bool:
    """There are exactly `count` sentences, the last one finished."""
    text = _unnumbered(response)
    ends = _sentence_ends(text)
    return len(ends) == count and ends[-1] == len(text)


def keeps(response: str, text: str, percent: int) -> bool:
    """At least `percent` % of the different words of `text` with four letters or more occur.

    The first four letters of a word decide, so that an inflected form ("repaired" for "repairs") counts.
    """
    stems = {word[:4] for word in re.findall(r"\w{4,}", _plain(text))}
    return 100 * len(stems & {word[:4] for word in re.findall(r"\w+", _plain(response))}) >= percent * len(stems)


def differs(response: str, text: str) -> bool:
    """The response has less than nine tenths of the words of `text` in their order."""
    words, repeated = (re.findall(r"\w+", part.casefold()) for part in (response, text))
    return 10 * longest_common_subsequence(repeated, words) < 9 * len(repeated)


def sections(response: str, heads: list[str]) -> bool:
    """Each head, such as "Q:", begins a line, Markdown aside, and is followed by text before the next head."""
    any_head = "|".join(re.escape(head.rstrip(":")) for head in heads)
    parts = re.split(rf"^[ \t\"'“*_>#-]*(?:\d+\.[ \t]*)?({any_head})[*_ \t]*:", response,
                     flags=re.MULTILINE | re.IGNORECASE)
    found = zip(parts[1::2], parts[2::2], strict=True)                              # (head, text up to the next head)
    filled = {head.casefold() for head, text in found if re.search(r"[^\W_]", text)}
    return filled == {head.rstrip(":").casefold() for head in heads}


def lines_at_least(response: str, count: int, words: int) -> bool:
    """At least `count` lines have at least `words` words, not counting a number or mark in front.

    A line that ends with a colon introduces the others, and does not count.
    """
    lines = [re.sub(r"^[\s\d.)(*•#>_-]+", "", line) for line in response.splitlines()
             if not line.rstrip().endswith(":")]
    return sum(len(line.split()) >= words for line in lines) >= count


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
    "sentences_at_least": lambda response, count: len(_sentence_ends(_unnumbered(response))) >= count,
    # exactly (at least) `count` paragraphs, separated by blank lines
    "paragraphs": lambda response, count: _paragraphs(response) == count,
    "paragraphs_at_least": lambda response, count: _paragraphs(response) >= count,
    "lines_at_least": lines_at_least,
    "sections": sections,
    "keeps": keeps,
    "differs": differs,
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
    response = response.replace("\r\n", "\n").replace("\u00a0", " ")
    return bool(response.strip()) and DEMANDS[kind](response, **arguments)


def one_word_passes(check: Callable[[str], bool], prompt: str) -> bool:
    """Whether the check of an item passes the empty answer, one of ONE_WORD_ANSWERS, its prompt, or a word of it."""
    return any(map(check, ("", *ONE_WORD_ANSWERS, prompt, *prompt.split(), *re.findall(r"\w+", prompt))))
