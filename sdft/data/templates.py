"""The prompts of the method: those of arXiv 2402.13669 and its authors' code verbatim, and our own for comparison.

A template turns a record into messages; a chat format (chat.py) then turns messages into the text of one model.
`using`, `refer` and `alpaca` are one user text each, so that a chat model gets them in the format that it knows; with
the chat format "raw" they are the paper's own rendering.

Our templates vary the use of the reference, between copying it and not showing it (`plain` for rewriting): `copy`,
`paraphrase`, `solve_then_check` (the reference comes last), `using_prefix` (the beginning of the answer is forced), and
`using_shuffled`, a negative control that shows the reference of another record (benchmarks/studies/3-templates.toml).

    sdft prompt --task gsm8k --data FOLDER --template gsm8k_distill
"""
from __future__ import annotations

from dataclasses import dataclass

from sdft.data.records import Record
from sdft.errors import SdftError, nearest

Message = dict[str, str]     # {"role": "system" | "user" | "assistant", "content": …}


@dataclass(frozen=True)
class Template:
    """A prompt for one record: {instruction} is its x; {reference}, in templates that rewrite, its y."""

    name: str
    user: str
    system: str | None = None
    prefix: str = ""         # the forced beginning of the assistant's turn; neither stored nor trained on
    shuffled: bool = False   # {reference} is the answer of another record

    @property
    def needs_reference(self) -> bool:
        """Whether the prompt shows the reference answer."""
        return "{reference}" in self.user

    def messages(self, record: Record, reference: str | None = None) -> list[Message]:
        """The record's conversation up to the user's last turn, which is written with the template.

        The template's system text comes before the record's own. Raises SdftError when the template shows the reference
        and `reference` is None.
        """
        if self.needs_reference and reference is None:
            raise SdftError(f"record {record.id}: the template {self.name!r} shows the reference answer, but there is "
                            "none; use another template or give each record an answer")
        system = "\n\n".join(text for text in (self.system, record.system) if text)
        messages = [{"role": "system", "content": system}] if system else []
        for user, assistant in record.history:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        # str.replace, not str.format: records contain braces. The reference comes last, so that it is not searched.
        before, _, after = self.user.partition("{reference}")
        user = before.replace("{instruction}", record.instruction)
        if reference is not None and self.needs_reference:
            user += reference + after.replace("{instruction}", record.instruction)
        return [*messages, {"role": "user", "content": user}]


_INSTRUCTION = "\n\n### Instruction:\n{instruction}"
_REFERENCE = "\n\n### Reference Answer:\n{reference}"
_RESPONSE = "\n\n### Response:\n"
_PARTS = _INSTRUCTION + _REFERENCE + _RESPONSE
_BOTH = "Below are an instruction that describes a task along with a reference answer. "
_USING = _BOTH + "Using the reference answer as a guide, write your own response." + _PARTS
_STEPS = "Great! Let's think step by step. "
_MATH = "You are an expert in math. Below is a math question. Write a response that appropriately answers the question."

TEMPLATES = {template.name: template for template in (
    Template("plain", "{instruction}"),
    Template("alpaca", "Below is an instruction that describes a task. Write a response that appropriately completes "
             "the request." + _INSTRUCTION + _RESPONSE),
    Template("using", _USING),
    Template("refer", _BOTH + "Refer to the reference answer and write your own response." + _PARTS),
    Template("gsm8k", "{instruction}", system=_MATH),
    Template("gsm8k_distill", "{instruction}\n\n{reference}",
             system="You are an expert in math. Below are a math question and its reference answer. Refer to the "
             "reference answer and write a response that appropriately answers the question.", prefix=_STEPS),
    Template("gsm8k_infer", "{instruction}", system=_MATH + " Your final answer should be an integer at the end of "
             "your response, formatted as: The answer is {answer}."),
    Template("copy", _BOTH + "Write the reference answer as your response, word for word." + _PARTS),
    Template("paraphrase", _BOTH + "Say what the reference answer says in your own words." + _PARTS),
    Template("solve_then_check", "Below is an instruction that describes a task." + _INSTRUCTION + "\n\nFirst solve "
             "the task by yourself. Then check your solution against the reference answer below, and write a response "
             "that appropriately completes the request." + _REFERENCE + _RESPONSE),
    Template("using_prefix", _USING, prefix=_STEPS),
    Template("using_shuffled", _USING, shuffled=True),
)}


def get_template(name: str) -> Template:
    """The template of this name (SdftError with the nearest known one)."""
    if name not in TEMPLATES:
        raise SdftError(f"template: expected one of {', '.join(TEMPLATES)}, got {name!r}{nearest(name, TEMPLATES)}")
    return TEMPLATES[name]
