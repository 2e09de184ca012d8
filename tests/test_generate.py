"""The engine against transformers' generate, and a batch against its sequences alone."""
from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny import copy_of, hf_model

from sdft.errors import SdftError
from sdft.generation import Request, Sampling, generate, stream, stream_tokens

STOPS = (2, 5, 17)          # several: eos and two more


class NumberTokenizer:
    """Decodes ids as numbers; the engine needs nothing else of a tokenizer."""

    eos_id, stop_ids = STOPS[0], STOPS

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


@cache
def models(family: str = "llama2"):
    """transformers' model and ours with the same weights, fp32."""
    hf = hf_model(family)
    return hf, copy_of(hf).requires_grad_(False)


@cache
def prompts(count: int = 20, shared: int = 0) -> list[list[int]]:
    """Ragged prompts; the first `shared` tokens are the same in all."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 30, (count,), generator=generator).tolist()
    prefix = torch.randint(20, 97, (shared,), generator=generator).tolist()
    return [prefix + torch.randint(20, 97, (length,), generator=generator).tolist() for length in lengths]


def theirs(hf, prompt: list[int], max_new_tokens: int, **settings) -> tuple[list[int], str]:
    """transformers' response to one prompt alone, without the stop token, and why it ended."""
    written = hf.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                          max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(STOPS), pad_token_id=0,
                          **settings)[0].tolist()[len(prompt):]
    return (written[:-1], "stop") if written[-1] in STOPS else (written, "length")


@pytest.mark.parametrize("family, shared", [
    ("llama2", 0), ("smollm2", 12), ("llama3.1", 3), ("qwen3", 9), ("qwen2", 0)])
def test_greedy_is_transformers_token_for_token(family: str, shared: int) -> None:
    hf, model = models(family)
    asked = prompts(12, shared)
    outputs = generate(model, NumberTokenizer(), asked, max_new_tokens=30, batch_size=5)
    assert [(output.tokens, output.finish) for output in outputs] == [theirs(hf, prompt, 30) for prompt in asked]


def test_both_ways_to_finish_occur_and_text_is_decoded() -> None:
    outputs = generate(models()[1], NumberTokenizer(), prompts(), max_new_tokens=40)
    assert {output.finish for output in outputs} == {"stop", "length"}
    assert all(len(output.tokens) == 40 for output in outputs if output.finish == "length")
    assert all(output.text == " ".join(map(str, output.tokens)) for output in outputs)


def test_repetition_penalty_is_transformers() -> None:
    hf, model = models()
    asked = prompts(8)
    outputs = generate(model, NumberTokenizer(), asked, max_new_tokens=30, repetition_penalty=1.3, batch_size=3)
    expected = [theirs(hf, prompt, 30, repetition_penalty=1.3) for prompt in asked]
    assert [(output.tokens, output.finish) for output in outputs] == expected


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 4},
                                      {"temperature": 0.95, "top_k": 20, "top_p": 0.7, "repetition_penalty": 1.1}])
def test_output_depends_on_neither_batch_nor_order(settings: dict) -> None:
    model, tokenizer = models()[1], NumberTokenizer()
    sampling = Sampling(max_new_tokens=30, **settings)
    requests = [Request(f"record {index}", prompt) for index, prompt in enumerate(prompts(20, shared=10))]
    alone = {request.id: next(stream(model, tokenizer, [request], sampling)) for request in requests}
    for batch_size, order in ((1, requests), (3, requests[::-1]), (64, requests[7:] + requests[:7])):
        assert {output.id: output for output in stream(model, tokenizer, order, sampling, batch_size)} == alone


def test_a_request_may_have_its_own_limit() -> None:
    requests = [Request("a", prompts()[0], 1), Request("b", prompts()[0], 7), Request("c", prompts()[0])]
    outputs = {o.id: o for o in stream(models()[1], NumberTokenizer(), requests, Sampling(max_new_tokens=12))}
    longest = outputs["c"].tokens
    assert outputs["a"].tokens == longest[:1] and outputs["b"].tokens == longest[:7]


def test_a_response_ends_with_the_context() -> None:
    model = models()[1]
    prompt = [index % 70 + 20 for index in range(model.config.context_length - 3)]
    (output,) = generate(model, NumberTokenizer(), [prompt], max_new_tokens=50)
    assert len(output.tokens) <= 3
    for tokens, reported in ((prompt + [20] * 3, "128"), ([], "no token")):
        with pytest.raises(SdftError, match=f"record too-long.*{reported}"):
            stream(model, NumberTokenizer(), [Request("a", prompt), Request("too-long", tokens)])


def test_no_request_gives_no_output() -> None:
    assert list(stream(models()[1], NumberTokenizer(), [])) == []


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=20), Sampling(max_new_tokens=20, temperature=1.0)])
def test_tokens_stream_as_they_are_chosen(sampling: Sampling) -> None:
    model, tokenizer = models()[1], NumberTokenizer()
    for prompt in prompts(4):
        whole = next(stream(model, tokenizer, [Request("", prompt)], sampling))
        assert list(stream_tokens(model, tokenizer, prompt, sampling)) == whole.tokens


@pytest.mark.parametrize(("prompt", "batch_size", "message"), [
    ([1, 2], 0, "batch_size: expected at least 1 sequence at a time, got 0"),
    ([1, 10**6], 4, "record a: expected token ids from 0 to [0-9]+, got 1 to 1000000"),
    ([-1, 3], 4, "got -1 to 3")])
def test_what_cannot_be_generated_is_one_line(prompt: list[int], batch_size: int, message: str) -> None:
    with pytest.raises(SdftError, match=message):
        list(stream(models()[1], NumberTokenizer(), [Request("a", prompt)], Sampling(max_new_tokens=2), batch_size))
