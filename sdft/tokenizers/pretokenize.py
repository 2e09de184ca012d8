"""Split text into the words that byte-pair merges may not cross: pre-tokenisers and the NFC normaliser.

A tokenizer.json splits by regular expressions with \\p{L} and \\p{N}, which the standard `re` lacks. All patterns in
use distinguish characters beyond ASCII only as letter, number, white space or other. So text is first *folded*, one
character to one character: ASCII to itself, others to one representative per class. The pattern's classes become small
sets of ASCII and representatives, and the lengths of the pieces of the folded text split the original.

    text      "Œuvre n° ٣٤!"        pattern  \\p{L}+ | \\p{N} | …
    folded    "LuvrenS nO NN!"      classes  [A-Za-zL]  [0-9N]      (L, N, S, O are unused control characters)

The pieces equal those of the `tokenizers` library. Python's `unicodedata` has Unicode 14 (3.11) to 16 (3.14); the
library's regular expressions have 16, its digits a later version, its normaliser about 9. The sets at the end are the
differences between tokenizers 0.23 and Python 3.11 over every code point, so that ids depend on neither; the tests
compare them again.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sdft.errors import SdftError

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


class _Fold(dict):
    """A table for str.translate: code point → folded character, computed when it is first needed."""

    def __missing__(self, code: int) -> str:
        char, category = chr(code), unicodedata.category(chr(code))
        if char < "\x80" or char == _LONG_S:
            folded = char
        elif category[0] == "L" or code in LETTERS:
            folded = _LETTER
        elif code in RUST_NUMBERS:
            folded = _RUST_NUMBER
        elif category[0] == "N" or code in NUMBERS:
            folded = _NUMBER
        else:
            folded = _SPACE if category[0] == "Z" or char == "\x85" else _OTHER
        return self.setdefault(code, folded)


_FOLD = _Fold()


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


def _codes(ranges: str) -> frozenset[int]:
    """Expand "A-C F" (hexadecimal, inclusive) into {0xA, 0xB, 0xC, 0xF}."""
    codes: set[int] = set()
    for entry in ranges.split():
        first, _, last = entry.partition("-")
        codes.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(codes)


# Letters (\p{L}) and numbers (\p{N}) assigned after Unicode 14.
LETTERS = _codes(
    "1C89-1C8A A7CB-A7CD A7DA-A7DC 105C0-105F3 10D4A-10D65 10D6F-10D85 10EC2-10EC4 1123F-11240 11380-11389 1138B "
    "1138E 11390-113B5 113B7 113D1 113D3 11BC0-11BE0 11F02 11F04-11F10 11F12-11F33 1342F 13441-13446 13460-143FA "
    "16100-1611D 16D40-16D6C 18CFF 1B132 1B155 1DF25-1DF2A 1E030-1E06D 1E4D0-1E4EB 1E5D0-1E5ED 1E5F0 2B739 "
    "2EBF0-2EE5D 31350-323AF")
NUMBERS = _codes(
    "10D40-10D49 116D0-116E3 11BF0-11BF9 11F50-11F59 16130-16139 16D70-16D79 1CCF0-1CCF9 1D2C0-1D2D3 1E4F0-1E4F9 "
    "1E5F1-1E5FA")

# Numbers for the `Digits` pre-tokeniser (Rust's char::is_numeric), but not for \p{N}.
RUST_NUMBERS = _codes("11DE0-11DE9 16FF4-16FF6")

# Combining marks for Python, but for the library's normaliser starters that compose with nothing.
NFC_STARTERS = _codes(
    "7FD 897-89F 8CA-8D3 9FE C3C CF3 D3B-D3C EBA ECE 1715 1ABF-1ACE 1DF6-1DFA A82C 10D24-10D27 10D69-10D6D "
    "10EAB-10EAC 10EFC-10EFF 10F46-10F50 10F82-10F85 11070 11241 1133B 113B8-113C0 113C2 113C5 113C7-113CA "
    "113CC-113D0 113D2 113E1-113E2 1145E 11839-1183A 1193D-1193E 11943 119E0 11A34 11A47 11A99 11D42 11D44-11D45 "
    "11D97 11F00-11F01 11F03 11F34-11F3A 11F3E-11F42 11F5A 13440 13447-13455 1611E-1612F 16D63-16D6A 16FF0-16FF1 "
    "1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF")
