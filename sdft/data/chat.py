"""Chat formats: from messages to the token ids of a particular model, and which of them are to be learned.

    messages ─ChatFormat.render→ pieces of text ─tokenizer→ token ids, and a mask of those that the loss counts

    <|im_start|>user⏎Why?<|im_end|>⏎<|im_start|>assistant⏎Because.<|im_end|>⏎
    ··········································prompt ····■■■■■■■■■■■■■■■■■■   ■ learned: the answer and its end

Every format renders what transformers renders from the Jinja template that the model was published with. What a user
writes can never become a control token: only the format's own marks are looked up among the special tokens.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdft.data.templates import Message
from sdft.errors import SdftError, nearest
from sdft.tokenizers.tokenizer import Tokenizer

BOS, EOS = "{bos}", "{eos}"
_MARK = re.compile(r"(<\|\w+\|>|\[/?INST\]|\{bos\}|\{eos\})")


@dataclass(frozen=True)
class Piece:
    """A part of a rendered conversation. A special piece is one control token ({bos}, {eos} or a mark's own text)."""

    text: str
    special: bool = False
    trained: bool = False


_BOS_PIECE = Piece(BOS, special=True)


@dataclass(frozen=True)
class Example:
    """A conversation to learn from: token ids, and for each whether it is a target of the loss."""

    id: str
    tokens: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class ChatFormat:
    """How one family of models writes a conversation. Marks (<|im_end|>, [INST], {bos}, {eos}) are control tokens where
    the tokenizer has such a token, and plain text where it has not."""

    name: str
    user: tuple[str, str]                # before and after the user's text
    assistant: str                       # before the assistant's text: where generation begins
    stop: str                            # ends the assistant's text, and is learned
    lead: str = ""                       # begins the assistant's text, and is learned
    after: str = ""                      # after stop, not learned
    system: tuple[str, str] | None = None   # before and after the system text; None: it is part of a user turn
    system_in_user: str = ""             # how: with {system} and {user}
    system_in_last: bool = False         # of the last user turn; else of the first
    default_system: str | None = None    # where the conversation has none
    system_head: str = ""                # before any system text
    start: str = ""
    final_assistant: str | None = None   # in place of `assistant` after the last user turn
    strip: tuple[str, ...] = ()          # the roles whose texts are stripped of white space at both ends

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> list[Piece]:
        """Render a conversation; with `generation_prompt` it ends where the assistant begins to write.

        An assistant's turn without text teaches nothing: neither it nor its end is learned. Raises SdftError for roles
        that do not alternate (system?, user, assistant, user, …).
        """
        system, turns = self._turns(messages)
        pieces = list(_marks(self.start))
        if self.system and system is not None:
            pieces += [*_marks(self.system[0] + self.system_head), Piece(self._text("system", system)),
                       *_marks(self.system[1])]
        with_system = None if self.system or system is None else (len(turns) - 1) // 2 * 2 if self.system_in_last else 0
        for index, message in enumerate(turns):
            text = message["content"]
            if index == with_system:
                before, between, after = re.split(r"\{system\}|\{user\}", self.system_in_user)
                text = before + system + between + text + after
            text = self._text(message["role"], text)
            if message["role"] == "user":
                pieces += [*_marks(self.user[0]), Piece(text), *_marks(self.user[1])]
            else:
                learned = bool(text)
                pieces += [*_marks(self._opening(index == len(turns) - 1)), Piece(self.lead + text, trained=learned),
                           *_marks(self.stop, trained=learned), *_marks(self.after)]
        if generation_prompt:
            pieces += _marks(self._opening(True))
        return [piece for piece in pieces if piece.text]

    def _opening(self, final: bool) -> str:
        return self.final_assistant if final and self.final_assistant is not None else self.assistant

    def _text(self, role: str, text: str) -> str:
        return text.strip() if role in self.strip else text

    def _turns(self, messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
        system, turns = self.default_system, messages
        if messages and messages[0]["role"] == "system":
            system, turns = messages[0]["content"], messages[1:]
        elif system is None and self.system_head:
            system = ""
        roles = [message["role"] for message in turns]
        if not turns or roles != [("user", "assistant")[index % 2] for index in range(len(turns))]:
            raise SdftError("a conversation is expected to go system (or not), user, assistant, user, …; got "
                            f"{', '.join(message['role'] for message in messages) or 'no message'}")
        return system, turns


def _marks(text: str, trained: bool = False) -> Iterator[Piece]:
    """Split a format's own text at its marks."""
    for index, part in enumerate(_MARK.split(text)):
        if part:
            yield Piece(part, special=index % 2 == 1, trained=trained)


def _chatml(name: str, default_system: str | None = None, final_assistant: str | None = None) -> ChatFormat:
    return ChatFormat(name, ("<|im_start|>user\n", "<|im_end|>\n"), "<|im_start|>assistant\n", "<|im_end|>", after="\n",
                      system=("<|im_start|>system\n", "<|im_end|>\n"), default_system=default_system,
                      final_assistant=final_assistant)


def _llama3(name: str, system_head: str = "") -> ChatFormat:
    def head(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    return ChatFormat(name, (head("user"), "<|eot_id|>"), head("assistant"), "<|eot_id|>", start=BOS,
                      system=(head("system"), "<|eot_id|>"), system_head=system_head,
                      strip=("system", "user", "assistant"))


def _zephyr(name: str) -> ChatFormat:
    return ChatFormat(name, ("<|user|>\n", EOS + "\n"), "<|assistant|>\n", EOS, after="\n",
                      system=("<|system|>\n", EOS + "\n"))


CHAT_FORMATS = {form.name: form for form in (
    ChatFormat("llama2", (BOS + "[INST] ", " [/INST]"), "", " " + EOS, lead=" ", strip=("user", "assistant"),
               system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n{user}"),
    _llama3("llama3"),
    # Llama 3.2 writes the day's date here; a date that stands still keeps outputs the same tomorrow.
    _llama3("llama3.1", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"),
    _chatml("chatml"),
    _chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    _chatml("qwen2", "You are a helpful assistant."),
    _chatml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    _chatml("qwen3", final_assistant="<|im_start|>assistant\n<think>\n\n</think>\n\n"),       # without thinking
    ChatFormat("mistral", (" [INST] ", " [/INST]"), "", EOS, lead=" ", start=BOS, system_in_user="{system}\n\n{user}"),
    # The published template drops the system text when the last turn is the assistant's; here a prompt stays the
    # beginning of its example.
    ChatFormat("mistral-v0.3", ("[INST] ", "[/INST]"), "", EOS, lead=" ", start=BOS, strip=("assistant",),
               system_in_user="{system}\n\n{user}", system_in_last=True),
    _zephyr("zephyr"),
    _zephyr("tinyllama"),
    ChatFormat("alpaca", ("\n\n### Instruction:\n", ""), "\n\n### Response:\n", EOS, system=("", ""),
               default_system="Below is an instruction that describes a task. Write a response that appropriately "
               "completes the request."),
    ChatFormat("raw", ("", ""), "", EOS, system=("", "\n\n")),
)}


def get_chat_format(name: str) -> ChatFormat:
    """The chat format of this name (SdftError with the nearest known one)."""
    if name not in CHAT_FORMATS:
        raise SdftError(f"chat format: expected one of {', '.join(CHAT_FORMATS)}, got {name!r}"
                        f"{nearest(name, CHAT_FORMATS)}")
    return CHAT_FORMATS[name]


def _format_of(tokenizer: Tokenizer, chat: str | None) -> ChatFormat:
    """The format `chat`, or the model's own; refused when the tokenizer lacks the token that ends an answer."""
    form = get_chat_format(chat or tokenizer.chat)
    missing = [piece.text for piece in _marks(form.stop) if piece.special and _control(tokenizer, piece) is None]
    if missing:
        raise SdftError(f"the chat format {form.name!r} ends an answer with {missing[0]}, which this model's tokenizer "
                        "does not have, so no answer would ever end; choose another with --chat (alpaca ends with any "
                        "model's EOS)")
    return form


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], prefix: str = "",
                  chat: str | None = None) -> list[int]:
    """Token ids of a conversation up to where the assistant begins to write, after `prefix` if there is one.

    White space at the end of `prefix` is left to the model: a token often begins with it. `chat` names the format;
    None: the model's own. Raises SdftError for an unknown format, one whose end of an answer the tokenizer lacks, and
    roles that do not alternate.
    """
    form = _format_of(tokenizer, chat)
    pieces = form.render(messages, generation_prompt=True)
    if prefix:
        pieces.append(Piece(form.lead + prefix.rstrip()))
    return [token for tokens, _ in _encode(tokenizer, pieces) for token in tokens]


def encode_example(tokenizer: Tokenizer, messages: Sequence[Message], id: str = "", chat: str | None = None) -> Example:
    """Token ids and loss mask of a conversation that ends with the assistant's turn.

    Every assistant turn is learned, with the token that ends it. The ids begin with those of `encode_prompt`, so
    training sees exactly what generation sees. What stands behind the last target is left off.
    """
    tokens, mask = [], []
    for ids, trained in _encode(tokenizer, _format_of(tokenizer, chat).render(messages)):
        tokens += ids
        mask += [trained] * len(ids)
    end = len(mask) - mask[::-1].index(True) if True in mask else len(mask)
    return Example(id, tokens[:end], mask[:end])


def _encode(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> Iterator[tuple[list[int], bool]]:
    """Yield (ids, trained) piece by piece, with exactly one BOS in front where the model expects one.

    Text is encoded together with the text before it, back to the last control token, as long as that leaves the earlier
    ids alone: a word is then split as it is in running text, and still no token straddles prompt and answer.
    """
    before, ids_before = "", []                                # the running text and its ids
    if tokenizer.add_bos and not (pieces and pieces[0] == _BOS_PIECE):
        yield [tokenizer.bos_id], False
    for piece, trained in _runs(tokenizer, pieces):
        if isinstance(piece, int):
            yield [piece], trained
            before, ids_before = "", []
            continue
        ids = tokenizer.encode(before + piece)
        if ids[: len(ids_before)] == ids_before:
            yield ids[len(ids_before) :], trained
            before, ids_before = before + piece, ids
        else:
            ids = tokenizer.encode(piece)
            yield ids, trained
            before, ids_before = piece, ids


def _runs(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> Iterator[tuple[str | int, bool]]:
    """Control tokens as ids; between them text, joined as far as it is all trained or all not."""
    text, trained = "", False
    for piece in pieces:
        if piece == _BOS_PIECE and tokenizer.bos_id is None:
            continue
        id = _control(tokenizer, piece) if piece.special else None
        if text and (id is not None or piece.trained != trained):
            yield text, trained
            text = ""
        trained = piece.trained
        if id is None:
            text += piece.text
        else:
            yield id, trained
    if text:
        yield text, trained


def _control(tokenizer: Tokenizer, piece: Piece) -> int | None:
    """The id of a control token; None where this tokenizer writes the mark as plain text."""
    if piece.text == BOS:
        return tokenizer.bos_id
    if piece.text == EOS:
        return tokenizer.eos_id
    return tokenizer.special.get(piece.text)


def common_prefix(documents: Sequence[list[int]]) -> int:
    """How many tokens all of at least one document begin with."""
    least, greatest = min(documents), max(documents)                # what these two share, all between them share
    return next((place for place, (a, b) in enumerate(zip(least, greatest)) if a != b), min(len(least), len(greatest)))
