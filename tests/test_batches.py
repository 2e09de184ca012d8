"""Packing, its labels, the order of an epoch, and what is left out."""
from __future__ import annotations

import pytest

from sdft.errors import SdftError
from sdft.text.chat import Example
from sdft.train.batches import fingerprint, hold_out, pack, pack_within, step_batches, steps_per_epoch, trainable

A = Example("a", [10, 11, 12, 13, 2], [False, False, True, True, True])
B = Example("b", [20, 21, 2], [False, True, True])


def test_labels_are_the_next_tokens_and_never_cross_documents():
    batch = pack([A, B])
    assert batch.tokens.tolist() == [10, 11, 12, 13, 2, 20, 21, 2]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.labels.tolist() == [-100, 12, 13, 2, -100, 21, 2, -100]
    assert batch.rows.tolist() == [1, 2, 3, 5, 6] and batch.targets == 5
    assert batch.lengths == [5, 3] and batch.ids == ["a", "b"]


def test_a_first_token_that_is_marked_cannot_be_learned():
    everything = Example("c", [5, 6, 7], [True, True, True])
    assert pack([B, everything]).labels.tolist() == [21, 2, -100, 6, 7, -100]


def test_packs_hold_whole_examples_in_order_within_the_limit():
    assert [batch.ids for batch in pack_within([A, B, A, B, B], 8)] == [["a", "b"], ["a", "b"], ["b"]]
    assert [batch.ids for batch in pack_within([B, A, B], 4)] == [["b"], ["a"], ["b"]]       # a is longer: alone


def test_an_epoch_takes_every_record_once_in_an_order_of_its_own():
    records = [Example(str(i), [1, 2], [False, True]) for i in range(10)]
    assert steps_per_epoch(records, 4) == 3

    def epoch(number, seed=0):
        steps = range(3 * number, 3 * number + 3)
        return [name for step in steps for batch in step_batches(records, step, 4, 100, seed) for name in batch.ids]

    assert sorted(epoch(0)) == sorted(epoch(1)) == sorted(str(i) for i in range(10))
    assert epoch(0) != epoch(1) and epoch(0) != epoch(0, seed=1) and epoch(0) == epoch(0)


def test_what_does_not_fit_or_teaches_nothing_is_left_out_and_counted():
    silent = Example("s", [1, 2, 3], [True, False, False])
    kept, left_out = trainable([A, silent, B, silent], longest=4)
    assert kept == [B]
    assert left_out == {"longer than 4 tokens": 1, "no token to learn": 2}
    assert trainable([A, B], longest=5) == ([A, B], {})
    with pytest.raises(SdftError, match="got 2 .2 no token to learn"):
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
