"""`sdft prompt`: an example token by token, in colour on a terminal, with its loss mask.

    in colour        targets are green, control tokens magenta; shades alternate to show the borders of tokens
    without colour   targets are in ⟦ ⟧, borders of tokens are written as │

    sdft prompt "Why is the sky blue?" --answer "Because." [--ids]
"""
from __future__ import annotations

import os

from sdft.data.chat import Example
from sdft.tokenizers.tokenizer import Tokenizer

TARGET, CONTROL, OTHER, OFF = ("\x1b[1;32m", "\x1b[32m"), "\x1b[35m", ("\x1b[0m", "\x1b[2m"), "\x1b[0m"


def show(tokenizer: Tokenizer, example: Example, colour: bool = False, lines: bool = False) -> str:
    """The example as text for a terminal; with `lines`, one token per line: index, id, and whether it is a target.

    The environment variable NO_COLOR turns colour off (no-color.org). Control characters are shown as escapes.
    """
    colour = colour and not os.environ.get("NO_COLOR")
    pieces = ["".join(char if char.isprintable() or char == "\n" and not lines else ascii(char)[1:-1]
                      for char in tokenizer.piece(token)) for token in example.tokens]
    codes = [TARGET[index % 2] if mask else CONTROL if token in tokenizer.special_ids else OTHER[index % 2]
             for index, (token, mask) in enumerate(zip(example.tokens, example.mask, strict=True))]
    if lines:
        pieces = [f"{index:>5}  {token:>6}  {'target' if mask else '  ·   '}  {piece}" for index, (token, mask, piece)
                  in enumerate(zip(example.tokens, example.mask, pieces, strict=True))]
    if colour:
        pieces = [f"{code}{piece}{OFF}" for code, piece in zip(codes, pieces, strict=True)]
    text = ("\n".join(["index      id  loss    token", *pieces]) if lines else
            "".join(pieces) if colour else _plain(example, pieces))
    legend = f"{TARGET[0]}target{OFF}  {CONTROL}control token{OFF}" if colour else "⟦target⟧  │ border of tokens"
    count = f"{len(example.tokens)} tokens, {sum(example.mask)} of them targets"
    return f"{text}\n\n{count}" + (f"    {legend}" if colour or not lines else "")


def _plain(example: Example, pieces: list[str]) -> str:
    text, inside = "", False
    for mask, piece in zip(example.mask, pieces, strict=True):
        text += "⟦" if mask and not inside else "⟧" if inside and not mask else "│" if text else ""
        text, inside = text + piece, mask
    return text + ("⟧" if inside else "")
