"""What the other tests show on the CPU, on a GPU: numbers against transformers, fp64 and the CPU; no hidden wait."""
from __future__ import annotations

from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from test_generate import NumberTokenizer, prompts, theirs
from tiny import FAMILIES, copy_of, hf_model, tiny_llama
from training_parts import examples, tiny_model

import sdft
from sdft.data.chat import Example, encode_prompt
from sdft.errors import Interrupted
from sdft.files import read_tensors
from sdft.generation import Request, Sampling, generate, memory, stream
from sdft.generation.cache import KVCache, PrefillAttention
from sdft.generation.engine import Engine
from sdft.generation.fast.cuda import VarlenPrefill
from sdft.generation.fast.fused import fused
from sdft.kernels.attention import DocumentAttention, causal_attention, causal_attention_plain
from sdft.model.batches import pack_within
from sdft.model.lora import add_lora, lora_layers
from sdft.objectives import cross_entropy
from sdft.objectives.fisher import fisher
from sdft.results import LogLine
from sdft.train import TrainSettings, train
from sdft.train.loop import gradient
from sdft.train.optimiser import adamw, step_if_finite
from sdft.train.weights import trained_weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and torch sees none here")


@contextmanager
def no_wait():
    """Inside it, every wait of the host for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def error(x: torch.Tensor, exact: torch.Tensor) -> float:
    """‖x − exact‖ / ‖exact‖."""
    exact = exact.double().cpu()
    return ((x.double().cpu() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_transformers(family: str) -> None:
    hf = hf_model(family)
    model = copy_of(hf).to("cuda")
    tokens = torch.randint(97, (3, 50), generator=torch.Generator().manual_seed(0)).cuda()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), hf.to("cuda")(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama2", "smollm2", "qwen3"])
def test_greedy_is_transformers_token_for_token(family: str) -> None:
    hf = hf_model(family)
    model, asked = copy_of(hf).requires_grad_(False).to("cuda"), prompts(12, 5)
    outputs = generate(model, NumberTokenizer(), asked, max_new_tokens=30, batch_size=5)
    assert [(output.tokens, output.finish) for output in outputs] == [theirs(hf, prompt, 30) for prompt in asked]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.95, "top_k": 20, "top_p": 0.7, "repetition_penalty": 1.1}])
def test_output_depends_on_neither_batch_nor_order(settings: dict) -> None:
    model, tokenizer = copy_of(hf_model("llama2")).requires_grad_(False).to("cuda"), NumberTokenizer()
    sampling = Sampling(max_new_tokens=30, **settings)
    requests = [Request(f"record {index}", prompt) for index, prompt in enumerate(prompts(40, shared=10))]
    alone = {request.id: next(stream(model, tokenizer, [request], sampling)) for request in requests}
    for batch_size, order in ((3, requests[::-1]), (40, requests), (64, requests[7:] + requests[:7])):
        assert {output.id: output for output in stream(model, tokenizer, order, sampling, batch_size)} == alone


@pytest.mark.parametrize("method", ["lora", "full"])
def test_gradient_is_the_cpus(method) -> None:
    found = []
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "cuda")):
        model = tiny_model(torch.float32).to(device)
        trained = trained_weights(model, TrainSettings(method=method, lora_rank=2))
        if method == "lora":                       # B begins at 0, and then A has no gradient
            for name, factor in trained.parameters.items():
                drawn = torch.randn(factor.shape, generator=torch.Generator().manual_seed(len(name)))
                factor.data.copy_(drawn * 0.1)
        model.to(dtype)
        gradient(model, pack_within(examples(9), 60), cross_entropy)
        grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        found.append(grads)
    assert found[0].keys() == found[1].keys()
    # fp32 against fp64: a few hundred additions a number, each off by 6e-8 at most and of any sign.
    assert max(error(found[1][name], found[0][name]) for name in found[0]) < 1e-5


@pytest.mark.parametrize("width", [64, 20])              # FlashAttention takes multiples of 8
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_packed_attention_in_half_precision_is_no_worse_than_eager(heads, width: int) -> None:
    (H, K), lengths, generator = heads, [300, 1, 129, 64], torch.Generator().manual_seed(0)
    q, k, v, do = (torch.randn(sum(lengths), n, width, generator=generator, dtype=torch.float64) for n in (H, K, K, H))
    found = []
    for form, dtype, device in ((causal_attention_plain, torch.float64, "cpu"),
                                (causal_attention_plain, torch.bfloat16, "cuda"),
                                (causal_attention, torch.bfloat16, "cuda")):
        inputs = [x.to(torch.bfloat16).to(dtype).to(device).requires_grad_() for x in (q, k, v)]
        output = form(*inputs, lengths)
        found.append((output, *torch.autograd.grad(output, inputs, do.to(torch.bfloat16).to(dtype).to(device))))
    for exact, plain, fast in zip(*found, strict=True):          # the factor allows for luck in single roundings
        assert error(fast.detach(), exact.detach()) <= 1.5 * error(plain.detach(), exact.detach())


@pytest.mark.parametrize("prefix", [0, 37])
def test_prompts_prefilled_as_a_pack_are_the_same(prefix: int) -> None:
    lengths, sequences, generator = [50, 64, 129, 1], [1, 2, 130, 131], torch.Generator().manual_seed(0)
    config, exact = tiny_llama("smollm2", head_dim=64).config, []
    start = [torch.randn(prefix, 2, 64, generator=generator) for _ in range(2)]
    q, k, v = (torch.randn(sum(lengths), n, 64, generator=generator) for n in (4, 2, 2))
    for form, dtype, device in ((PrefillAttention, torch.float64, "cpu"), (PrefillAttention, torch.bfloat16, "cuda"),
                                (VarlenPrefill, torch.bfloat16, "cuda")):
        cache = KVCache(config, [200] * 140, dtype, torch.device(device))
        for index in range(140) if prefix else ():
            keys, values = cache.sequence(index, 0)
            keys[:, :prefix], values[:, :prefix] = (x.transpose(0, 1).bfloat16().to(dtype) for x in start)
        o = form(cache, sequences, lengths, prefix)(0, *(x.bfloat16().to(dtype).to(device) for x in (q, k, v)))
        exact.append((o, *(x.cpu().clone() for index in sequences for x in cache.sequence(index, 0))))
    for true, plain, packed in zip(*exact, strict=True):
        assert error(packed, true) <= 1.5 * error(plain, true)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "repetition_penalty": 1.2}])
def test_half_precision_generates_with_a_shared_prefix_and_an_adapter(settings: dict) -> None:
    """In bf16 the fused form is no farther from fp64 than the plain model."""
    model = copy_of(hf_model("smollm2")).requires_grad_(False)
    add_lora(model, 2)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, 0, 0.05)
    tokens, positions, attention = torch.randint(97, (60,)), torch.arange(30).repeat(2), DocumentAttention([30, 30])
    with torch.no_grad():
        exact = model.double().hidden(tokens, positions, attention)
        model = model.to(torch.bfloat16).to("cuda")
        plain, fast = (form.hidden(tokens.cuda(), positions.cuda(), DocumentAttention([30, 30]))
                       for form in (model, fused(model)))
    assert error(fast, exact) <= 1.5 * error(plain, exact)
    requests = [Request(str(index), prompt) for index, prompt in enumerate(prompts(40, shared=10))]
    outputs = list(stream(model, NumberTokenizer(), requests, Sampling(max_new_tokens=30, **settings), 16))
    assert {output.id for output in outputs} == {request.id for request in requests}


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_never_waits_for_the_device(dtype, method) -> None:
    settings = TrainSettings(method=method, lora_rank=2)
    model, batches = tiny_model(dtype).to("cuda"), pack_within(examples(6), 40)
    trained = trained_weights(model, settings)
    optimiser = adamw(trained.parameters, settings)

    def step() -> torch.Tensor:
        loss = gradient(model, batches, cross_entropy)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters.values(), 1.0)
        step_if_finite(optimiser, torch.stack((loss, norm)))
        optimiser.zero_grad()
        trained.publish()
        return torch.stack((loss, trained.delta_norm(), norm))

    first = step()                                  # makes the moments, and what else is made once
    with no_wait():
        second = step()
        with pytest.raises(RuntimeError):           # the mode does raise
            second.tolist()
    assert second[0] < first[0] and second[1] > first[1]


def test_with_deterministic_a_resumed_training_is_bit_for_bit_the_uninterrupted_one(tmp_path) -> None:
    """Without it FlashAttention's backward adds in any order: 12 steps of long records differ by rounding."""
    records = [Example(str(number), torch.randint(61, (700,), generator=torch.Generator().manual_seed(number)).tolist(),
                       [False] * 200 + [True] * 500) for number in range(24)]

    def interrupt(line: LogLine) -> None:
        if line["step"] == 5:
            raise Interrupted("stopped")

    def trained(folder: Path, method: str, interrupted: bool) -> dict[str, torch.Tensor]:
        settings = TrainSettings(lr=1e-2, epochs=4, method=method, deterministic=True, lora_rank=2, save_every=1)
        for watch in (interrupt, None) if interrupted else (None,):
            model = tiny_llama("llama2", max_position_embeddings=1024).to(torch.bfloat16).to("cuda")
            with suppress(Interrupted):
                train(model, records, settings, folder, watch=watch)
        return read_tensors(folder / ("adapter_model.safetensors" if method == "lora" else "model.safetensors"))

    for method in ("lora", "full"):
        whole, halves = (trained(tmp_path / f"{method} {n}", method, interrupted=n == 2) for n in (1, 2))
        assert whole.keys() == halves.keys() and all(torch.equal(whole[name], halves[name]) for name in whole)


def test_few_sequences_at_a_time_where_the_memory_is_small(monkeypatch) -> None:
    model, requests = copy_of(hf_model("llama2")).requires_grad_(False).to("cuda"), []
    requests = [Request(f"record {index}", prompt) for index, prompt in enumerate(prompts(40, shared=10))]
    expected = {output.id: output for output in stream(model, NumberTokenizer(), requests, batch_size=40)}
    real = memory.free_memory(model.device)
    assert real is not None and 2**30 < real
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert {output.id: output for output in stream(model, NumberTokenizer(), requests, batch_size=40)} == expected


def test_generation_stays_within_the_memory_that_it_plans_with(monkeypatch) -> None:
    model = tiny_llama("llama2", hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
                       num_key_value_heads=8, max_position_embeddings=1024).to(torch.bfloat16).requires_grad_(False)
    model.to("cuda")
    requests = [Request(str(n), torch.randint(20, 97, (300 + n % 50,)).tolist()) for n in range(400)]
    room = 10**9                                                        # 16 KiB a token: about 150 of these fit
    before = torch.cuda.memory_allocated()
    monkeypatch.setattr(memory, "free_memory", lambda device: room)
    torch.cuda.reset_peak_memory_stats()
    engine = Engine(model, NumberTokenizer(), requests, Sampling(max_new_tokens=40), batch_size=400)
    assert 50 < engine.batch_size < 300 and len(list(engine.run())) == 400
    assert torch.cuda.max_memory_allocated() - before < room


def test_the_fisher_information_is_the_cpus_up_to_its_labels() -> None:
    texts, layer = examples(60), "model.layers.1.self_attn.o_proj"
    found = [fisher(tiny_model().to(device), texts, [layer])[layer].cpu() for device in ("cpu", "cuda")]
    again = fisher(tiny_model().to("cuda"), texts[::-1], [layer])[layer].cpu()
    assert error(again, found[1]) < 1e-5                                # the labels of a text are its own
    assert found[1].sum().item() == pytest.approx(found[0].sum().item(), rel=0.2)       # about 500 labels each


def test_the_real_model_is_transformers(smollm2) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = sdft.load(smollm2, "float32", "cuda")
    hf = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).to("cuda").eval()
    asked = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in (
        "Why is the sky blue?", "Write a short poem about rain.", "What is 17 times 3?", "Name three rivers in Europe.",
        "Explain how a bicycle stays upright, in two sentences.")]
    stop = list(tokenizer.stop_ids)
    outputs = generate(model, tokenizer, asked, max_new_tokens=100)
    for prompt, output in zip(asked, outputs, strict=True):
        tokens = torch.tensor([prompt], device="cuda")
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), hf(tokens).logits, rtol=0, atol=1e-4)
        written = hf.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=100, do_sample=False,
                              eos_token_id=stop, pad_token_id=stop[0])[0, len(prompt):].tolist()
        assert output.tokens == (written[:-1] if written[-1] in stop else written)
