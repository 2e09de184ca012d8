"""Which share of the records takes the rewrite, and what the audit says about it."""
from __future__ import annotations

from dataclasses import replace

import pytest

from sdft.data.records import Record
from sdft.distill import Distilled, Rewrite, audit, changed_token_share, effective_share, mix
from sdft.errors import SdftError

RECORDS = [Record(f"r{i}", f"question {i}", f"{i}") for i in range(40)]


def accepted(record: Record, response: str) -> Distilled:
    return Distilled(record.id, record.instruction, response, reference=record.response, source="rewrite")


def rejected(record: Record, reason: str) -> Distilled:
    return Distilled(record.id, record.instruction, record.response, reference=record.response, source="original",
                     reason=reason)


DISTILLED = [accepted(record, f"It is {record.response}.") for record in RECORDS]


def rewritten(mixed: list[Distilled]) -> set[str]:
    return {record.id for record in mixed if record.response.startswith("It is")}


@pytest.mark.parametrize(("ratio", "count"), [(0, 0), (0.25, 10), (0.5, 20), (1, 40)])
def test_the_nominal_ratio_is_met_exactly(ratio, count):
    mixed = mix(DISTILLED, ratio)
    assert [record.id for record in mixed] == [record.id for record in RECORDS]
    assert len(rewritten(mixed)) == count
    assert effective_share(mixed) == count / 40


def test_the_selection_follows_from_seed_and_id_alone():
    quarter, half = rewritten(mix(DISTILLED, 0.25, seed=3)), rewritten(mix(DISTILLED, 0.5, seed=3))
    assert quarter < half
    assert rewritten(mix(DISTILLED[::-1], 0.5, seed=3)) == half
    assert rewritten(mix(DISTILLED, 0.5, seed=4)) != half


def test_outside_the_mix_the_original_answer_returns_and_nothing_else_changes():
    record = Distilled("a", "x", "z", "s", (("u", "v"),), {"kind": "k"}, reference="y", source="rewrite")
    assert mix([record]) == [record]
    assert mix([record], 0) == [replace(record, response="y", source="original", reason="not in the mix")]
    mixed = mix(DISTILLED, 0.25, seed=3)
    assert mix(mixed, 0.25, seed=3) == mixed == mix(mixed)
    outside = [record for record in mixed if record.source == "original"]
    assert len(outside) == 30 and {record.reason for record in outside} == {"not in the mix"}
    assert all(record.response == record.reference for record in outside)
    assert all(new == old for new, old in zip(mixed, DISTILLED, strict=True) if new.id in rewritten(mixed))
    empty = rejected(RECORDS[0], "empty")
    assert mix([empty], 0) == [empty]              # keeps its reason
    assert mix(DISTILLED) == DISTILLED


@pytest.mark.parametrize("ratio", [1.5, 2, -0.1])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(SdftError, match=f"mix ratio = {ratio}"):
        mix(DISTILLED, ratio)


def test_the_effective_share_counts_only_targets_that_differ():
    same = [accepted(record, record.response + "\n") for record in RECORDS[10:]]
    assert effective_share([*DISTILLED[:10], *same]) == 0.25


def test_changed_tokens_are_those_that_the_original_does_not_have_in_this_order():
    def share(*pairs):
        return changed_token_share([accepted(Record("a", "x", original), target) for original, target in pairs],
                                   str.split)

    assert share(("a b c", "a b c")) == 0 and share(("a b c", "d e")) == 1 and share(("a", "")) == 0
    assert share(("a b c", "a x c y")) == 0.5 and share(("a b", "b a")) == 0.5
    assert share(("a b", "a b"), ("c", "c d e f g h")) == 5 / 8


class Words:
    """Words as tokens."""

    def encode(self, text: str) -> list[str]:
        return text.split()


def test_the_audit_counts_and_shows():
    distilled = [*DISTILLED[:35], *(rejected(record, "unfinished") for record in RECORDS[35:39]),
                 rejected(RECORDS[39], "empty")]
    rewrites = [Rewrite(r.id, f"It is {r.response}.", [], "stop", 0) for r in RECORDS[:35]]
    rewrites += [Rewrite(r.id, r.response, [], "length", 0) for r in RECORDS[35:39]]
    rewrites += [Rewrite("r39", "", [], "stop", 0)]
    audited = audit(rewrites, distilled, 1.0, Words())
    assert (audited["records"], audited["accepted"], audited["rejected"]) == (40, 35, 5)
    assert audited["reasons"] == {"unfinished": 4, "empty": 1}
    assert (audited["nominal_ratio"], audited["effective_share"]) == (1.0, 35 / 40)
    assert (audited["tokens_original"], audited["tokens_distilled"]) == (40, 35 * 3 + 5)
    assert audited["changed_token_share"] == pytest.approx(1 - (1 + 4) / (35 * 3 + 5))    # "It is 39.": no word of "39"
    assert audited["rouge_l"] == pytest.approx(0.5)        # recall 1 of 1 word, precision 1 of 3: F1 = 2·1·⅓/(1+⅓)
    assert audited["rouge_l_written"] == pytest.approx((35 * 0.5 + 4 * 1 + 0) / 40)
    assert [example["reason"] for example in audited["examples"]["rejected"]] == ["unfinished"] * 3 + ["empty"]
    assert audited["examples"]["accepted"][0] == {"id": "r0", "instruction": "question 0", "reference": "0",
                                                  "rewrite": "It is 0.", "reason": ""}
