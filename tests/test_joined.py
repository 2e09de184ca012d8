"""The forms in which generation computes, against the model as it is written: both run on a CPU, whatever they are for."""
from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny import FAMILIES, tiny_llama

import sdft.generation.cache as cache
import sdft.generation.fast.cuda as gpu
from sdft.generation.fast.prepacked import PackedLlama, filled
from sdft.kernels.attention import DocumentAttention
from sdft.kernels.cached_attention import prompt_attention, prompt_bias
from sdft.model.lora import adapter_off, add_lora, lora_layers, merge

STATES = ["no adapter", "on", "off", "merged", "merged and off"]


def model_in(state: str, family: str):
    """A model whose adapter is in such a state, and the context in which it is to be used."""
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
    tokens = torch.randint(97, (20,), generator=torch.Generator().manual_seed(0))       # 20: filled up to 24 when packed
    positions, attend = torch.arange(10).repeat(2), DocumentAttention([10, 10])
    with context, torch.no_grad():
        for rows in (None, torch.tensor([3, 9, 19, 0, 5])):
            expected = model.hidden(tokens, positions, attend, rows)
            for form in (gpu.fused(model), PackedLlama(model)):
                # fp32, three layers: only the order of additions differs.
                torch.testing.assert_close(form.hidden(tokens, positions, attend, rows), expected, rtol=0, atol=2e-5)
                torch.testing.assert_close(form.head(expected), model.head(expected), rtol=0, atol=2e-5)


def test_few_lengths_occur() -> None:
    assert len({len(filled(torch.zeros(n, 2))) for n in range(1, 2049)}) == 4 + 8 + 12 + 28
    x = torch.randn(9, 2)
    assert torch.equal(filled(x)[:9], x) and not filled(x)[9:].any()


def one_by_one(q, k, v, q_bounds, k_bounds, longest_q, longest_k):
    """`varlen_attention` as a loop over documents."""
    q_bounds, k_bounds = q_bounds.tolist(), k_bounds.tolist()
    assert longest_q == max(b - a for a, b in zip(q_bounds, q_bounds[1:]))
    assert longest_k == max(b - a for a, b in zip(k_bounds, k_bounds[1:]))
    return torch.cat([prompt_attention(q[None, a:b], k[None, c:d].transpose(1, 2), v[None, c:d].transpose(1, 2),
                                       prompt_bias(b - a, d - c, q.dtype, q.device))[0]
                      for a, b, c, d in zip(q_bounds, q_bounds[1:], k_bounds, k_bounds[1:])])


@pytest.mark.parametrize("prefix", [0, 7])
def test_prompts_at_once_attend_and_are_stored_as_one_by_one(prefix: int, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "varlen_attention", one_by_one)
    monkeypatch.setattr(cache, "GROUP", 4)
    lengths, rows, generator = [40, 5, 12, 6], [1, 2, 6, 9], torch.Generator().manual_seed(0)       # in three groups
    start = [torch.randn(2, prefix, 8, generator=generator) for _ in range(2)]
    q, k, v = (torch.randn(sum(lengths), heads, 8, generator=generator) for heads in (4, 2, 2))
    results = []
    for form in (cache.PrefillAttention, gpu.VarlenPrefill):
        kv = cache.KVCache(tiny_llama("llama2").config, [70] * 4 + [40] * 4 + [20] * 2, torch.float32, torch.device("cpu"))
        for row in range(10):
            for stored, given in zip(kv.row(row, 0), start):
                stored[:, :prefix] = given
        results.append([form(kv, rows, lengths, prefix)(0, q, k, v), *(x for row in range(10) for x in kv.row(row, 0))])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
