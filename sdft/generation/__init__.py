"""Generation: batched, greedy or sampled, over a static ragged cache of keys and values.

    from sdft.generation import Request, Sampling, generate, stream
    outputs = generate(model, tokenizer, ["Why is the sky blue?"], max_new_tokens=64)

Reading order: sampling.py, cache.py, engine.py, speculation.py, joined.py, packed.py, gpu.py, graph.py.
"""
from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

from sdft.data.chat import encode_prompt
from sdft.generation.engine import Engine, Output, Report, Request
from sdft.generation.sampling import Sampling

__all__ = ["Output", "Report", "Request", "Sampling", "generate", "stream", "stream_tokens"]


def stream(model, tokenizer, requests: Iterable[Request], sampling: Sampling = Sampling(),
           batch_size: int = 32, speculation: bool = True, report: Report | None = None) -> Iterator[Output]:
    """Yield the Output of every request as it finishes, in any order; at most `batch_size` are under way at once.

    speculation: draft from what was written before, where that pays; the tokens are the same. A `report` is counted up.

    A prompt without a token, or one that fills the model's context, raises SdftError with its id before anything is run.
    A response that reaches the end of the context is finished as "length".
    """
    return Engine(model, tokenizer, list(requests), sampling, batch_size, speculation, report).run()


def generate(model, tokenizer, prompts: Sequence[str | list[dict[str, str]] | list[int]], max_new_tokens: int = 256,
             temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0, seed: int = 0,
             batch_size: int = 32) -> list[Output]:
    """Answer `prompts` and return the Outputs in their order; each one's id is its index.

    A prompt is one user turn (str, rendered in the model's chat format), a list of messages {"role", "content"} that ends
    with the user's, or token ids that are taken as they are.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    requests = [Request(str(index), _encode(tokenizer, prompt)) for index, prompt in enumerate(prompts)]
    outputs = {output.id: output for output in stream(model, tokenizer, requests, sampling, batch_size)}
    return [outputs[request.id] for request in requests]


def stream_tokens(model, tokenizer, tokens: list[int], sampling: Sampling = Sampling()) -> Iterator[int]:
    """Yield the token ids of the answer to one prompt of token ids, each as soon as it is chosen, without the stop token."""
    return Engine(model, tokenizer, [Request("", tokens)], sampling, batch_size=1).run_tokens()


def _encode(tokenizer, prompt: str | list[dict[str, str]] | list[int]) -> list[int]:
    if not isinstance(prompt, str) and (not prompt or isinstance(prompt[0], int)):
        return list(prompt)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return encode_prompt(tokenizer, messages)


class _Callable(ModuleType):
    """Once this package is imported, the name `sdft.generation` means it and no longer the function: so it answers as one."""

    def __call__(self, *arguments, **options) -> list[Output]:
        return generate(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
