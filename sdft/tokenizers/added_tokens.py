"""Added and special tokens: texts that become one id each. They are found before anything else is done to the text.

    "<|im_start|>user\\nHi"  →  [id of <|im_start|>]  "user\\nHi"

The longest token wins if several begin at one position. `lstrip` and `rstrip` let a token absorb the white space next
to it; `single_word` refuses a match inside a word; a `normalized` token is searched in normalised text.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

# White space and word characters of Rust's regex crate: \s excludes U+001C to U+001F; \w includes alphabetic symbols
# (the circled letters) and the two joiners.
_SPACES = ("\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
           "\u2009\u200a\u2028\u2029\u202f\u205f\u3000")
_WORD_CATEGORIES = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"))
_WORD_SYMBOL = re.compile("[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")


@dataclass(frozen=True)
class AddedToken:
    """An added token, with the fields of tokenizer.json's "added_tokens"."""

    id: int
    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class AddedTokens:
    """Splits text into added tokens and the normalised text between them."""

    def __init__(self, tokens: Iterable[AddedToken], normalize: Callable[[str], str] = str):
        tokens = list(tokens)
        self._normalize = normalize
        self._raw = _Finder(token for token in tokens if not token.normalized)
        self._normalized = _Finder(replace(token, content=normalize(token.content))
                                   for token in tokens if token.normalized)

    def split(self, text: str, special: bool) -> Iterator[str | int]:
        """Yield text (str) and ids of added tokens (int), in order; with special=False, special tokens are text."""
        for part in self._raw.split(text, special):
            if isinstance(part, int):
                yield part
            else:
                yield from self._normalized.split(self._normalize(part), special)


class _Finder:
    def __init__(self, tokens: Iterable[AddedToken]):
        self._by_text = {token.content: token for token in tokens if token.content}
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._find = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def split(self, text: str, special: bool) -> Iterator[str | int]:
        done = 0
        for match in self._find.finditer(text):
            token = self._by_text[match.group()]
            start, end = match.span()
            if token.special and not special or token.single_word and _inside_word(text, start, end):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(_SPACES))
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip(_SPACES))
            if done < start:
                yield text[done:start]
            yield token.id
            done = end
        if done < len(text):
            yield text[done:]


def _inside_word(text: str, start: int, end: int) -> bool:
    return start > 0 and _is_word(text[start - 1]) or end < len(text) and _is_word(text[end])


def _is_word(char: str) -> bool:
    return unicodedata.category(char) in _WORD_CATEGORIES or _WORD_SYMBOL.match(char) is not None
