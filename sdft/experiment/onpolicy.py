"""Inputs of on-policy self-distillation: the student's own answers at every step, and a teacher that sees references.

    record ─train template→ x ─sample from the current model─→ y                targets of this step
       └──distill template, with the reference answer─→ c(x, y*)                the teacher's prompt
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from sdft.data.chat import Example
from sdft.distill.resume import fitting
from sdft.distill.rewriting import distill_requests
from sdft.errors import SdftError
from sdft.experiment.base_text import answered, end_of_answer
from sdft.experiment.context import Context
from sdft.generation import Request, Sampling, stream
from sdft.model.llama import Llama
from sdft.objectives import ObjectiveInputs


def demonstrations(context: Context) -> list[Example]:
    """The teacher's prompts, without the template's forced prefix: the student's answer follows them directly. Records
    whose prompt fills the context are skipped and reported. Raises SdftError where none is left."""
    template = replace(context.distill_template, prefix="")
    requests = distill_requests(context.tokenizer, context.task.train, template, context.chat)
    kept = fitting(requests, context.base.config.context_length, "sdft-onpolicy")
    if not kept:
        raise SdftError("sdft-onpolicy: no record with its reference answer fits the model's context; use shorter "
                        "records")
    return [Example(request.id, request.tokens, [False] * len(request.tokens)) for request in kept]


def student_samples(context: Context, shown: Sequence[Example]) -> ObjectiveInputs:
    """Draw the answers of a step at temperature 1 from the current model, each seeded by the step and its record. An
    answer has at most `rewrite_tokens` tokens, and fewer where the teacher's prompt leaves less room in the context."""
    tokenizer, batch_size = context.tokenizer, context.batch_size
    sampling = Sampling(max_new_tokens=context.sampling.max_new_tokens, temperature=1.0, seed=context.settings.seed)
    end, length = end_of_answer(tokenizer, context.chat), context.base.config.context_length
    room = {prompt.id: min(sampling.max_new_tokens, length - len(prompt.tokens)) for prompt in shown}

    def sample(model: Llama, examples: Sequence[Example], step: int) -> list[Example]:
        # The prompt: all tokens before the last answer.
        prompts = {example.id: example.tokens[: len(example.mask) - example.mask[::-1].index(False)]
                   for example in examples}
        requests = [Request(f"{step} {id}", prompt, room[id]) for id, prompt in prompts.items()]
        outputs = {output.id: output for output in stream(model, tokenizer, requests, sampling, batch_size)}
        answers = [(id, prompt, outputs[f"{step} {id}"]) for id, prompt in prompts.items()]
        return [answered(id, prompt, output.tokens, end if output.finish == "stop" else None)
                for id, prompt, output in answers]

    return ObjectiveInputs(shown=shown, sample=sample, sampling=json.dumps(asdict(sampling), sort_keys=True))
