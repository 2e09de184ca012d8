"""Rewrite, step 1 of the method: the base model reads instruction and reference answer, and writes its own answer.

    ỹ ~ f_θ(· | c_distill, x, y)              arXiv 2402.13669, section 3

f_θ is the base model ("the seed LM" of the paper), x the instruction, y the reference answer, c_distill a template that
shows both ("Using the reference answer as a guide, write your own response"). The rewrite ỹ has the content of y in
words that the base model would use, so training on it changes the model's distribution less. Of a conversation only the
last turn is rewritten.

    sdft distill --task passages --out runs/mine
"""
from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sdft.data.chat import encode_prompt
from sdft.data.records import Record
from sdft.data.templates import Template, get_template
from sdft.distill.resume import fitting, resume
from sdft.errors import SdftError
from sdft.generation import Request, Sampling, stream
from sdft.model.io.checkpoints import fingerprint
from sdft.model.llama import Llama
from sdft.progress import progress
from sdft.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rewrite:
    """The answer that the base model wrote for one record, without the template's forced prefix."""

    id: str
    text: str
    tokens: list[int]          # without the stop token
    finish: str                # "stop": the model ended it; "length": cut at the token limit
    seed: int                  # of the sampling


def rewrite(model: Llama, tokenizer: Tokenizer, records: Sequence[Record], template: str | Template = "using",
            sampling: Sampling = Sampling(), batch_size: int = 32, chat: str | None = None,
            journal: Path | None = None) -> list[Rewrite]:
    """Let `model` rewrite the answers of `records`; return the rewrites in the records' order.

    chat: the chat format; None: the model's own. journal: a file of `RewriteLine`s; each rewrite is appended as soon as
    it is finished, and an interrupted run resumes. A record whose prompt fills the model's context has no rewrite; its
    id is reported on stderr. Raises SdftError when the journal was made with another model, template, chat format or
    sampling, or from another record of the same id.
    """
    template = get_template(template) if isinstance(template, str) else template
    return write_answers(model, tokenizer, distill_requests(tokenizer, records, template, chat), sampling, journal,
                         {"template": asdict(template), "chat": chat or tokenizer.chat}, batch_size)


def write_answers(model: Llama, tokenizer: Tokenizer, requests: Sequence[Request], sampling: Sampling,
                  journal: Path | None, made_with: Mapping[str, Any], batch_size: int = 32,
                  what: str = "rewrite") -> list[Rewrite]:
    """Let `model` answer `requests`, as `rewrite` does; `made_with` says how their prompts were made."""
    made_with = {"model": fingerprint(model), **made_with, "sampling": asdict(sampling)}
    requests = fitting(requests, model.config.context_length, what)
    journal_file, lines = resume(journal, made_with)
    prompts = {request.id: hashlib.sha256(repr(list(request.tokens)).encode()).hexdigest()[:16] for request in requests}
    for request in requests:
        if prompts[request.id] != lines.get(request.id, {}).get("prompt", prompts[request.id]):
            raise SdftError(f"{journal}: record {request.id} had another prompt when it was rewritten; use the old "
                            "data to resume, or another folder to start again")
    waiting = [request for request in requests if request.id not in lines]
    with journal_file, progress(total=len(requests), desc=what, unit="record") as bar:
        bar.update(len(requests) - len(waiting))
        for output in stream(model, tokenizer, waiting, sampling, batch_size):
            lines[output.id] = {**asdict(output), "seed": sampling.seed, "prompt": prompts[output.id]}
            journal_file.append(lines[output.id])
            bar.update()
    return [Rewrite(*(lines[request.id][field.name] for field in fields(Rewrite))) for request in requests]


def distill_requests(tokenizer: Tokenizer, records: Sequence[Record], template: Template,
                     chat: str | None) -> list[Request]:
    """The distillation prompt of every record; a shuffled template shows the answer of another record."""
    shown = shuffle_references(records) if template.shuffled else records
    return [Request(record.id, distill_prompt(tokenizer, record, template, chat)) for record in shown]


def distill_prompt(tokenizer: Tokenizer, record: Record, template: Template, chat: str | None = None) -> list[int]:
    """The prompt c_distill(x, y) as token ids, with the template's forced prefix; the model continues after it."""
    return encode_prompt(tokenizer, template.messages(record, record.response), template.prefix, chat)


def shuffle_references(records: Sequence[Record]) -> list[Record]:
    """Give every record the answer of another record, a different answer if there is one.

    Records are ranked by a hash of their id, so the result does not depend on their order. Each takes the next answer
    in rank order that differs from its own; the first rank follows the last.
    """
    ranked = sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).hexdigest())
    answers = [record.response for record in ranked] * 2
    other = {record.id: next((answer for answer in answers[rank + 1 : rank + len(ranked)]
                              if answer != record.response), record.response) for rank, record in enumerate(ranked)}
    return [replace(record, response=other[record.id]) for record in records]
