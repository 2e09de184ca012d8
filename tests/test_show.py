"""`sdft prompt` shows every token, and which are targets, with and without colour."""
import re

import pytest

from sdft.data.chat import encode_example
from sdft.data.show import show
from sdft.tokenizers.loading import load_tokenizer

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because of 3."}]


@pytest.fixture
def parts(smollm2):
    tokenizer = load_tokenizer(smollm2)
    return tokenizer, encode_example(tokenizer, MESSAGES, "r")


def test_plain_text_brackets_the_targets(parts):
    text = show(*parts)
    assert "⟦Because│ of│ │3│.│<|im_end|>⟧" in text
    assert f"{len(parts[1].tokens)} tokens, 6 of them targets" in text and "\x1b" not in text


def test_colour_marks_the_same_tokens_and_obeys_no_color(parts, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = show(*parts, colour=True)
    targets = re.findall(r"\x1b\[(?:1;)?32m(.*?)\x1b\[0m", text, flags=re.S)
    assert "".join(targets[:6]) == "Because of 3.<|im_end|>"
    assert re.sub(r"\x1b\[[\d;]*m", "", text).startswith("<|im_start|>system\nYou are a helpful")
    monkeypatch.setenv("NO_COLOR", "1")
    assert show(*parts, colour=True) == show(*parts)


def test_one_token_a_line(parts):
    tokenizer, example = parts
    header, *lines, _, count = show(tokenizer, example, lines=True).split("\n")
    assert header.split() == ["index", "id", "loss", "token"] and count.endswith("6 of them targets")
    assert [int(line.split()[1]) for line in lines] == example.tokens
    assert [line.split()[2] == "target" for line in lines] == example.mask


def test_one_token_a_line_has_the_same_colours_and_a_legend(parts, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    tokenizer, example = parts
    _, *lines, _, count = show(tokenizer, example, colour=True, lines=True).split("\n")
    assert [line.startswith(("\x1b[1;32m", "\x1b[32m")) for line in lines] == example.mask
    assert [line.startswith("\x1b[35m") for line in lines] == [
        token in tokenizer.special_ids and not mask for token, mask in zip(example.tokens, example.mask, strict=True)]
    assert "\x1b[1;32mtarget\x1b[0m" in count


def test_text_does_not_command_the_terminal(parts):
    tokenizer, _ = parts
    example = encode_example(tokenizer, [{"role": "user", "content": "\x1b[2J\r"}, MESSAGES[1]], "r")
    for lines in (False, True):
        text = show(tokenizer, example, lines=lines)
        assert "\x1b" not in text and "\r" not in text and "\\x1b" in text
