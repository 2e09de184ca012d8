"""Chat formats: from messages to the token ids of one model, and the mask of the targets.

    messages ─ChatFormat.render→ pieces of text ─tokenizer→ token ids, and a mask of those that the loss counts

    <|im_start|>user⏎Why?<|im_end|>⏎<|im_start|>assistant⏎Because.<|im_end|>⏎
    ··········································prompt ····■■■■■■■■■■■■■■■■■■   ■ targets: the answer and its end

Every format renders the same text as transformers from the Jinja template that the model was published with. Text of a
user never becomes a control token: only the format's own marks are looked up among the special tokens.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sdft.data.records import Record
from sdft.data.templates import Message, Template
from sdft.errors import SdftError, nearest
from sdft.tokenizers.tokenizer import Tokenizer

BOS, EOS = "{bos}", "{eos}"
_MARK = re.compile(r"(<\|\w+\|>|\[/?INST\]|\{bos\}|\{eos\})")


@dataclass(frozen=True)
class Piece:
    """A part of a rendered conversation. A special piece is one control token ({bos}, {eos} or a mark's own text)."""

    text: str
    special: bool = False
    target: bool = False           # counts in the loss


_BOS_PIECE = Piece(BOS, special=True)


@dataclass(frozen=True)
class Example:
    """A conversation to train on: token ids, and for each whether it is a target of the loss."""

    id: str
    tokens: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class ChatFormat:
    """How one family of models writes a conversation.

    Marks (<|im_end|>, [INST], {bos}, {eos}) are control tokens if the tokenizer has such a token, else plain text.
    """

    name: str
    user: tuple[str, str]                # before and after the user's text
    assistant: str                       # before the assistant's text: where generation begins
    stop: str                            # ends the assistant's text; a target
    lead: str = ""                       # begins the assistant's text; a target
    after: str = ""                      # after `stop`; no target
    system: tuple[str, str] | None = None   # before and after the system text; None: it is part of a user turn
    system_in_user: str = ""             # that user turn, with {system} and {user}
    system_in_last: bool = False         # whether it is the last user turn; else the first
    default_system: str | None = None    # for conversations without a system text
    system_head: str = ""                # before any system text
    start: str = ""
    final_assistant: str | None = None   # replaces `assistant` after the last user turn
    strip: tuple[str, ...] = ()          # roles whose texts lose white space at both ends
    before_prefix: str = ""              # before the forced beginning of an answer
    whole: str = ""                      # a user's text that ends so is a whole prompt: it gets no marks

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> list[Piece]:
        """Render a conversation; with `generation_prompt` it ends where the assistant begins to write.

        An assistant's turn without text has no targets, not even its end. Raises SdftError for roles that do not
        alternate (system?, user, assistant, user, …).
        """
        system, turns = self._turns(messages)
        whole = [bool(self.whole) and turn["content"].endswith(self.whole) for turn in turns]
        if whole[0] and system == self.default_system:
            system = None
        last = self.assistant if self.final_assistant is None else self.final_assistant
        pieces = list(_marks(self.start))
        if self.system and system is not None:
            pieces += [*_marks(self.system[0] + self.system_head), Piece(self._text("system", system)),
                       *_marks(self.system[1])]
        carrier = (len(turns) - 1) // 2 * 2 if self.system_in_last else 0        # the turn with the system text
        for index, message in enumerate(turns):
            text = message["content"]
            if not self.system and system is not None and index == carrier:
                before, between, after = re.split(r"\{system\}|\{user\}", self.system_in_user)
                text = before + system + between + text + after
            text = self._text(message["role"], text)
            if message["role"] == "user":
                pieces += [Piece(text)] if whole[index] else [*_marks(self.user[0]), Piece(text), *_marks(self.user[1])]
            else:
                target = bool(text)
                mark = "" if whole[index - 1] else last if index == len(turns) - 1 else self.assistant
                pieces += [*_marks(mark), Piece(self.lead + text, target=target), *_marks(self.stop, target),
                           *_marks(self.after)]
        if generation_prompt and not whole[-1]:
            pieces += _marks(last)
        return [piece for piece in pieces if piece.text]

    def _text(self, role: str, text: str) -> str:
        return text.strip() if role in self.strip else text

    def _turns(self, messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
        system, turns = self.default_system, messages
        if messages and messages[0]["role"] == "system":
            system, turns = messages[0]["content"], messages[1:]
        roles = [message["role"] for message in turns]
        if not turns or roles != [("user", "assistant")[index % 2] for index in range(len(turns))]:
            raise SdftError("a conversation is expected to go system (or not), user, assistant, user, …; got "
                            f"{', '.join(message['role'] for message in messages) or 'no message'}")
        return system, turns


def _marks(text: str, target: bool = False) -> Iterator[Piece]:
    """Split a format's own text at its marks."""
    for index, part in enumerate(_MARK.split(text)):
        if part:
            yield Piece(part, special=index % 2 == 1, target=target)


def _chatml(name: str, default_system: str | None = None, final_assistant: str | None = None) -> ChatFormat:
    return ChatFormat(name, ("<|im_start|>user\n", "<|im_end|>\n"), "<|im_start|>assistant\n", "<|im_end|>", after="\n",
                      system=("<|im_start|>system\n", "<|im_end|>\n"), default_system=default_system,
                      final_assistant=final_assistant)


def _llama3(name: str, system_head: str = "") -> ChatFormat:
    head = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    return ChatFormat(name, (head("user"), "<|eot_id|>"), head("assistant"), "<|eot_id|>", start=BOS,
                      system=(head("system"), "<|eot_id|>"), system_head=system_head,
                      default_system="" if system_head else None, strip=("system", "user", "assistant"))


CHAT_FORMATS = {form.name: form for form in (
    ChatFormat("llama2", (BOS + "[INST] ", " [/INST]"), "", " " + EOS, lead=" ", strip=("user", "assistant"),
               system_in_user="<<SYS>>\n{system}\n<</SYS>>\n\n{user}"),
    _llama3("llama3"),
    # Llama 3.2 writes the current date here; a constant date keeps outputs the same every day.
    _llama3("llama3.1", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"),
    _chatml("chatml"),
    _chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    _chatml("qwen2", "You are a helpful assistant."),
    _chatml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    _chatml("qwen3", final_assistant="<|im_start|>assistant\n<think>\n\n</think>\n\n"),       # without thinking
    ChatFormat("mistral", (" [INST] ", " [/INST]"), "", EOS, lead=" ", start=BOS, system_in_user="{system}\n\n{user}"),
    # The published template drops the system text when the last turn is the assistant's; here an example always begins
    # with its prompt.
    ChatFormat("mistral-v0.3", ("[INST] ", "[/INST]"), "", EOS, lead=" ", start=BOS, strip=("assistant",),
               system_in_user="{system}\n\n{user}", system_in_last=True),
    *(ChatFormat(name, ("<|user|>\n", EOS + "\n"), "<|assistant|>\n", EOS, after="\n",
                 system=("<|system|>\n", EOS + "\n")) for name in ("zephyr", "tinyllama")),
    ChatFormat("alpaca", ("\n\n### Instruction:\n", ""), "\n\n### Response:\n", EOS, system=("", ""),
               default_system="Below is an instruction that describes a task. Write a response that appropriately "
               "completes the request.", whole="\n\n### Response:\n"),      # as the templates `using`, … end
    # Raw text has no marks: a blank line separates earlier turns and a forced beginning, and nothing a single turn.
    ChatFormat("raw", ("", ""), "\n\n", EOS, after="\n\n", final_assistant="", system=("", "\n\n"),
               before_prefix="\n\n"),
)}


def get_chat_format(name: str) -> ChatFormat:
    """The chat format of this name (SdftError with the nearest known one)."""
    if name not in CHAT_FORMATS:
        raise SdftError(f"chat format: expected one of {', '.join(CHAT_FORMATS)}, got {name!r}"
                        f"{nearest(name, CHAT_FORMATS)}")
    return CHAT_FORMATS[name]


def _format_of(tokenizer: Tokenizer, chat: str | None) -> ChatFormat:
    """The format `chat`, or the model's own (SdftError when the tokenizer lacks the token that ends an answer)."""
    form = get_chat_format(chat or tokenizer.chat)
    missing = [piece.text for piece in _marks(form.stop) if piece.special and _control(tokenizer, piece) is None]
    if missing:
        raise SdftError(f"the chat format {form.name!r} ends an answer with {missing[0]}, which this model's tokenizer "
                        "does not have, so no answer would ever end; choose another with --chat (alpaca ends with any "
                        "model's EOS)")
    return form


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], prefix: str = "",
                  chat: str | None = None) -> list[int]:
    """Token ids of a conversation up to where the assistant begins to write; `prefix` begins its answer.

    White space at the end of `prefix` is left to the model, since a token often begins with it. `chat` names the
    format; None: the model's own. Raises SdftError for an unknown format, one whose end of an answer the tokenizer
    lacks, and roles that do not alternate.
    """
    form = _format_of(tokenizer, chat)
    pieces = form.render(messages, generation_prompt=True)
    if prefix:
        before = "" if pieces and pieces[-1].text.endswith("\n") else form.before_prefix
        pieces.append(Piece(before + form.lead + prefix.rstrip()))
    return [token for tokens, _ in _encode(tokenizer, pieces) for token in tokens]


def encode_example(tokenizer: Tokenizer, messages: Sequence[Message], id: str = "", chat: str | None = None) -> Example:
    """Token ids and loss mask of a conversation that ends with the assistant's turn.

    The targets are every assistant turn with the token that ends it. The ids begin with those of `encode_prompt`, so
    training and generation see the same prompt. Tokens after the last target are cut off.
    """
    tokens: list[int] = []
    mask: list[bool] = []
    for ids, target in _encode(tokenizer, _format_of(tokenizer, chat).render(messages)):
        tokens += ids
        mask += [target] * len(ids)
    end = len(mask) - mask[::-1].index(True) if True in mask else len(mask)
    return Example(id, tokens[:end], mask[:end])


def training_example(tokenizer: Tokenizer, record: Record, template: Template, chat: str | None = None) -> Example:
    """Encode a record as an example whose targets are its response; earlier assistant turns are targets too.

    An answer's white space at both ends is no target.
    """
    messages = [*template.messages(record), {"role": "assistant", "content": record.response}]
    messages = [{**message, "content": message["content"].strip()} if message["role"] == "assistant" else message
                for message in messages]                    # else the line end of a file is learned before the end
    return encode_example(tokenizer, messages, record.id, chat)


def _encode(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> Iterator[tuple[list[int], bool]]:
    """Yield (ids, whether they are targets) piece by piece; one BOS comes first if the model expects one.

    Text is encoded together with the text before it, back to the last control token, if that leaves the earlier ids
    unchanged: words are then split as in running text, and no token spans prompt and answer.
    """
    before = ""                                                 # the text since the last control token
    ids_before: list[int] = []
    if tokenizer.add_bos and tokenizer.bos_id is not None and not (pieces and pieces[0] == _BOS_PIECE):
        yield [tokenizer.bos_id], False
    for piece, target in _runs(tokenizer, pieces):
        if isinstance(piece, int):
            yield [piece], target
            before, ids_before = "", []
            continue
        ids = tokenizer.encode(before + piece)
        if ids[: len(ids_before)] != ids_before:
            before, ids_before, ids = "", [], tokenizer.encode(piece)
        yield ids[len(ids_before) :], target
        before, ids_before = before + piece, ids


def _runs(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> Iterator[tuple[str | int, bool]]:
    """Yield control tokens as ids; join the text between them while it is all targets or all not."""
    text, target = "", False
    for piece in pieces:
        if piece == _BOS_PIECE and tokenizer.bos_id is None:
            continue
        id = _control(tokenizer, piece) if piece.special else None
        if text and (id is not None or piece.target != target):
            yield text, target
            text = ""
        target = piece.target
        if id is None:
            text += piece.text
        else:
            yield id, target
    if text:
        yield text, target


def _control(tokenizer: Tokenizer, piece: Piece) -> int | None:
    """The id of a control token; None if this tokenizer writes the mark as plain text."""
    return {BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}.get(piece.text, tokenizer.special.get(piece.text))


def common_prefix(documents: Sequence[list[int]]) -> int:
    """Length of the longest prefix shared by all documents (at least one)."""
    least, greatest = min(documents), max(documents)                # all others are between them, so share their prefix
    pairs = enumerate(zip(least, greatest, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(least), len(greatest)))
