"""Rewrite, step 1 of the method: the seed model sees question and reference answer, and writes an answer of its own.

    ỹ ~ f_θ(y | c_distill, x, y)              arXiv 2402.13669, section 3

f_θ is the seed model, x the instruction, y the reference answer, c_distill a template that shows both ("Using the
reference answer as a guide, write your own response"). What comes out says what y says in the words that the seed would
use, so that learning it moves the seed's distribution less. Of a conversation the last turn is rewritten; the earlier
turns are its history and stay as they are.

    sdft distill --task passages --out runs/mine
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sdft.data.chat import encode_prompt
from sdft.data.records import Record
from sdft.data.templates import Template, get_template
from sdft.distill.resume import fitting, resume
from sdft.errors import SdftError
from sdft.generation import Request, Sampling, stream
from sdft.model.io.fingerprint import fingerprint
from sdft.model.llama import Llama
from sdft.progress import progress
from sdft.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rewrite:
    """What the seed wrote for one record. The text does not hold the template's forced prefix."""

    id: str
    text: str
    tokens: list[int]          # without the stop token
    finish: str                # "stop": the model ended it; "length": cut at the token limit
    seed: int                  # of the sampling


def rewrite(model: Llama, tokenizer: Tokenizer, records: Sequence[Record], template: str | Template = "using",
            sampling: Sampling = Sampling(), batch_size: int = 32, chat: str | None = None,
            journal: Path | None = None) -> list[Rewrite]:
    """Let `model` rewrite the answers of `records`; return the rewrites in the records' order.

    template: one of sdft/data/templates.py, or its name. chat: the chat format; the tokenizer's own by default.
    journal: a file to which each rewrite is appended as soon as it is finished (id, text, tokens, finish, seed, and in
    `prompt` a hash of the prompt's tokens). Interrupted runs resume after its last line; without a journal nothing is
    written. A record whose prompt fills the model's context has no rewrite; its id is reported on stderr.

    Raises SdftError when the journal was made with another model, template, chat format or sampling, or from another
    record of the same id, and says which.
    """
    template = get_template(template) if isinstance(template, str) else template
    requests = distill_requests(tokenizer, records, template, chat)
    return write_answers(model, tokenizer, requests, sampling, journal,
                         {"template": asdict(template), "chat": chat or tokenizer.chat}, batch_size)


def write_answers(model: Llama, tokenizer: Tokenizer, requests: Sequence[Request], sampling: Sampling,
                  journal: Path | None, made_with: Mapping[str, Any], batch_size: int = 32,
                  what: str = "rewrite") -> list[Rewrite]:
    """Let `model` answer `requests`, as `rewrite` does; `made_with` says how their prompts were made."""
    made_with = {"model": fingerprint(model), **made_with, "sampling": asdict(sampling)}
    requests = fitting(requests, model.config.context_length, what)
    lines_file, lines = resume(journal, made_with)
    prompts = {request.id: digest(request.tokens) for request in requests}
    for request in requests:
        if prompts[request.id] != lines.get(request.id, {}).get("prompt", prompts[request.id]):
            raise SdftError(f"{journal}: record {request.id} was another one when it was rewritten: use the old data "
                            "to go on, or another folder to start anew")
    waiting = [request for request in requests if request.id not in lines]
    with lines_file, progress(total=len(requests), desc=what, unit="record") as bar:
        bar.update(len(requests) - len(waiting))
        for output in stream(model, tokenizer, waiting, sampling, batch_size):
            line = {**asdict(output), "seed": sampling.seed, "prompt": prompts[output.id]}
            lines_file.append(line)
            lines[output.id] = line
            bar.update()
    return [_rewrite(lines[request.id]) for request in requests]


def distill_requests(tokenizer: Tokenizer, records: Sequence[Record], template: Template,
                     chat: str | None) -> list[Request]:
    """The distillation prompt of every record; where the template is shuffled, with another one's answer."""
    shown = shuffle_references(records) if template.shuffled else records
    return [Request(record.id, distill_prompt(tokenizer, record, template, chat)) for record in shown]


def distill_prompt(tokenizer: Tokenizer, record: Record, template: Template, chat: str | None = None) -> list[int]:
    """c_distill(x, y) as token ids; it ends where the seed begins to write, after the template's forced prefix."""
    return encode_prompt(tokenizer, template.messages(record, record.response), template.prefix, chat)


def shuffle_references(records: Sequence[Record]) -> list[Record]:
    """Every record with the answer of another one, and with a different answer where there is any.

    Records are ranked by a hash of their id, so that it does not depend on their order; each takes the answer of the
    next rank that differs from its own, and the last ranks go on with the first.
    """
    ranked = sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).hexdigest())
    answers = [record.response for record in ranked] * 2
    other = {record.id: next((answer for answer in answers[place + 1 : place + len(ranked)]
                              if answer != record.response), record.response) for place, record in enumerate(ranked)}
    return [replace(record, response=other[record.id]) for record in records]


def digest(tokens: Sequence[int]) -> str:
    """16 hex digits that tell one list of token ids from another."""
    return hashlib.sha256(repr(list(tokens)).encode()).hexdigest()[:16]


def _rewrite(line: dict) -> Rewrite:
    return Rewrite(line["id"], line["text"], line["tokens"], line["finish"], line["seed"])
