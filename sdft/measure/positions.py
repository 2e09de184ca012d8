"""A measure token by token, by place in the answer: bands that widen, since most happens at an answer's start.

    from sdft.measure.positions import by_position
    print(by_position([[1.8, 0.2, 0.1], [1.6]], "kl"))     # answer by answer, the value at each of its tokens
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

PLACES = (1, 2, 9, 33, 129)                 # of a token in its answer, from 1: where each band begins


def by_position(answers: Sequence[Sequence[float]], name: str) -> list[dict[str, Any]]:
    """Per band {first, last, `name`, tokens}: the mean of the values at these places, and of how many tokens."""
    longest = max(map(len, answers))
    found = []
    for first, following in pairwise((*PLACES, longest + 1)):
        values = [value for answer in answers for value in answer[first - 1 : following - 1]]
        if values:
            found.append({"first": first, "last": min(following - 1, longest), name: fmean(values),
                          "tokens": len(values)})
    return found
