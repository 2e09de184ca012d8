"""How an answer is extracted from a response and compared: pure functions of strings.

The checks are those of arXiv 2402.13669 (its published system), without their defects: numbers on two lines are not
joined, "10 20" is not 1020, half credit does not pass as full. Where a function departs from them it says so.

    python -c "from sdft.tasks.scorers import last_integer; print(last_integer('So 3 + 4 = 7.'))"
"""
from __future__ import annotations

import re

_NUMBER = re.compile(r"""
    (?:(?<![\w)])[-−])?             # a sign is one where no operand stands before it: "5-3" holds 5 and 3
    (?:\d{1,3}(?:,\d{3})+(?!\d)     # 1,234,567
    |\d+)                           # 1234567
    (?:\.\d+)?                      # .50
    """, re.VERBOSE)
_CALL = re.compile(r"[\w.]+\(.*\)", re.DOTALL)


def normalise(text: str) -> str:
    """Lower case, thousands separators dropped, every other mark a space: "The  Fee: 1,200!" → "the fee 1200".

    The usual normalisation of extractive question answering (SQuAD, arXiv 1606.05250), except that articles stay.
    """
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.casefold())
    return " ".join(re.sub(r"[^\w]|_", " ", text).split())


def answer_occurs(answer: str, response: str) -> bool:
    """Whether the normalised answer stands in the response as whole words ("rose" is not in "roses")."""
    wanted = normalise(answer)
    return bool(wanted) and f" {wanted} " in f" {normalise(response)} "


def last_integer(text: str) -> int | None:
    """The last number in `text` if it is an integer, else None (GSM8K: arXiv 2402.13669, its published check).

    "$1,200.00" is 1200; "2.5" is no answer. The published pattern also joins digits across spaces and line ends
    ("10 20" reads 1020); this one does not.
    """
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    whole, _, fraction = numbers[-1].replace(",", "").replace("−", "-").partition(".")
    return None if fraction.strip("0") else int(whole)


def normalise_call(text: str) -> str:
    """White space collapsed, ' → ", and ", " → ",": how the paper's system compares function calls."""
    return " ".join(text.split()).replace("'", '"').replace(", ", ",")


def call_occurs(reference: str, response: str) -> bool:
    """Whether the reference call stands in the response (OpenFunctions: arXiv 2402.13669, branch main).

    The reference must read name(parameters); it is correct where it occurs after a word boundary, anywhere. Full
    credit only: the half credit of branch reproduce for matching positional values is left out, for its filter
    took half for true.
    """
    call = normalise_call(reference)
    if not _CALL.fullmatch(call):
        return False
    return re.search(r"\b" + re.escape(call), normalise_call(response)) is not None
