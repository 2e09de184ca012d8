"""Scorers: extract an answer from a response, and compare it with the reference. Pure functions of strings.

The checks are those of arXiv 2402.13669 (its published system), without their defects: numbers on two lines are not
joined, "10 20" is not 1020, half credit does not count as full. Each function names its departures from them.
ROUGE-L (Lin 2004) equals the package rouge-score without a stemmer.

    python -c "from sdft.tasks.scorers import last_integer; print(last_integer('So 3 + 4 = 7.'))"
"""
from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

DIGITS = 4000             # of the longest answer: Python reads no integer of more than 4300
_NUMBER = re.compile(r"""
    (?:(?<![\w)])[-−])?             # a minus sign, unless an operand comes before it: "5-3" holds 5 and 3
    (?:\d{1,3}(?:,\d{3})+(?!\d)     # 1,234,567
    |(?<![\d.,])\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?![\d,])       # 118 000, with a blank of any width
    |\d+)                           # 1234567
    (?:\.\d+)?                      # .50
    """, re.VERBOSE)


def normalise(text: str) -> str:
    """Lower case, thousands separators dropped, every other mark a space: "The  Fee: 1,200!" → "the fee 1200".

    The usual normalisation of extractive question answering (SQuAD, arXiv 1606.05250), except that articles stay.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.casefold())
    return " ".join(re.sub(r"[^\w]|_", " ", text).split())


def answer_occurs(answer: str, response: str) -> bool:
    """Whether the normalised answer occurs in the response as whole words ("rose" is not in "roses")."""
    wanted = normalise(answer)
    return bool(wanted) and f" {wanted} " in f" {normalise(response)} "


def last_integer(text: str) -> int | None:
    """The last number in `text` if it is an integer, else None (GSM8K: arXiv 2402.13669, its published check).

    "$1,200.00" is 1200 and "$118 000" is 118000; "2.5" is no answer, nor is a number of more than DIGITS digits. The
    published pattern joins all digits across spaces and line ends ("10 20" reads 1020); this one joins groups of
    three on one line.
    """
    number = (_NUMBER.findall(text) or [""])[-1]
    whole, _, fraction = re.sub(r"[, \u00a0\u2009\u202f]", "", number).replace("−", "-").partition(".")
    return int(whole) if whole and not fraction.strip("0") and len(whole) <= DIGITS else None


def normalise_call(text: str) -> str:
    """Collapse white space, turn ' into " and ", " into ",": the form in which the paper compares function calls."""
    return " ".join(text.split()).replace("'", '"').replace(", ", ",")


def call_occurs(reference: str, response: str) -> bool:
    """Whether the reference call occurs in the response, after a word boundary (OpenFunctions: arXiv 2402.13669).

    The text around the reference's call does not count. The branch `reproduce` gives half credit for matching
    positional values, and its filter counts half as correct; here there is no half credit.
    """
    call = call_in(reference)
    return bool(call and re.search(r"\b" + re.escape(call), normalise_call(response)))


def call_in(text: str) -> str | None:
    """The normalised call name(parameters) that `text` holds, from its first name before "(" to its last ")"."""
    found = re.search(r"[\w.]+\(.*\)", normalise_call(text), re.DOTALL)
    return found.group() if found else None


def rouge_l(reference: str, candidate: str) -> float:
    """F1 of the longest common subsequence of words: 2PR/(P + R), P = LCS/|candidate|, R = LCS/|reference|; 0 … 1.

    Words are runs of a–z and 0–9 of the lower-cased texts. Two texts without a word score 0.
    """
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (reference, candidate))
    common = longest_common_subsequence(a, b)
    if not common:
        return 0.0
    precision, recall = common / len(b), common / len(a)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one big-integer step per item of b.

    Bit i of `state` is 0 where the length for a[: i + 1] exceeds the length for a[:i]; the zeros count the length.
    """
    positions: dict[Hashable, int] = {}         # item → the bits of its positions in a
    for index, item in enumerate(a):
        positions[item] = positions.get(item, 0) | 1 << index
    full = (1 << len(a)) - 1
    state = full
    for item in b:
        matched = state & positions.get(item, 0)
        state = (state + matched | state - matched) & full
    return len(a) - state.bit_count()
