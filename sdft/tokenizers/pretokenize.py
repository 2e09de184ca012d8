"""Cutting text into the words that byte-pair merges may not cross: pre-tokenisers and the NFC normaliser.

A tokenizer.json names its cuts as regular expressions with \\p{L} and \\p{N}, which the standard `re` lacks. The
trick here: every pattern in use tells characters beyond ASCII apart only as letter, number, white space or other.
So text is first *folded*, one character to one character, ASCII to itself and the rest to one representative per
class; the pattern's classes become small sets of ASCII and representatives; and the lengths of the pieces of the
folded text cut the original.

    text      "Œuvre n° ٣٤!"        pattern  \\p{L}+ | \\p{N} | …
    folded    "LuvrenS nO NN!"      classes  [A-Za-zL]  [0-9N]      (L, N, S, O stand for unused control characters)

Equal to the `tokenizers` library, whose Oniguruma follows Unicode 16: what Python's own `unicodedata` is too old or
too new to know stands in `unicode_versions`.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sdft.errors import SdftError
from sdft.tokenizers.unicode_versions import LETTERS, NFC_STARTERS, NUMBERS, RUST_NUMBERS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# What the `Digits` pre-tokeniser splits by: Rust's char::is_numeric, of a newer Unicode than Oniguruma's \p{N}. The name
# is ours; no file can hold it, Oniguruma having no such class.
DIGIT = r"\p{Numeric}"

# Representatives: C1 control characters, which have no case and which folding itself replaces.
_LETTER, _NUMBER, _RUST_NUMBER, _SPACE, _OTHER = "\x80", "\x81", "\x82", "\x83", "\x84"
_LONG_S = "\u017f"          # ſ: the one letter beyond ASCII that case-insensitive 's matches, so it stays itself
_CLASSES = {r"\p{L}": "A-Za-z" + _LETTER + _LONG_S, r"\p{N}": "0-9" + _NUMBER,
            DIGIT: "0-9" + _NUMBER + _RUST_NUMBER, r"\s": r"\t-\r\x20" + _SPACE}
_ESCAPES = frozenset(r"rntfv\.-[](){}|?*+'/ ")
_SYNTAX = re.compile(r"\\p\{\w+\}|\\.|\(\?[:!=]|\(\?i:|.", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Fold(dict):
    """The folding as a table for str.translate, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


def _fold(char: str) -> str:
    category = unicodedata.category(char)
    if char < "\x80" or char == _LONG_S:
        return char
    if category[0] == "L" or ord(char) in LETTERS:
        return _LETTER
    if ord(char) in RUST_NUMBERS:
        return _RUST_NUMBER
    if category[0] == "N" or ord(char) in NUMBERS:
        return _NUMBER
    return _SPACE if category[0] == "Z" or char == "\x85" else _OTHER


_FOLD = _Fold()


class PreTokenizer:
    """Cuts text by each of `patterns` in turn, every match and every gap between matches becoming a piece.

    Args:
        patterns: regular expressions in Oniguruma's syntax, as tokenizer.json holds them.
        where: the file they come from, for the message of an SdftError about a pattern that is not supported.
    """

    def __init__(self, patterns: Sequence[str], where: str = "pre-tokeniser"):
        self._patterns = [re.compile(f"({_translate(pattern, where)})") for pattern in patterns]

    def __call__(self, text: str) -> list[str]:
        """Return the pieces of `text`, which joined are `text` again."""
        if text.isascii():
            return self._cut(text)
        pieces, start = [], 0
        for folded in self._cut(text.translate(_FOLD)):
            pieces.append(text[start:start + len(folded)])
            start += len(folded)
        return pieces

    def _cut(self, folded: str) -> list[str]:
        pieces = [folded]
        for pattern in self._patterns:      # split on a captured pattern returns gap, match, gap, … in order
            pieces = [piece for whole in pieces for piece in pattern.split(whole) if piece]
        return pieces


def _translate(pattern: str, where: str) -> str:
    """Rewrite a pattern of Oniguruma for `re` over folded text, refusing what the two would read differently."""
    out, in_class = [], False
    for match in _SYNTAX.finditer(pattern):
        token = match.group()
        if token in _CLASSES:
            token = _CLASSES[token] if in_class else f"[{_CLASSES[token]}]"
        elif token == r"\S" and not in_class:
            token = "[^" + _CLASSES[r"\s"] + "]"
        elif token == "[" and not in_class:
            in_class = True
        elif token == "]":
            in_class = False
        elif token == "(" and not in_class:
            token = "(?:"                   # `split` must see one group: the whole
        elif (token[0] == "\\" and token[1:] not in _ESCAPES or not token.isascii()
              or token in ("[&" if in_class else "^$.") or token == "+" and out[-1:] == ["}"]):
            raise SdftError(f"{where}: the pre-tokeniser's regular expression {pattern} holds {token}, which is not "
                            r"supported (supported: \p{L}, \p{N}, \s, \S and plain syntax)")
        out.append(token)
    try:
        re.compile("".join(out))
    except re.error as error:
        raise SdftError(f"{where}: the pre-tokeniser's regular expression {pattern} is not valid ({error})") from error
    return "".join(out)


def nfc(text: str) -> str:
    """Return `text` in Unicode's normal form C, as the library composes it.

    Its table of combining marks is older than Python's: marks that it does not know stop reordering and
    composition, so the text between them is normalised alone.
    """
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return text
    parts, start = [], 0
    for index, char in enumerate(text):
        if ord(char) in NFC_STARTERS:
            parts += [unicodedata.normalize("NFC", text[start:index]), char]
            start = index + 1
    return "".join(parts) + unicodedata.normalize("NFC", text[start:])


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates (JSON escapes can make them; UTF-8 has no bytes for them) by U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
