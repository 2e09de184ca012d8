"""`sdft prompt`: an example token by token, in colour on a terminal, with its loss mask.

    learned tokens are green; control tokens magenta; the rest alternates in shade, so that the borders of tokens show.
    Without colour, learned tokens stand in ⟦ ⟧ and all borders are written as │.
"""
from __future__ import annotations

import os

from sdft.text.chat import Example
from sdft.text.tokenizer import Tokenizer

LEARNED, CONTROL, SHADES, OFF = "\x1b[1;32m", "\x1b[35m", ("\x1b[0m", "\x1b[2m"), "\x1b[0m"


def show(tokenizer: Tokenizer, example: Example, colour: bool = False, lines: bool = False) -> str:
    """The example as text for a terminal; with `lines`, one token a line with its index, id and whether it is learned.

    The environment variable NO_COLOR turns colour off (no-color.org).
    """
    colour = colour and not os.environ.get("NO_COLOR")
    pieces = [tokenizer.piece(token) for token in example.tokens]
    learned = sum(example.mask)
    count = f"{len(example.tokens)} tokens, {learned} of them learned"
    if lines:
        rows = [f"{index:>5}  {token:>6}  {'learn' if mask else '  ·  '}  {_visible(piece)}" for index, (token, mask, piece) in
                enumerate(zip(example.tokens, example.mask, pieces, strict=True))]
        return "\n".join([*rows, count])
    text = _coloured(tokenizer, example, pieces) if colour else _plain(example, pieces)
    legend = f"{LEARNED}learned{OFF}  {CONTROL}control token{OFF}" if colour else "⟦learned⟧  │ border of tokens"
    return f"{text}\n\n{count}    {legend}"


def _visible(piece: str) -> str:
    """A token on one line: line breaks and tabs as their escapes."""
    return piece.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def _coloured(tokenizer: Tokenizer, example: Example, pieces: list[str]) -> str:
    parts = []
    for index, (token, mask, piece) in enumerate(zip(example.tokens, example.mask, pieces, strict=True)):
        code = LEARNED if mask else CONTROL if token in tokenizer.special_ids else SHADES[index % 2]
        parts.append(f"{code}{piece}{OFF}")
    return "".join(parts)


def _plain(example: Example, pieces: list[str]) -> str:
    text, inside = "", False
    for mask, piece in zip(example.mask, pieces, strict=True):
        text += "⟦" if mask and not inside else "⟧" if inside and not mask else "│" if text else ""
        text, inside = text + piece, mask
    return text + ("⟧" if inside else "")
