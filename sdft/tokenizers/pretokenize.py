"""Split text into the words that byte-pair merges may not cross: pre-tokenisers and the NFC normaliser.

A tokenizer.json splits by regular expressions with \\p{L} and \\p{N}, which the standard `re` lacks. All patterns in
use distinguish characters beyond ASCII only as letter, number, white space or other. So text is first *folded*, one
character to one character: ASCII to itself, others to one representative per class. The pattern's classes become small
sets of ASCII and representatives, and the lengths of the pieces of the folded text split the original.

    text      "Œuvre n° ٣٤!"        pattern  \\p{L}+ | \\p{N} | …
    folded    "LuvrenS nO NN!"      classes  [A-Za-zL]  [0-9N]      (L, N, S, O are unused control characters)

The pieces equal those of the `tokenizers` library, whose Oniguruma follows Unicode 16; `unicode_versions` holds the
differences to Python's `unicodedata`.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from sdft.errors import SdftError
from sdft.tokenizers.unicode_versions import LETTERS, NFC_STARTERS, NUMBERS, RUST_NUMBERS

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# The class of the `Digits` pre-tokeniser: Rust's char::is_numeric, of a newer Unicode than Oniguruma's \p{N}. The name
# is ours; Oniguruma has no such class, so no file contains it.
DIGIT = r"\p{Numeric}"

# Representatives: C1 control characters, which have no case; folding replaces those in the text.
_LETTER, _NUMBER, _RUST_NUMBER, _SPACE, _OTHER = "\x80", "\x81", "\x82", "\x83", "\x84"
_LONG_S = "\u017f"          # ſ, the one letter beyond ASCII that case-insensitive 's matches, is not folded
_CLASSES = {r"\p{L}": "A-Za-z" + _LETTER + _LONG_S, r"\p{N}": "0-9" + _NUMBER,
            DIGIT: "0-9" + _NUMBER + _RUST_NUMBER, r"\s": r"\t-\r\x20" + _SPACE}
_ESCAPES = frozenset(r"rntfv\.-[](){}|?*+'/ ")
_SYNTAX = re.compile(r"\\p\{\w+\}|\\.|\(\?[:!=]|\(\?i:|.", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Memo(dict):
    """A dict that computes a missing value with `function`, and is emptied when it holds `limit` entries."""

    def __init__(self, function: Callable[[Any], Any], limit: int = 1 << 21):
        super().__init__()
        self._function, self._limit = function, limit

    def __missing__(self, key: Any) -> Any:
        if len(self) >= self._limit:
            self.clear()
        self[key] = value = self._function(key)
        return value


def _fold(code: int) -> str:
    char = chr(code)
    category = unicodedata.category(char)
    if char < "\x80" or char == _LONG_S:
        return char
    if category[0] == "L" or code in LETTERS:
        return _LETTER
    if code in RUST_NUMBERS:
        return _RUST_NUMBER
    if category[0] == "N" or code in NUMBERS:
        return _NUMBER
    return _SPACE if category[0] == "Z" or char == "\x85" else _OTHER


_FOLD = Memo(_fold)         # a table for str.translate


class PreTokenizer:
    """Splits text by each pattern in turn; each match and each gap between matches becomes a piece.

    patterns: regular expressions in Oniguruma's syntax, as in tokenizer.json. An SdftError about one names `where`.
    """

    def __init__(self, patterns: Sequence[str], where: str = "pre-tokeniser"):
        self._patterns = [re.compile(f"({_translate(pattern, where)})") for pattern in patterns]

    def __call__(self, text: str) -> list[str]:
        """Return the pieces of `text`, in order."""
        if text.isascii():
            return self._cut(text)
        pieces, start = [], 0
        for folded in self._cut(text.translate(_FOLD)):
            pieces.append(text[start:start + len(folded)])
            start += len(folded)
        return pieces

    def _cut(self, folded: str) -> list[str]:
        pieces = [folded]
        for pattern in self._patterns:      # splitting by a captured pattern returns gap, match, gap, …
            pieces = [piece for whole in pieces for piece in pattern.split(whole) if piece]
        return pieces


def _translate(pattern: str, where: str) -> str:
    """Translate a pattern of Oniguruma for `re` and folded text; refuse parts that the two would read differently."""
    out: list[str] = []
    in_class = False
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
            token = "(?:"                   # the only captured group is the whole pattern
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
    """Return `text` in Unicode's normal form C, as the library computes it.

    The library's table of combining marks is older than Python's. Marks that it lacks stop reordering and composition,
    so the text between them is normalised separately.
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
    """Replace lone surrogates, which JSON escapes can produce but UTF-8 cannot encode, by U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
