"""The cache's sequences, and a step's attention over them, against a loop over single tokens."""
from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sdft.generation import cache
from sdft.generation.cache import DecodeAttention, KVCache, PrefillAttention
from sdft.kernels.cached_attention import cached_attention_plain


def small(heads: tuple[int, int], capacities: list[int], monkeypatch, dtype: torch.dtype = torch.float64,
          group: int = 2) -> KVCache:
    """A cache of two layers, in groups of two sequences by default, with something in every slot."""
    monkeypatch.setattr(cache, "GROUP", group)
    config = SimpleNamespace(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=4,
                             num_hidden_layers=2)
    made, generator = KVCache(config, capacities, dtype, torch.device("cpu")), torch.Generator().manual_seed(0)
    for array in (*made.keys, *made.values):
        array.normal_(generator=generator)
    return made


def both_layers(kv: KVCache, index: int) -> list[torch.Tensor]:
    """The sequence's keys and values, views."""
    return [x for layer in (0, 1) for x in kv.sequence(index, layer)]


@pytest.mark.parametrize("counts", [None, [1, 1, 1, 1, 1], [1, 3, 2, 1, 4]])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("group, parts", [(2, 3), (4, 2)])
def test_a_step_attends_as_its_tokens_would_one_by_one(group, parts, heads, counts, monkeypatch) -> None:
    kv, sizes = small(heads, [90, 70, 40, 40, 33, 20], monkeypatch, group=group), counts or [1] * 5
    starts = [80, 20, 20, 5, 28]
    sequences = [index for index, size in enumerate(sizes) for _ in range(size)]
    positions = torch.tensor([start + i for start, size in zip(starts, sizes, strict=True) for i in range(size)])
    q, k, v = (torch.randn(len(sequences), n, 4, dtype=torch.float64) for n in (heads[0], heads[1], heads[1]))
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    attention = DecodeAttention(kv, positions, ends, counts)
    assert len(attention.parts) == parts
    o = attention(1, q, k, v)
    for token, (index, position) in enumerate(zip(sequences, positions.tolist(), strict=True)):
        keys, values = kv.sequence(index, 1)
        assert torch.equal(keys[:, position], k[token]) and torch.equal(values[:, position], v[token])
        alone = cached_attention_plain(q[None, None, token], keys[None], values[None], positions[None, None, token])
        # fp64: only the order of additions differs.
        torch.testing.assert_close(o[token], alone[0, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("prefix", [0, 7])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (4, 1)])
def test_prompts_attend_and_are_stored_as_their_tokens_would_be_one_by_one(heads, prefix: int, monkeypatch) -> None:
    kv, lengths = small(heads, [70, 70, 40, 40, 20], monkeypatch), [40, 5, 12, 6]
    generator = torch.Generator().manual_seed(1)
    before = [x.clone() for index in range(5) for x in kv.sequence(index, 0)]
    q, k, v = (torch.randn(63, n, 4, generator=generator, dtype=torch.float64) for n in (heads[0], heads[1], heads[1]))
    o = PrefillAttention(kv, [0, 2, 3, 4], lengths, prefix)(1, q, k, v)
    tokens = [(index, prefix + i) for index, length in zip([0, 2, 3, 4], lengths, strict=True) for i in range(length)]
    for token, (index, position) in enumerate(tokens):
        keys, values = kv.sequence(index, 1)
        assert torch.equal(keys[:, position], k[token]) and torch.equal(values[:, position], v[token])
        alone = cached_attention_plain(q[None, None, token], keys[None], values[None], torch.tensor([[position]]))[0, 0]
        torch.testing.assert_close(o[token], alone, rtol=0, atol=1e-13)
    for old, new in zip(before, [x for index in range(5) for x in kv.sequence(index, 0)], strict=True):
        assert torch.equal(old, new)                            # the other layer is as it was


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_step_writes_nothing_else(dtype, monkeypatch) -> None:
    kv = small((6, 2), [90, 70, 40], monkeypatch, dtype)
    before = [kv.keys[0].clone(), kv.values[0].clone()]
    new = torch.full((4, 2, 4), 9.0, dtype=dtype)
    attend = DecodeAttention(kv, torch.tensor([3, 4, 6, 0]), [5, 7, 1], [2, 1, 1])
    attend(0, torch.zeros(4, 6, 4, dtype=dtype), new, new)
    for old, now in zip(before, (kv.keys[0], kv.values[0]), strict=True):
        changed = (old != now).any(1)
        assert changed.sum() == 4 * kv.heads and (now[changed] == 9).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("capacities", [[50], [50, 40, 40, 20, 20]])
@pytest.mark.parametrize("heads", [(4, 2), (4, 1)])
def test_the_prefix_is_copied_to_every_sequence_and_nothing_else_changes(heads, capacities, dtype, monkeypatch) -> None:
    kv = small(heads, capacities, monkeypatch, dtype)
    before = [[x.clone() for x in both_layers(kv, index)] for index in range(len(capacities))]
    kv.spread(7)
    for index, old in enumerate(before):
        for first, mine, new in zip(before[0], old, both_layers(kv, index), strict=True):
            assert torch.equal(new[:, :7], first[:, :7]) and torch.equal(new[:, 7:], mine[:, 7:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_sequence_is_copied_up_to_the_given_length(dtype, monkeypatch) -> None:
    kv = small((4, 2), [50, 40, 40], monkeypatch, dtype)
    source, target = ([x.clone() for x in both_layers(kv, index)] for index in (2, 0))
    kv.copy(2, 0, 30)
    for old, mine, new in zip(source, target, both_layers(kv, 0), strict=True):
        assert torch.equal(new[:, :30], old[:, :30]) and torch.equal(new[:, 30:], mine[:, 30:])
