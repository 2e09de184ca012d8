"""The cache's attention against a loop over single tokens."""
from __future__ import annotations

import pytest
import torch

from sdft.kernels import cached_attention as kernel
from sdft.kernels.cached_attention import (
    cache_bias,
    cached_attention,
    cached_attention_plain,
    prompt_attention,
    prompt_bias,
)


def parts(B: int = 3, t: int = 1, H: int = 6, K: int = 2, C: int = 8, T: int = 12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    q, keys, values = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
                       for shape in ((B, t, H, C), (B, K, T, C), (B, K, T, C)))
    positions = torch.tensor([[0], [5], [T - t]])[:B] + torch.arange(t)
    return q, keys, values, positions


def attended(q, keys, values, positions):
    return cached_attention(q, keys, values, cache_bias(positions, keys.shape[2], q.shape[2] // keys.shape[1], q.dtype))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (4, 1)])
def test_equals_plain_form(tokens: int, heads: tuple[int, int]) -> None:
    q, keys, values, positions = parts(t=tokens, H=heads[0], K=heads[1])
    fast = attended(q, keys, values, positions)
    # fp64: only the order of additions differs.
    torch.testing.assert_close(fast, cached_attention_plain(q, keys, values, positions), rtol=0, atol=1e-13)


def test_slots_after_a_sequence_change_nothing() -> None:
    q, keys, values, positions = parts()
    before = attended(q, keys, values, positions)
    keys[1, :, 6:], values[1, :, 6:] = 1e3, 1e3                  # the token of sequence 1 has position 5
    assert torch.equal(attended(q, keys, values, positions), before)


def test_reads_a_part_of_a_longer_cache() -> None:
    q, keys, values, positions = parts(T=20)
    positions = positions.clamp_max(9)
    part = attended(q, keys[:, :, :10], values[:, :, :10], positions)
    torch.testing.assert_close(part, cached_attention_plain(q, keys, values, positions), rtol=0, atol=1e-13)


def test_bf16_no_worse_than_plain_against_fp64() -> None:
    q, keys, values, positions = parts(t=3, T=64, C=16, dtype=torch.bfloat16)
    exact = cached_attention_plain(q.double(), keys.double(), values.double(), positions)
    fast = attended(q, keys, values, positions)
    plain = cached_attention_plain(q, keys, values, positions)
    # Both round scores, weights and outputs to 8 bits; the factor allows for luck in single roundings.
    assert (fast.double() - exact).abs().max() <= 1.5 * (plain.double() - exact).abs().max()


@pytest.mark.parametrize("long", [kernel.LONG, 5])
@pytest.mark.parametrize("prompt", [1, 5, 7, 12])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4)])
def test_prompts_see_what_their_tokens_would_see_one_by_one(prompt, heads, long, monkeypatch) -> None:
    monkeypatch.setattr(kernel, "LONG", long)
    _, keys, values, _ = parts(H=heads[0], K=heads[1])
    q = torch.randn(3, prompt, heads[0], 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positions = torch.arange(12 - prompt, 12).expand(3, -1)                 # after 12 - prompt filled slots
    expected = cached_attention_plain(q, keys, values, positions)
    bias = prompt_bias(prompt, 12, q.dtype, q.device)
    assert (bias is None) == (prompt == 12 or (prompt == 7 and long == 5))  # 5 tokens: fewer than the 7 before them
    fast = prompt_attention(q, keys, values, bias)
    # fp64: only the order of additions differs.
    torch.testing.assert_close(fast, expected, rtol=0, atol=1e-13)
