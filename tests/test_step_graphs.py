"""Steps of rounded shapes against the engine's own, without a GPU; on a GPU, replayed steps against uncaptured ones."""
from __future__ import annotations

import pytest
import torch
from test_cuda_training import cuda_without_gpu, move_to_cuda  # noqa: F401
from test_generate import NumberTokenizer, models, prompts
from tiny import tiny_llama
from torch._subclasses.fake_tensor import FakeTensorMode

from sdft.generation import Request, Sampling
from sdft.generation.engine import Engine
from sdft.generation.fast.cuda_graphs import StepGraphs, rounded_size, rounded_slots

SETTINGS = [{}, {"temperature": 0.9, "top_k": 10, "top_p": 0.8, "seed": 3},
            {"temperature": 1.0, "repetition_penalty": 1.2}, {"temperature": 1.0, "top_p": 0.9}]
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU captures graphs")


class Repeated:
    """Stands for a graph: it runs the recorded work again, on the same buffers."""

    def __init__(self, work):
        self.replay = work


class WithoutGPU(StepGraphs):
    def __init__(self):
        super().__init__()
        self.captured = 0

    def aside(self, work):
        work()

    def capture(self, work):
        self.captured += 1
        return Repeated(work)


def requests(count: int = 20, longest: int = 30) -> list[Request]:
    """Ragged prompts with different limits, so that sequences finish one by one."""
    return [Request(str(index), prompt, 1 + index * 7 % longest)
            for index, prompt in enumerate(prompts(count, shared=6))]


def answers(model, settings: dict, batch_size: int, graphs: StepGraphs | None,
            least_free: int = 1) -> dict[str, list[int]]:
    engine = Engine(model, NumberTokenizer(), requests(), Sampling(max_new_tokens=30, **settings), batch_size,
                    speculation=False)
    engine.graphs, engine.least_free = graphs, least_free
    return {output.id: output.tokens for output in engine.run()}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_rounded_steps_write_what_the_engine_writes(settings: dict, batch_size: int) -> None:
    model, graphs = models()[1], WithoutGPU()
    assert answers(model, settings, batch_size, graphs) == answers(model, settings, batch_size, None)
    assert 0 < graphs.captured < 12


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("least_free", [2, 5, 8])
def test_prompts_that_wait_for_free_places_are_answered_alike(settings: dict, least_free: int) -> None:
    """Meanwhile idle sequences take the rounded steps too; the prompts that follow read the prefix in their places."""
    model = models()[1]
    expected = answers(model, settings, 8, None)
    assert answers(model, settings, 8, WithoutGPU(), least_free) == expected
    assert answers(model, settings, 8, None, least_free) == expected


@pytest.mark.parametrize("least_free", [1, 3, 8])
def test_prompts_are_prefilled_when_enough_places_are_free(monkeypatch, least_free: int) -> None:
    engine = Engine(models()[1], NumberTokenizer(), requests(), Sampling(max_new_tokens=30), 8, speculation=False)
    engine.least_free, sizes, begin = least_free, [], engine.batch.begin

    def noted(indices: list[int], *rest) -> list[int]:
        sizes.append(len(indices))
        return begin(indices, *rest)

    monkeypatch.setattr(engine.batch, "begin", noted)
    assert len(list(engine.run())) == sum(sizes) == 20
    assert all(size >= least_free for size in sizes[:-1]) and (least_free > 1 or min(sizes) == 1)


def test_shapes_are_few_and_large_enough() -> None:
    sizes = [rounded_size(n, 300) for n in range(1, 301)]
    assert all(n <= size <= 300 for n, size in enumerate(sizes, 1))
    assert sorted(set(sizes)) == [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256, 288, 300]
    assert rounded_size(5, 6) == 6
    for end in range(1, 10000):
        assert end <= rounded_slots(end) <= max(end + 127, 1.25 * end)
    assert len({rounded_slots(end) for end in range(1, 8193)}) == 8 + 3 * 4


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_rounded_step_needs_no_host_sync(cuda_without_gpu, settings) -> None:  # noqa: F811
    model, asked = tiny_llama().to(torch.bfloat16).requires_grad_(False), requests(4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_cuda(model)
        engine = Engine(model, NumberTokenizer(), asked, Sampling(max_new_tokens=8, **settings), batch_size=4)
        assert isinstance(engine.graphs, StepGraphs)
        engine.share()
        graphs = WithoutGPU()
        for _ in range(3):
            tokens = graphs.step(engine.batch, [response.capacity for response in engine.waiting][:3])
            assert tokens.shape == (3,) and tokens.device.type == "cuda"
        assert graphs.captured == 1


@on_a_gpu
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_replayed_steps_write_what_uncaptured_ones_write(settings: dict, batch_size: int) -> None:
    model, graphs = tiny_llama().requires_grad_(False).to("cuda"), StepGraphs()
    expected = answers(model, settings, batch_size, None)
    assert answers(model, settings, batch_size, graphs) == expected
    assert any(graphs.graphs.values())
    assert answers(model, settings, batch_size, StepGraphs(), least_free=1 + batch_size // 3) == expected


@on_a_gpu
def test_a_replayed_step_is_bit_for_bit_the_uncaptured_one_and_never_waits() -> None:
    logits = []
    for graphs in (None, StepGraphs()):
        model = tiny_llama().to(torch.bfloat16).requires_grad_(False).to("cuda")
        engine = Engine(model, NumberTokenizer(), requests(8), Sampling(max_new_tokens=8), batch_size=8)
        with torch.inference_mode():
            engine.share()
            engine.admit()
            ends = [response.capacity for response in engine.responses]
            for _ in range(3):
                tokens = graphs.step(engine.batch, ends) if graphs else engine.batch.step(ends)
            torch.cuda.set_sync_debug_mode("error")
            try:
                tokens = graphs.step(engine.batch, ends) if graphs else engine.batch.step(ends)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        logits.append((tokens.clone(), [x.clone() for x in (*engine.batch.cache.keys, *engine.batch.cache.values)]))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
