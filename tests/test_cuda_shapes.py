"""A decode step on device "cuda" without a GPU: FakeTensorMode raises at a host sync and at a wrong device.

This shows that the step could be captured in a CUDA graph, not how fast it would be.
"""
from __future__ import annotations

import pytest
import torch
from test_cuda_training import cuda_without_gpu, move_to_cuda  # noqa: F401
from test_generate import NumberTokenizer, prompts
from tiny import tiny_llama
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sdft.generation import Request, Sampling, memory, stream
from sdft.generation.engine import Engine
from sdft.generation.memory import USED, generation_memory

SETTINGS = [{}, {"temperature": 0.9, "top_k": 10, "top_p": 0.8}, {"temperature": 1.0, "repetition_penalty": 1.2}]


REQUESTS = [Request(str(index), prompt) for index, prompt in enumerate(prompts(4, shared=5))]


def engine_of(model, settings: dict) -> Engine:
    return Engine(model, NumberTokenizer(), REQUESTS, Sampling(max_new_tokens=8, **settings), batch_size=4)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_prefill_and_step_need_no_host_sync_and_stay_on_their_device(cuda_without_gpu, dtype, settings):  # noqa: F811
    model = tiny_llama().to(dtype).requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_cuda(model)
        engine = engine_of(model, settings)
        batch = engine.batch

        def buffers() -> list[torch.Tensor]:
            every = (batch.tokens, batch.positions, batch.counts, batch.uniforms, batch.seen)
            return [x for x in every if x is not None]

        before = buffers()
        engine.share()
        ends = [response.capacity for response in engine.waiting]
        chosen = [batch.step(ends) for _ in range(2)]
        assert all(tokens.shape == (4,) and tokens.device.type == "cuda" for tokens in chosen)
        assert {x.device.type for x in before} == {"cuda"}
        assert all(x is y for x, y in zip(before, buffers(), strict=True))      # a captured graph uses them again
        with pytest.raises(DataDependentOutputException):                       # the mode does raise at a host sync
            chosen[0].tolist()


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_of_one_shape_write_what_the_engine_writes(settings):
    """As a replayed graph: always all sequences and the whole cache; finished sequences take steps too, unread."""
    model = tiny_llama().requires_grad_(False)
    engine = engine_of(model, settings)
    outputs = stream(model, NumberTokenizer(), REQUESTS, engine.sampling, batch_size=4, speculation=False)
    expected = {output.id: output for output in outputs}
    ends = [response.capacity for response in engine.waiting]
    with torch.inference_mode():
        engine.share()
        engine.admit()
        chosen = [engine.batch.tokens.clone(), *(engine.batch.step(ends) for _ in range(7))]
    for index, response in enumerate(engine.responses):
        written = expected[response.request.id].tokens
        assert [int(tokens[index]) for tokens in chosen][: len(written)] == written


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_as_many_sequences_are_generated_as_fit_into_a_gpus_memory(cuda_without_gpu, monkeypatch, capsys,  # noqa: F811
                                                                   share):
    model = tiny_llama().to(torch.bfloat16).requires_grad_(False)
    asked = [Request(str(index), prompt) for index, prompt in enumerate(prompts(300, shared=5))]
    lengths, weights = [len(request.tokens) + 8 for request in asked], sum(map(torch.numel, model.parameters()))

    def needed(n: int) -> int:
        return sum(generation_memory(model.config, weights, 2, lengths, n, on_cpu=False).values())

    free = needed(1) + share * (needed(300) - needed(1)) - 2 * weights                       # they are there already
    monkeypatch.setattr(memory, "free_memory", lambda device: int(free / USED) + 2 * weights)
    memory._report.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_cuda(model)
        n = Engine(model, NumberTokenizer(), asked, Sampling(max_new_tokens=8), batch_size=300).batch_size
        assert Engine(model, NumberTokenizer(), asked, Sampling(max_new_tokens=8), batch_size=7).batch_size == min(n, 7)
    room = USED * (int(free / USED) + 4 * weights)
    assert 1 <= n <= 300 and (n == 1 or needed(n) <= room) and (n == 300 or needed(n + 1) > room)
    message = capsys.readouterr().err
    assert message.startswith(f"generating {n} sequences at a time instead of 300" if n < 300 else "")
    assert message.count("\n") == (0 if n == 300 else 1 if n >= 7 else 2)
