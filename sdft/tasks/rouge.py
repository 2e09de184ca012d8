"""ROUGE-L (Lin 2004), as the package rouge-score computes it without a stemmer."""
from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

_WORD = re.compile(r"[a-z0-9]+")


def rouge_l(reference: str, candidate: str) -> float:
    """F1 of the longest common subsequence of words: 2PR/(P + R), P = LCS/|candidate|, R = LCS/|reference|; 0 … 1.

    Words are runs of a–z and 0–9 of the lower-cased texts. Two texts without a word score 0.
    """
    a, b = _WORD.findall(reference.lower()), _WORD.findall(candidate.lower())
    common = longest_common_subsequence(a, b)
    if not common:
        return 0.0
    precision, recall = common / len(b), common / len(a)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one big-integer step a word of b.

    Bit i of `state` is 0 where the best subsequence ends a step at word i of a; the zeros are its length.
    """
    places: dict[Hashable, int] = {}
    for index, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(a)) - 1
    state = full
    for word in b:
        matched = state & places.get(word, 0)
        state = (state + matched | state - matched) & full
    return len(a) - state.bit_count()
