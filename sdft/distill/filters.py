"""Choose, step 2 of the method: train on the rewrite where it can be trusted, else on the original answer.

    ỹ' = ỹ  where every check accepts it,   else  y            arXiv 2402.13669, section 3

The paper's own checks are two. *Tell-tale words*: a rewrite that speaks of the "reference answer" gives away that one
was shown (its published ban-list, any case, anywhere). And *the task's check*: the answer extracted from ỹ equals the
one in y.

What its published system let through and this one rejects as well:
- *no rewrite*: the prompt did not fit the model's context;
- *empty*: there is nothing to learn from;
- *unfinished*: cut at the token limit. It was trained as if it ended there, with the end-of-sequence token behind it;
- *repeats itself*: more than half of its word 4-grams have occurred before, and more than in the reference;
- *far too long*: many times the reference's length, and long in itself. A one-word reference makes any sentence many
  times as long, so either alone means little.

    sdft distill --task passages --out runs/mine       (writes distilled.jsonl)
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sdft.data.records import Record
from sdft.distill.distilled import Distilled
from sdft.distill.rewriting import Rewrite
from sdft.errors import SdftError
from sdft.tasks.base import accept

BANNED = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
BANNED_START = "Your turn"
Check = Callable[[Record, str], str | None]
_WORD = re.compile(r"[぀-ヿ㐀-鿿]|\w+|[^\w\s]")          # an ideograph, a word, a mark


@dataclass(frozen=True)
class Limits:
    """From where on a finished rewrite is no answer any more."""

    max_repeated_ngrams: float = 0.5          # share of its word 4-grams that have occurred before
    max_length_ratio: float = 5.0               # times as many words as the reference has,
    max_words: int = 300                 # and more words than this

    def __post_init__(self) -> None:
        if not 0 < self.max_repeated_ngrams <= 1 or self.max_length_ratio < 1 or self.max_words < 1:
            raise SdftError("expected max_repeated_ngrams in (0, 1], max_length_ratio ≥ 1 and max_words ≥ 1, got "
                            f"{self.max_repeated_ngrams}, {self.max_length_ratio} and {self.max_words}")


def choose(records: Iterable[Record], rewrites: Iterable[Rewrite], check: Check = accept,
           limits: Limits = Limits()) -> list[Distilled]:
    """Give every record its target: the rewrite of its id where `reason_against` finds nothing, else the original.

    check: the task's. It returns None where the answer in a text is right, else the reason in a few words. The default
    accepts every rewrite, so that only the checks above decide.
    """
    written = {rewrite.id: rewrite for rewrite in rewrites}
    distilled = []
    for record in records:
        rewrite = written.get(record.id)
        reason = reason_against(record, rewrite, check, limits)
        taken = rewrite if not reason else None
        distilled.append(Distilled(
            record.id, record.instruction, taken.text.strip() if taken else record.response, record.system,
            record.history, record.extra, reference=record.response, source="rewrite" if taken else "original",
            reason=reason))
    return distilled


def reason_against(record: Record, rewrite: Rewrite | None, check: Check = accept, limits: Limits = Limits()) -> str:
    """Why the rewrite is not to be trained on, in a few words: the first reason found, or "" where there is none."""
    if rewrite is None:
        return "no rewrite"
    text = rewrite.text.strip()
    if not text:
        return "empty"
    if rewrite.finish != "stop":
        return "unfinished"
    return (tell_tale(text)
            or repeats_itself(text, record.response, limits)
            or far_too_long(text, record.response, limits)
            or check(record, text) or "")


def tell_tale(text: str) -> str:
    """The ban-list of the paper's published system: words that a model writes which was shown a reference answer."""
    lower = text.lower()
    found = [phrase for phrase in BANNED if phrase in lower]
    if text.startswith(BANNED_START):
        found.append(f"{BANNED_START} …")
    return f'tell-tale words "{found[0]}"' if found else ""


def repeats_itself(text: str, reference: str, limits: Limits = Limits()) -> str:
    """An endless repetition, told by repeated 4-grams; a reference that repeats itself (a table, a song) excuses it."""
    share = repeated_share(words(text))
    return "repeats itself" if share > limits.max_repeated_ngrams and share > repeated_share(words(reference)) else ""


def repeated_share(units: Sequence[str], n: int = 4) -> float:
    """1 − distinct n-grams / n-grams: 0 where none occurs twice (seq-rep-n, Welleck et al. 2019, arXiv 1908.04319)."""
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def far_too_long(text: str, reference: str, limits: Limits = Limits()) -> str:
    """Longer than `limits.words`, and than `limits.times` the reference."""
    count = len(words(text))
    return "far too long" if count > max(limits.max_words, limits.max_length_ratio * len(words(reference))) else ""


def words(text: str) -> list[str]:
    """Words and marks; of scripts without spaces, their characters."""
    return _WORD.findall(text)
