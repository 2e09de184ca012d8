"""Fused and prepacked forms against the plain model, on a CPU, and varlen prefill against prompts one by one."""
from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from tiny import FAMILIES, tiny_llama

import sdft.generation.cache as cache
import sdft.generation.fast.cuda as cuda
from sdft.generation.fast.fused import fused
from sdft.generation.fast.prepacked import PrepackedLlama, padded
from sdft.kernels.attention import DocumentAttention
from sdft.kernels.cached_attention import prompt_attention, prompt_bias
from sdft.model.lora import adapter_off, add_lora, lora_layers, merge

STATES = ["no adapter", "on", "off", "merged", "merged and off"]


def model_in(state: str, family: str):
    """A model whose adapter is in this state, and the context to use it in."""
    model = tiny_llama(family).requires_grad_(False)
    if state == "no adapter":
        return model, nullcontext()
    add_lora(model, rank=2, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
    generator = torch.Generator().manual_seed(1)
    for layer in lora_layers(model).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator) * 0.05
    if state.startswith("merged"):
        merge(model)
    return model, adapter_off(model) if state.endswith("off") else nullcontext()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_the_models(family: str, state: str) -> None:
    model, context = model_in(state, family)
    tokens = torch.randint(97, (20,), generator=torch.Generator().manual_seed(0))       # prepacked: padded to 24
    positions, attend = torch.arange(10).repeat(2), DocumentAttention([10, 10])
    with context, torch.no_grad():
        for rows in (None, torch.tensor([3, 9, 19, 0, 5])):
            expected = model.hidden(tokens, positions, attend, rows)
            for form in (fused(model), PrepackedLlama(model)):
                # fp32, three layers: only the order of additions differs.
                torch.testing.assert_close(form.hidden(tokens, positions, attend, rows), expected, rtol=0, atol=2e-5)
                torch.testing.assert_close(form.head(expected), model.head(expected), rtol=0, atol=2e-5)


def test_few_lengths_occur() -> None:
    assert len({len(padded(torch.zeros(n, 2))) for n in range(1, 2049)}) == 4 + 8 + 12 + 28
    x = torch.randn(9, 2)
    assert torch.equal(padded(x)[:9], x) and not padded(x)[9:].any()


def one_by_one(q, k, v, q_bounds, k_bounds, longest_q, longest_k):
    """`varlen_attention` as a loop over documents."""
    q_bounds, k_bounds = q_bounds.tolist(), k_bounds.tolist()
    assert longest_q == max(b - a for a, b in pairwise(q_bounds))
    assert longest_k == max(b - a for a, b in pairwise(k_bounds))
    return torch.cat([prompt_attention(q[None, a:b], k[None, c:d].transpose(1, 2), v[None, c:d].transpose(1, 2),
                                       prompt_bias(b - a, d - c, q.dtype, q.device))[0]
                      for (a, b), (c, d) in zip(pairwise(q_bounds), pairwise(k_bounds), strict=True)])


@pytest.mark.parametrize("prefix", [0, 7])
def test_prompts_at_once_attend_and_are_stored_as_one_by_one(prefix: int, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "varlen_attention", one_by_one)
    monkeypatch.setattr(cache, "GROUP", 4)
    lengths, sequences = [40, 5, 12, 6], [1, 2, 6, 9]                                   # in three groups
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(2, prefix, 8, generator=generator) for _ in range(2)]
    q, k, v = (torch.randn(sum(lengths), heads, 8, generator=generator) for heads in (4, 2, 2))
    results = []
    for form in (cache.PrefillAttention, cuda.VarlenPrefill):
        config, capacities = tiny_llama("llama2").config, [70] * 4 + [40] * 4 + [20] * 2
        kv = cache.KVCache(config, capacities, torch.float32, torch.device("cpu"))
        for index in range(10):
            for stored, values in zip(kv.sequence(index, 0), start, strict=True):
                stored[:, :prefix] = values
        o = form(kv, sequences, lengths, prefix)(0, q, k, v)
        results.append([o, *(x for index in range(10) for x in kv.sequence(index, 0))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
