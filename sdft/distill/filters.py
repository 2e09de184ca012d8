"""Choose, step 2 of the method: train on the rewrite ỹ where every check accepts it, else on the original answer y.

    ỹ' = ỹ  if every check accepts ỹ,   else  y            arXiv 2402.13669, section 3

The paper has two checks. *Tell-tale words*: a rewrite that mentions the "reference answer" shows that the model saw one
(its published ban-list, any case, anywhere). *The task's check*: the answer extracted from ỹ equals the one in y.

Its published system accepts the following rewrites, which are rejected here:
- *no rewrite*: the prompt did not fit the model's context; *empty*: there is nothing to learn from;
- *unfinished*: cut at the token limit. It would teach the end-of-sequence token where the answer does not end;
- *repeats itself*: more than half of its word 4-grams have occurred before, and a larger share than in the reference;
- *headings of the prompt*: it continues with "### Instruction:" or another heading, like a next prompt;
- *far too long*: many times as many words as the reference, and long by itself. Both are needed, since any sentence is
  many times as long as a one-word reference. Marks are no words.

    sdft distill --task passages --out runs/mine       (writes distilled.jsonl)
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdft.data.records import Record
from sdft.distill.distilled import Distilled
from sdft.distill.rewriting import Rewrite
from sdft.errors import SdftError
from sdft.tasks.base import Check, accept

# The ban-list of the paper's published system: words that show that the model saw a reference answer.
BANNED = ("reference answer", "your response", "my response", "your own response", "now it's your turn")
BANNED_START = "Your turn"
_HEADING = re.compile(r"^#+ *(?:Instruction|Reference Answer|Response) *:", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Limits:
    """Limits on repetition and length; a finished rewrite beyond them is rejected."""

    max_repeated_ngrams: float = 0.5        # share of the rewrite's word 4-grams that have occurred before
    max_length_ratio: float = 5.0           # words of the rewrite / words of the reference; applies only above
    max_words: int = 300                    # this many words

    def __post_init__(self) -> None:
        if not 0 < self.max_repeated_ngrams <= 1 or self.max_length_ratio < 1 or self.max_words < 1:
            raise SdftError("expected max_repeated_ngrams in (0, 1], max_length_ratio ≥ 1 and max_words ≥ 1, got "
                            f"{self.max_repeated_ngrams}, {self.max_length_ratio} and {self.max_words}")


def choose(records: Iterable[Record], rewrites: Iterable[Rewrite], check: Check = accept,
           limits: Limits = Limits()) -> list[Distilled]:
    """Choose the training answer of every record: the rewrite of its id if all checks accept it, else the original.

    check(record, text) is the task's: None if the answer in `text` is right, else the reason in a few words. The
    default accepts every rewrite.
    """
    written = {rewrite.id: rewrite for rewrite in rewrites}
    distilled = []
    for record in records:
        rewrite, response, source = written.get(record.id), record.response, "original"
        reason = reason_against(record, rewrite, check, limits)
        if rewrite is not None and not reason:
            response, source = rewrite.text.strip(), "rewrite"
        distilled.append(Distilled(record.id, record.instruction, response, record.system, record.history, record.extra,
                                   reference=record.response, source=source, reason=reason))
    return distilled


def reason_against(record: Record, rewrite: Rewrite | None, check: Check = accept, limits: Limits = Limits()) -> str:
    """Return the first reason to reject the rewrite, in a few words; "" accepts it."""
    if rewrite is None:
        return "no rewrite"
    text = rewrite.text.strip()
    if not text:
        return "empty"
    if rewrite.finish != "stop":
        return "unfinished"
    banned = [phrase for phrase in BANNED if phrase in text.lower()]
    banned += [f"{BANNED_START} …"] if text.startswith(BANNED_START) else []
    if banned:
        return f'tell-tale words "{banned[0]}"'
    if _HEADING.search(text):
        return "headings of the prompt"
    rewritten, reference = words(text), words(record.response)
    # Endless repetition; a reference that repeats itself (a table, a song) excuses it.
    if repeated_share(rewritten) > max(limits.max_repeated_ngrams, repeated_share(reference)):
        return "repeats itself"
    lengths = [sum(unit[0].isalnum() for unit in units) for units in (rewritten, reference)]        # without marks
    if lengths[0] > max(limits.max_words, limits.max_length_ratio * lengths[1]):
        return "far too long"
    return check(record, text) or ""


def repeated_share(units: Sequence[str], n: int = 4) -> float:
    """The share of n-grams that have occurred before (seq-rep-n, Welleck et al. 2019, arXiv 1908.04319)."""
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0              # 1 − distinct n-grams / n-grams


def words(text: str) -> list[str]:
    """Split a text into words and marks, and scripts without spaces into characters."""
    return re.findall(r"[぀-ヿ㐀-鿿]|\w+|[^\w\s]", text)          # an ideograph, a word, a mark
