"""The instructions given to the model: those of arXiv 2402.13669 and its authors' code verbatim, and ours to compare.

A template turns a record into messages; a chat format (chat.py) then turns messages into the text of a particular
model. `using`, `refer` and `alpaca` are one user text each, so that a chat model gets them in the format that it
knows; with the chat format "raw" they are the paper's own rendering.

Ours vary how the reference is used, between copying it and not showing it (`plain` as the template of rewriting):
`copy`, `paraphrase`, `solve_then_check` (the reference last), `using_prefix` (the answer's beginning is forced), and
`using_shuffled`, a negative control: the reference shown is another record's. benchmarks/studies/3-templates.toml.

    sdft prompt --task gsm8k --data FOLDER --template gsm8k_distill
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdft.errors import SdftError, nearest

if TYPE_CHECKING:
    from sdft.data.records import Record

Message = dict[str, str]     # {"role": "system" | "user" | "assistant", "content": …}


@dataclass(frozen=True)
class Template:
    """A prompt for one record: {instruction} is its x, {reference} its y (only in templates that rewrite)."""

    name: str
    user: str
    system: str | None = None
    prefix: str = ""         # the assistant's turn is made to begin so; no part of what is stored or trained
    shuffled: bool = False   # {reference} is to be another record's

    @property
    def needs_reference(self) -> bool:
        """Whether the prompt shows the reference answer."""
        return "{reference}" in self.user

    def messages(self, record: Record, reference: str | None = None) -> list[Message]:
        """The record's conversation up to the user's last turn, which carries the template.

        `reference` is needed by templates that show it. The template's system text goes before the record's own.
        """
        if self.needs_reference and reference is None:
            raise SdftError(f"record {record.id}: the template {self.name!r} shows the reference answer, and none was "
                            "given; take another template or give each record an answer")
        system = "\n\n".join(text for text in (self.system, record.system) if text)
        messages = [{"role": "system", "content": system}] if system else []
        for user, assistant in record.history:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        # str.replace, not str.format: records hold braces of their own. The reference last: it is not searched again.
        before, mark, after = self.user.partition("{reference}")
        user = before.replace("{instruction}", record.instruction)
        if mark:
            user += reference + after.replace("{instruction}", record.instruction)
        return [*messages, {"role": "user", "content": user}]


_INSTRUCTION = "\n\n### Instruction:\n{instruction}"
_REFERENCE = "\n\n### Reference Answer:\n{reference}"
_RESPONSE = "\n\n### Response:\n"
_BOTH = "Below are an instruction that describes a task along with a reference answer. "
_USING = (_BOTH + "Using the reference answer as a guide, write your own response." + _INSTRUCTION + _REFERENCE
          + _RESPONSE)
_STEPS = "Great! Let's think step by step. "
_MATH = "You are an expert in math. Below is a math question. Write a response that appropriately answers the question."

TEMPLATES = {template.name: template for template in (
    Template("plain", "{instruction}"),
    Template("alpaca", "Below is an instruction that describes a task. Write a response that appropriately completes "
             "the request." + _INSTRUCTION + _RESPONSE),
    Template("using", _USING),
    Template("refer", _BOTH + "Refer to the reference answer and write your own response."
             + _INSTRUCTION + _REFERENCE + _RESPONSE),
    Template("gsm8k", "{instruction}", system=_MATH),
    Template("gsm8k_distill", "{instruction}\n\n{reference}",
             system="You are an expert in math. Below are a math question and its reference answer. Refer to the "
             "reference answer and write a response that appropriately answers the question.",
             prefix=_STEPS),
    Template("gsm8k_infer", "{instruction}",
             system=_MATH + " Your final answer should be an integer at the end of your response, formatted as: "
             "The answer is {answer}."),
    Template("copy", _BOTH + "Write the reference answer as your response, word for word."
             + _INSTRUCTION + _REFERENCE + _RESPONSE),
    Template("paraphrase", _BOTH + "Say what the reference answer says in your own words."
             + _INSTRUCTION + _REFERENCE + _RESPONSE),
    Template("solve_then_check", "Below is an instruction that describes a task." + _INSTRUCTION + "\n\nFirst solve "
             "the task by yourself. Then check your solution against the reference answer below, and write a response that "
             "appropriately completes the request." + _REFERENCE + _RESPONSE),
    Template("using_prefix", _USING, prefix=_STEPS),
    Template("using_shuffled", _USING, shuffled=True),
)}


def get_template(name: str) -> Template:
    """The template of this name (SdftError with the nearest known one)."""
    if name not in TEMPLATES:
        raise SdftError(f"template: expected one of {', '.join(TEMPLATES)}, got {name!r}{nearest(name, TEMPLATES)}")
    return TEMPLATES[name]
