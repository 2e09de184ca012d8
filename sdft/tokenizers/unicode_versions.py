"""Differences between the Unicode tables of Python and of the `tokenizers` library, so that ids depend on neither.

Python's `unicodedata` has Unicode 14 (3.11) to 16 (3.14); the library's regular expressions have 16, its digits a later
version, its normaliser about 9. Each set is the difference between tokenizers 0.23 and Python 3.11 over every code
point; the tests compare them again.
"""
from __future__ import annotations


def _codes(ranges: str) -> frozenset[int]:
    """Expand "A-C F" (hexadecimal, inclusive) into {0xA, 0xB, 0xC, 0xF}."""
    codes: set[int] = set()
    for entry in ranges.split():
        first, _, last = entry.partition("-")
        codes.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(codes)


# Letters (\p{L}) and numbers (\p{N}) assigned after Unicode 14.
LETTERS = _codes(
    "1C89-1C8A A7CB-A7CD A7DA-A7DC 105C0-105F3 10D4A-10D65 10D6F-10D85 10EC2-10EC4 1123F-11240 "
    "11380-11389 1138B 1138E 11390-113B5 113B7 113D1 113D3 11BC0-11BE0 11F02 11F04-11F10 11F12-11F33 "
    "1342F 13441-13446 13460-143FA 16100-1611D 16D40-16D6C 18CFF 1B132 1B155 1DF25-1DF2A 1E030-1E06D "
    "1E4D0-1E4EB 1E5D0-1E5ED 1E5F0 2B739 2EBF0-2EE5D 31350-323AF")
NUMBERS = _codes(
    "10D40-10D49 116D0-116E3 11BF0-11BF9 11F50-11F59 16130-16139 16D70-16D79 1CCF0-1CCF9 1D2C0-1D2D3 "
    "1E4F0-1E4F9 1E5F1-1E5FA")

# Numbers for the `Digits` pre-tokeniser (Rust's char::is_numeric), but not for \p{N}.
RUST_NUMBERS = _codes("11DE0-11DE9 16FF4-16FF6")

# Combining marks for Python, but for the library's normaliser starters that compose with nothing.
NFC_STARTERS = _codes(
    "7FD 897-89F 8CA-8D3 9FE C3C CF3 D3B-D3C EBA ECE 1715 1ABF-1ACE 1DF6-1DFA A82C 10D24-10D27 "
    "10D69-10D6D 10EAB-10EAC 10EFC-10EFF 10F46-10F50 10F82-10F85 11070 11241 1133B 113B8-113C0 113C2 "
    "113C5 113C7-113CA 113CC-113D0 113D2 113E1-113E2 1145E 11839-1183A 1193D-1193E 11943 119E0 11A34 "
    "11A47 11A99 11D42 11D44-11D45 11D97 11F00-11F01 11F03 11F34-11F3A 11F3E-11F42 11F5A 13440 "
    "13447-13455 1611E-1612F 16D63-16D6A 16FF0-16FF1 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF "
    "1E5EE-1E5EF")
