"""Pre-tokenisers and normaliser against the `tokenizers` library, over every code point there is."""
import random
import re
import unicodedata

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from sdft.errors import SdftError
from sdft.tokenizers.pretokenize import DIGIT, GPT2, LLAMA3, NFC_STARTERS, QWEN2, PreTokenizer, nfc, replace_surrogates

# Every code point without surrogates, and only the first 300 of each unassigned or private plane (4 to 13, 15, 16).
EVERY_CHARACTER = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000
                          and (code < 0x40000 or code >> 16 == 14 or code & 0xFFFF < 300))


def _theirs(pattern):
    if pattern == DIGIT:
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Split(Regex(pattern), "isolated")


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, QWEN2, DIGIT], ids=["gpt2", "llama3", "qwen2", "digits"])
@pytest.mark.parametrize("between", ["", "a", " ", "'", "\n"],
                         ids=["alone", "letter", "space", "apostrophe", "newline"])
def test_every_code_point_has_the_class_that_the_library_gives_it(pattern, between):
    text = between.join(EVERY_CHARACTER if between == "a" else EVERY_CHARACTER[::11])
    assert PreTokenizer([pattern])(text) == [piece for piece, _ in _theirs(pattern).pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", [GPT2, LLAMA3, QWEN2], ids=["gpt2", "llama3", "qwen2"])
@pytest.mark.parametrize("text", [
    "I'll WE'LL they'Ve it's IT'S 'ſ 'T don't'd 're'", "  two   three\t\ttabs  ",
    " \n \r\n\r\n  x", "1234567 ٣٤٥٦ ½ Ⅷ x1y22",
    "e\u0301 q\u0323\u0307", "日本語 テキスト", "👩‍👩‍👧🏽 ok",
    "\x00\x1c\x1d\x85\xa0\u200b\u2028 end ", "if (a[i] != b) {\n\treturn;\n}\n\n\n",
    "!!! ??\n\n", "", " ", "\n", "'", "''s",
])
def test_pieces_of_hard_text(pattern, text):
    assert PreTokenizer([pattern])(text) == [piece for piece, _ in _theirs(pattern).pre_tokenize_str(text)]


def test_patterns_apply_one_after_the_other():
    ours = PreTokenizer([DIGIT, GPT2])("in 2024, x86_64 ٣")
    theirs = pre_tokenizers.Sequence([_theirs(DIGIT), _theirs(GPT2)])
    assert ours == [piece for piece, _ in theirs.pre_tokenize_str("in 2024, x86_64 ٣")]
    assert ours == ["in", " ", "2", "0", "2", "4", ",", " x", "8", "6", "_", "6", "4", " ", "٣"]


@pytest.mark.parametrize("pattern, culprit", [
    (r"\p{Lu}+|\s+", r"\p{Lu}"), (r"\w+", r"\w"), (r"^a", "^"), (r"[一-龥]+", "一"), (r"[a&&b]", "&"),
    (r"\p{N}{1,3}+", "+"),
])
def test_a_pattern_that_re_would_read_differently_is_refused_by_the_part(pattern, culprit):
    with pytest.raises(SdftError, match=f"somewhere: .*holds {re.escape(culprit)}, which"):
        PreTokenizer([pattern], "somewhere")


def test_normal_form_c_is_the_librarys_for_every_code_point_and_for_orders_of_marks():
    library = normalizers.NFC()
    marks = [char for char in EVERY_CHARACTER if unicodedata.combining(char) or ord(char) in NFC_STARTERS]
    generator = random.Random(0)
    texts = ["".join(generator.choices(EVERY_CHARACTER, k=20)) for _ in range(500)]
    texts += [f"q{mark}{other} o{other}{mark}" for mark in marks for other in "\u0301\u0323\u05b0"]
    texts += ["".join(generator.choices("aouAO가각" + "".join(generator.sample(marks, 8)), k=12)) for _ in range(2000)]
    texts += list(EVERY_CHARACTER[0x80::5])
    for text in texts:
        assert nfc(text) == library.normalize_str(text), ascii(text)


def test_lone_surrogates_become_the_replacement_character():
    assert replace_surrogates("a\ud83d b\udc00é") == "a\ufffd b\ufffdé"
