"""Plain decoding is the oracle of the engine: the same tokens in fp32, however the engine decodes them."""
from __future__ import annotations

import pytest
from test_drafts import looping
from test_generate import STOPS, NumberTokenizer, models, prompts, theirs
from tiny import FAMILIES, tiny_llama

from sdft.data.chat import encode_prompt
from sdft.generation import Report, Request, Sampling, generate, stream
from sdft.generation.plain import decode_with_cache, decode_without_cache


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_no_token(family: str) -> None:
    model = tiny_llama(family).requires_grad_(False)
    for prompt in prompts(6):
        assert decode_with_cache(model, prompt, 20, STOPS) == decode_without_cache(model, prompt, 20, STOPS)


def test_plain_decoding_is_transformers() -> None:
    hf, model = models()
    for prompt in prompts(8):
        tokens, _ = theirs(hf, prompt, 30)
        assert decode_with_cache(model, prompt, 30, STOPS) == tokens == decode_without_cache(model, prompt, 30, STOPS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [0, 9])
def test_the_engine_returns_the_plain_tokens(family: str, shared: int) -> None:
    """Ragged prompts in a batch that is too small for all: places are taken again; with and without a prefix."""
    model, asked = tiny_llama(family).requires_grad_(False), prompts(10, shared)
    outputs = generate(model, NumberTokenizer(), asked, max_new_tokens=25, batch_size=4)
    assert [output.tokens for output in outputs] == [decode_with_cache(model, prompt, 25, STOPS) for prompt in asked]


@pytest.mark.parametrize("family", ["llama2", "qwen3"])
def test_drafts_return_the_plain_tokens(family: str) -> None:
    model, asked, report = tiny_llama(family).requires_grad_(False), looping(8), Report()
    requests = [Request(str(index), prompt) for index, prompt in enumerate(asked)]
    outputs = {output.id: output.tokens for output in stream(
        model, NumberTokenizer(), requests, Sampling(max_new_tokens=40), batch_size=3, report=report)}
    assert report.drafted > report.accepted > 0
    assert outputs == {str(i): decode_with_cache(model, prompt, 40, STOPS) for i, prompt in enumerate(asked)}


def test_plain_decoding_ends_with_the_context() -> None:
    model = models()[1]
    prompt = [index % 70 + 20 for index in range(model.config.context_length - 3)]
    assert len(decode_with_cache(model, prompt, 50)) == len(decode_without_cache(model, prompt, 50)) == 3


def test_the_real_model_returns_the_plain_tokens(smollm2_fp32) -> None:
    """Prompts that share their beginning; the second asks for a repetition, which is drafted."""
    model, tokenizer = smollm2_fp32
    asked = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in (
        "What is 17 times 3?", "Repeat: one two three four one two three four one two three four",
        "Why is the sky blue?")]
    report, stop = Report(), tokenizer.stop_ids
    requests = [Request(str(index), prompt) for index, prompt in enumerate(asked)]
    outputs = {output.id: output.tokens for output in stream(
        model, tokenizer, requests, Sampling(max_new_tokens=16), batch_size=2, report=report)}
    assert outputs == {str(i): decode_with_cache(model, prompt, 16, stop) for i, prompt in enumerate(asked)}
    assert decode_without_cache(model, asked[0], 6, stop) == outputs["0"][:6]
    assert report.accepted > 0
