"""Packing, its labels, the order of an epoch, and skipped examples."""
from __future__ import annotations

import pytest
import torch

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.model.batches import fingerprint, may_share, pack, pack_within, trainable
from sdft.train.order import hold_out, step_batches, steps_per_epoch

A = Example("a", [10, 11, 12, 13, 2], [False, False, True, True, True])
B = Example("b", [20, 21, 2], [False, True, True])


def test_labels_are_the_next_tokens_and_never_cross_documents():
    batch = pack([A, B])
    assert batch.tokens.tolist() == [10, 11, 12, 13, 2, 20, 21, 2]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.labels.tolist() == [-100, 12, 13, 2, -100, 21, 2, -100]
    assert batch.rows.tolist() == [1, 2, 3, 5, 6] and batch.targets == 5
    assert batch.lengths == [5, 3] and batch.ids == ["a", "b"]


def test_a_first_token_is_never_a_target():
    everything = Example("c", [5, 6, 7], [True, True, True])
    assert pack([B, everything]).labels.tolist() == [21, 2, -100, 6, 7, -100]


def beginning_with(*parts: tuple[int, ...], targets: int = 2, id: str = "") -> Example:
    """Return an example with the tokens of `parts`, the last `targets` of which are target tokens."""
    tokens = [token for part in parts for token in part]
    return Example(id, tokens, [False] * (len(tokens) - targets) + [True] * targets)


SYSTEM, ASK, TELL = tuple(range(100, 120)), tuple(range(200, 218)), tuple(range(300, 316))


def test_a_common_prefix_is_stored_once_and_every_document_reads_as_before():
    """Two of the four share more than the system text; one differs within its first tokens, one shares too few."""
    examples = [beginning_with(SYSTEM, ASK, (1, 2)), beginning_with(SYSTEM, TELL, (3, 4)),
                beginning_with((9,), SYSTEM, (5, 6)), beginning_with(SYSTEM, ASK, (1, 7, 8), targets=3)]
    batch = pack(examples, share=True)
    # The last token of SYSTEM ASK has a label (1, a target token), so all but it are shared.
    assert batch.segments == [20, 17, 3, 4, 18, 23] and batch.parents == [-1, 0, 1, 1, 0, -1]
    assert len(batch.tokens) == sum(batch.segments) == 85
    assert batch.lengths == [40, 38, 23, 41]
    begins = [sum(batch.segments[:i]) for i in range(6)]

    def read(segment: int) -> list[tuple[int, int]]:
        """Return (position, token) of the whole document that ends with `segment`."""
        before = read(batch.parents[segment]) if batch.parents[segment] >= 0 else []
        rows = slice(begins[segment], begins[segment] + batch.segments[segment])
        return before + list(zip(batch.positions[rows].tolist(), batch.tokens[rows].tolist(), strict=True))

    leaves = {0: 2, 1: 4, 2: 5, 3: 3}                               # in the order in which the branches begin
    for index, segment in leaves.items():
        assert read(segment) == list(enumerate(examples[index].tokens))
    assert batch.counts == [2, 2, 2, 3] and batch.targets == 9
    targets = [token for example in examples
               for token, target in zip(example.tokens, example.mask, strict=True) if target]
    assert batch.labels[batch.rows].tolist() == targets             # document by document, in the order of `examples`


def test_a_prefix_of_targets_or_few_tokens_is_not_shared():
    conversation = beginning_with(SYSTEM, ASK, targets=30)          # targets from the 9th token on
    assert pack([conversation, conversation], share=True).parents == [-1, -1]
    short = [beginning_with(SYSTEM[:12], (n, n)) for n in (1, 2)]
    assert pack(short, share=True).parents == [-1, -1]
    assert pack(short).parents == [-1, -1] and pack([beginning_with(SYSTEM, (1, 2))] * 2).parents == [-1, -1]


def test_batches_with_shared_prefixes_hold_more_and_stay_within_the_limit():
    examples = [beginning_with(SYSTEM, ASK, (n, n), id=str(n)) for n in range(8)]
    for limit in (60, 100, 200):
        shared, separate = pack_within(examples, limit, share=True), pack_within(examples, limit)
        assert [id for batch in shared for id in batch.ids] == [str(n) for n in range(8)]
        assert all(len(batch.tokens) <= limit for batch in shared) and len(shared) < len(separate)


def test_prefixes_are_shared_only_on_the_cpu_and_without_dropout():
    assert may_share("cpu") and may_share(torch.device("cpu"), dropout=0.0)
    assert not may_share("cpu", dropout=0.1) and not may_share("cuda:1")


def test_padding_leaves_a_batch_as_it_was_and_has_no_labels():
    batch = pack([A, B])
    filled = batch.filled()
    assert len(filled.tokens) == len(filled.positions) == len(filled.labels) == len(filled.rows) == 64
    assert filled.tokens[:8].equal(batch.tokens) and filled.positions.tolist() == [*range(5), *range(3), *range(56)]
    assert filled.labels[8:].eq(-100).all() and filled.rows[:5].equal(batch.rows) and filled.rows[5:].eq(63).all()
    assert filled.segments == [5, 3, 56] and filled.parents == [-1, -1, -1]
    assert (filled.lengths, filled.counts, filled.ids) == (batch.lengths, batch.counts, batch.ids)
    exact = pack([Example("c", list(range(64)), [False] * 62 + [True] * 2)])
    assert exact.filled().segments == [64] and len(exact.filled().rows) == 64


def test_batches_hold_whole_examples_in_order_within_the_limit():
    assert [batch.ids for batch in pack_within([A, B, A, B, B], 8)] == [["a", "b"], ["a", "b"], ["b"]]
    assert [batch.ids for batch in pack_within([B, A, B], 4)] == [["b"], ["a"], ["b"]]       # a is longer: alone


def test_each_epoch_takes_every_record_once_in_its_own_order():
    records = [Example(str(i), [1, 2], [False, True]) for i in range(10)]
    assert steps_per_epoch(records, 4) == 3

    def epoch(number, seed=0):
        steps = range(3 * number, 3 * number + 3)
        return [name for step in steps for batch in step_batches(records, step, 4, 100, seed) for name in batch.ids]

    assert sorted(epoch(0)) == sorted(epoch(1)) == sorted(str(i) for i in range(10))
    assert epoch(0) != epoch(1) and epoch(0) != epoch(0, seed=1) and epoch(0) == epoch(0)


def test_examples_too_long_or_without_targets_are_skipped_and_counted():
    silent = Example("s", [1, 2, 3], [True, False, False])
    kept, left_out = trainable([A, silent, B, silent], longest=4)
    assert kept == [B]
    assert left_out == {"longer than 4 tokens": 1, "no target token": 2}
    assert trainable([A, B], longest=5) == ([A, B], {})
    with pytest.raises(SdftError, match="got 2 .2 no target token"):
        trainable([silent, silent], longest=4)


def test_held_out_records_are_not_trained_on():
    records = [Example(str(i), [1, 2], [False, True]) for i in range(10)]
    train, held = hold_out(records, 0.25, seed=3)
    assert len(held) == 2 and sorted(e.id for e in train + held) == sorted(e.id for e in records)
    assert hold_out(records, 0.0, seed=3) == (records, [])
    with pytest.raises(SdftError, match="leaves none"):
        hold_out(records[:1], 0.5, seed=3)


def test_the_fingerprint_sees_every_token_mask_and_id():
    other = [Example("b", [20, 22, 2], B.mask), Example("b", B.tokens, [False, False, True]),
             Example("x", B.tokens, B.mask)]
    assert len({fingerprint([A, b]) for b in (B, *other)} | {fingerprint([B, A])}) == 5
