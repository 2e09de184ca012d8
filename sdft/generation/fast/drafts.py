"""Reference-guided speculation: draft by looking up what followed the last tokens before, verify all drafts in one step.

A rewrite repeats much of its prompt, which holds the reference answer. Where the last tokens occur earlier in the prompt or in
the response, what followed there is a good guess (prompt lookup decoding; Saxena 2023; Yang et al. 2023, arXiv 2304.04487):

    … sold 48 / 2 = 24 clips in May . …           …  she sold 48 / 2 ┊ = 24            one step computes the model's
               ├─ match ─┤├draft┤                          ├─ match ─┤┊├draft┤         choice behind each of these
    model's choices                                                   = 24 items │     accepted: "= 24", and "items"

The choice at each place is made exactly as without a draft: the most probable token, or the draw with that place's own uniform number.
A draft only saves the wait: as far as it equals the choices, the next choice was made in the right context and stands. So
the tokens are the same with and without drafts, and a sampled token follows the model's distribution exactly. This is the rule of
Leviathan et al. 2023 (arXiv 2211.17192) for a draft that is certain of its token x: accepted with probability p(x), otherwise the
draw is from p without x, normalised.

When it pays. A drafted token costs its share of a longer step, and saves a later step's share if it is accepted. Let b be the
time of one more token in a step, r that of one more row, f that of a step whatever its size, all in units of b. With n rows, a
draft whose chance is p pays where p · (1 + r + f/n) > 1. Chances were counted on the 135M model's greedy rewrites by how many
tokens matched (`CHANCES`). `ROW` and `FIXED` are where the time of such a run was least by a model of a step's time, fitted
to measured steps (two CPU cores, bf16, heads attended each by itself: 40 ms, 0.5 ms a token, 1.0 ms a row of 384 slots and
0.13 ms for each token it is filled up to); they are below r and f themselves, because rows beside a long draft are filled
up to it. The minimum is flat, also where a step parts its rows by length, and open answers, of whose drafts 72 % stand, are
drafted by the same numbers.
"""
from __future__ import annotations

from collections import defaultdict

SHORTEST, LONGEST = 2, 10                   # how many of the last tokens must match, and how many are compared at most
MOST = 2                                    # drafted tokens of a row in a step: more fill up too many rows beside them, and
                                            # the 135M model's 9 heads of 3 tokens are read for at once (cache.QUERIES)
CHANCES = {2: 0.50, 3: 0.60, 4: 0.67, 5: 0.75, 6: 0.75, 7: 0.75, 8: 0.75, 9: 0.80, 10: 0.87}   # of each drafted token
ROW, FIXED = 1.5, 40.0                      # in units of one more token


class NgramIndex:
    """Where each pair of neighbouring tokens of one row's context ended."""

    def __init__(self, tokens: list[int]):
        self.tokens: list[int] = []
        self.ends: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.extend(tokens)

    def extend(self, tokens: list[int]) -> None:
        """Append what was written."""
        for token in tokens:
            if self.tokens:
                self.ends[self.tokens[-1], token].append(len(self.tokens))
            self.tokens.append(token)

    def match(self) -> tuple[int, int]:
        """Return (n, end): the longest earlier match of the last tokens, n long, ends before place `end`; (0, 0) if none.

        Of matches of the same length the latest counts.
        """
        context, last = self.tokens, len(self.tokens) - 1
        best = (0, 0)
        for end in reversed(self.ends.get((context[-2], context[-1]), ()) if last > 0 else ()):
            if end == last:
                continue
            n = SHORTEST
            while n < LONGEST and end >= n and context[end - n] == context[last - n]:
                n += 1
            if n > best[0]:
                best = (n, end + 1)
                if n == LONGEST:
                    break
        return best

    def draft(self, rows: int, room: int) -> list[int]:
        """The tokens worth drafting, at most `room`, when `rows` rows share the step."""
        n, end = self.match()
        return self.tokens[end : end + min(draft_length(n, rows), room)] if n else []


def draft_length(matched: int, rows: int) -> int:
    """How many tokens pay behind a match of so many, in a step of so many rows."""
    chance, worth, length = CHANCES[matched], 1 + ROW + FIXED / rows, 0
    while length < MOST and chance ** (length + 1) * worth > 1:
        length += 1
    return length


def accepted(draft: list[int], choices: list[int]) -> list[int]:
    """The choices that stand: as many as the draft foretold, and the one behind them. choices has one more than draft."""
    right = 0
    while right < len(draft) and draft[right] == choices[right]:
        right += 1
    return choices[: right + 1]
