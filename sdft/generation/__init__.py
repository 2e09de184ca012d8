"""Generation: greedy or sampled, of one prompt or of many. Read it as a ladder, from plain to fast:

    plain.py                  greedy, one prompt: without a cache, then with one; the oracle of everything below
    sampling.py, cache.py     the choice of a token; the cache of many sequences
    batch.py, engine.py       the batched engine: prefill, step, verify; which prompt is decoded when
    fast/                     what is tuned to a device: drafts, fused and prepacked weights, captured steps

It may import models, chat formats and kernels (tests/test_rooms.py), but knows no tasks and no training.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from sdft.data.chat import encode_prompt
from sdft.generation.engine import Engine, Output, Report, Request
from sdft.generation.sampling import Sampling
from sdft.model.llama import Llama
from sdft.tokenizers.tokenizer import Tokenizer

__all__ = ["Output", "Report", "Request", "Sampling", "generate", "stream", "stream_tokens"]

Prompt = str | list[dict[str, str]] | list[int]


def stream(model: Llama, tokenizer: Tokenizer, requests: Iterable[Request], sampling: Sampling = Sampling(),
           batch_size: int = 32, speculation: bool = True, report: Report | None = None) -> Iterator[Output]:
    """Yield the Output of every request as it finishes, in any order; at most `batch_size` are decoded at once.

    speculation: draft tokens from earlier text where that saves time; the tokens are the same. `report`: counts are
    added.

    A prompt that has no token, or that fills the model's context, raises SdftError with its id before anything runs.
    A response that reaches the end of the context finishes as "length".
    """
    return Engine(model, tokenizer, list(requests), sampling, batch_size, speculation, report).run()


def generate(model: Llama, tokenizer: Tokenizer, prompts: Sequence[Prompt], max_new_tokens: int = 256,
             temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0,
             seed: int = 0, batch_size: int = 32) -> list[Output]:
    """Answer `prompts` and return the Outputs in their order; each one's id is its index.

    A prompt is one user turn (str, rendered in the model's chat format), a list of messages {"role", "content"} that
    ends with the user's, or token ids, which are used as they are.
    """
    sampling = Sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty, seed)
    requests = [Request(str(index), _encode(tokenizer, prompt)) for index, prompt in enumerate(prompts)]
    outputs = {output.id: output for output in stream(model, tokenizer, requests, sampling, batch_size)}
    return [outputs[request.id] for request in requests]


def stream_tokens(model: Llama, tokenizer: Tokenizer, tokens: list[int],
                  sampling: Sampling = Sampling()) -> Iterator[int]:
    """Yield the token ids of the answer to one prompt as they are chosen, without the stop token."""
    return Engine(model, tokenizer, [Request("", tokens)], sampling, batch_size=1).run_tokens()


def _encode(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if prompt and isinstance(prompt[0], dict):
        return encode_prompt(tokenizer, cast(list[dict[str, str]], prompt))
    return [int(token) for token in cast(list[int], prompt)]
