"""The cache's rows, and a step's attention over them, against a loop over single tokens."""
from __future__ import annotations

from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch

from sdft.generation import cache
from sdft.generation.cache import DecodeAttention, KVCache, PrefillAttention, cheapest_runs
from sdft.kernels.cached_attention import cached_attention_plain


def small(heads: tuple[int, int], capacities: list[int], monkeypatch, dtype: torch.dtype = torch.float64,
          group: int = 2) -> KVCache:
    """A cache of two layers, in groups of two rows unless told otherwise, with something in every slot."""
    monkeypatch.setattr(cache, "GROUP", group)
    monkeypatch.setattr(cache, "multiplies_bfloat16", lambda: True)         # heads lie as one in bf16, wherever this runs
    config = SimpleNamespace(num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=4, num_hidden_layers=2)
    made, generator = KVCache(config, capacities, dtype, torch.device("cpu")), torch.Generator().manual_seed(0)
    for array in (*made.keys, *made.values):
        array.normal_(generator=generator)
    return made


def row_of_both_layers(kv: KVCache, row: int) -> list[torch.Tensor]:
    """The row's keys and values, views."""
    return [x for layer in (0, 1) for x in kv.row(row, layer)]


@pytest.mark.parametrize("counts", [None, [1, 1, 1, 1, 1], [1, 3, 2, 1, 4]])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("group, run, parts", [(2, 200, 3), (4, 10, 4)])    # whole groups; runs of 1, 2, 1 rows, and of 1
def test_a_step_attends_as_its_tokens_would_one_by_one(group, run, parts, heads, counts, monkeypatch) -> None:
    monkeypatch.setattr(cache, "RUN", run)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    kv, each = small(heads, [90, 70, 40, 40, 33, 20], monkeypatch, group=group), counts or [1] * 5
    starts = [80, 20, 20, 5, 28]
    rows = [row for row, count in enumerate(each) for _ in range(count)]
    positions = torch.tensor([start + i for start, count in zip(starts, each) for i in range(count)])
    q, k, v = (torch.randn(len(rows), n, 4, dtype=torch.float64) for n in (heads[0], heads[1], heads[1]))
    ends = [start + count for start, count in zip(starts, each)]
    attention = DecodeAttention(kv, positions, ends, counts)
    assert len(attention.parts) == parts
    o = attention(1, q, k, v)
    for token, (row, position) in enumerate(zip(rows, positions.tolist())):
        keys, values = kv.row(row, 1)
        assert torch.equal(keys[:, position], k[token]) and torch.equal(values[:, position], v[token])
        alone = cached_attention_plain(q[None, None, token], keys[None], values[None], positions[None, None, token])[0, 0]
        # fp64: only the order of additions differs.
        torch.testing.assert_close(o[token], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("counts", [None, [1, 3, 2, 1, 3]])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (6, 3)])
def test_heads_that_lie_as_one_attend_as_each_alone(heads, counts, monkeypatch) -> None:
    each, starts, generator = counts or [1] * 5, [80, 5, 31, 0, 20], torch.Generator().manual_seed(1)
    rows = [row for row, count in enumerate(each) for _ in range(count)]
    positions = torch.tensor([start + i for start, count in zip(starts, each) for i in range(count)])
    q, k, v = (torch.randn(len(rows), n, 4, generator=generator).bfloat16() for n in (heads[0], heads[1], heads[1]))
    ends, found = [start + count for start, count in zip(starts, each)], []
    for queries in (cache.QUERIES, 0):
        monkeypatch.setattr(cache, "QUERIES", queries)
        kv = small(heads, [90, 70, 40, 40, 33, 20], monkeypatch, torch.bfloat16)
        assert kv.merged == (heads[1] if queries else 1)
        for row in range(6):
            for which, array in enumerate(kv.row(row, 1)):
                array.copy_(torch.randn(array.shape, generator=torch.Generator().manual_seed(2 * row + which)))
        found.append(DecodeAttention(kv, positions, ends, counts)(1, q, k, v))
    exact = torch.stack([cached_attention_plain(
        q[None, None, token].double(), *(x[None].double() for x in kv.row(row, 1)), positions[None, None, token])[0, 0]
        for token, row in enumerate(rows)])
    wide, alone = ((o.double() - exact).abs().max() for o in found)
    assert wide <= 1.5 * alone + 1e-12              # both round alike; the factor allows for luck in single roundings


@pytest.mark.parametrize("prefix", [0, 7])
def test_prompts_attend_and_are_stored_alike_where_heads_lie_as_one(prefix: int, monkeypatch) -> None:
    generator, found = torch.Generator().manual_seed(1), []
    q, k, v = (torch.randn(63, n, 4, generator=generator).bfloat16() for n in (6, 2, 2))
    for queries in (cache.QUERIES, 0):
        monkeypatch.setattr(cache, "QUERIES", queries)
        kv = small((6, 2), [70, 70, 40, 40, 20], monkeypatch, torch.bfloat16)
        for row in range(5):
            for which, array in enumerate(kv.row(row, 1)):
                array.copy_(torch.randn(array.shape, generator=torch.Generator().manual_seed(2 * row + which)))
        o = PrefillAttention(kv, [0, 2, 3, 4], [40, 5, 12, 6], prefix)(1, q, k, v)
        found.append([o, *(x for row in range(5) for x in kv.row(row, 1))])
    for wide, alone in zip(*found, strict=True):        # the same numbers go into the same products
        torch.testing.assert_close(wide, alone, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_step_writes_nothing_else(dtype, monkeypatch) -> None:
    kv = small((6, 2), [90, 70, 40], monkeypatch, dtype)
    before = [kv.keys[0].clone(), kv.values[0].clone()]
    new = torch.full((4, 2, 4), 9.0, dtype=dtype)
    DecodeAttention(kv, torch.tensor([3, 4, 6, 0]), [5, 7, 1], [2, 1, 1])(0, torch.zeros(4, 6, 4, dtype=dtype), new, new)
    for old, now in zip(before, (kv.keys[0], kv.values[0])):
        changed = (old != now).any(1)
        assert changed.sum() == 4 * kv.heads and (now[changed] == 9).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("capacities", [[50], [50, 40, 40, 20, 20]])
@pytest.mark.parametrize("heads", [(4, 2), (4, 1)])
def test_the_prefix_comes_into_every_row_and_nothing_else_changes(heads, capacities, dtype, monkeypatch) -> None:
    kv = small(heads, capacities, monkeypatch, dtype)
    rows = [[x.clone() for x in row_of_both_layers(kv, row)] for row in range(len(capacities))]
    kv.spread(7)
    for row, old in enumerate(rows):
        for first, mine, new in zip(rows[0], old, row_of_both_layers(kv, row), strict=True):
            assert torch.equal(new[:, :7], first[:, :7]) and torch.equal(new[:, 7:], mine[:, 7:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_row_is_copied_as_far_as_it_is_asked(dtype, monkeypatch) -> None:
    kv = small((4, 2), [50, 40, 40], monkeypatch, dtype)
    source, target = ([x.clone() for x in row_of_both_layers(kv, row)] for row in (2, 0))
    kv.copy(2, 0, 30)
    for old, mine, new in zip(source, target, row_of_both_layers(kv, 0), strict=True):
        assert torch.equal(new[:, :30], old[:, :30]) and torch.equal(new[:, 30:], mine[:, 30:])


@pytest.mark.parametrize("run", [0, 30, 200])
@pytest.mark.parametrize("heads, threads", [(1, 1), (1, 2), (1, 3), (3, 2)])
def test_rows_part_into_the_cheapest_runs(heads: int, threads: int, run: int, monkeypatch) -> None:
    monkeypatch.setattr(cache, "RUN", run)

    def cost(parts) -> int:
        return sum(run * heads + -(-len(ends[part]) * heads // threads) * max(ends[part]) for part in parts)

    for seed in range(5):
        ends = torch.randint(1, 400, (11,), generator=torch.Generator().manual_seed(seed)).tolist()
        found, every = cheapest_runs(ends, 6, heads, threads), []
        for cuts in product([False, True], repeat=10):                      # every way to part them that parts 6 from 5
            places = [0, *(place for place, cut in enumerate(cuts, 1) if cut), 11]
            if 6 in places:
                every.append([slice(first, behind) for first, behind in pairwise(places)])
        assert found in every and cost(found) == min(map(cost, every))
