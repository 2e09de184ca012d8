"""What share of the records takes the rewrite, and what the audit says about it."""
from __future__ import annotations

import pytest

from sdft.data.records import Record
from sdft.distill import Distilled, Rewrite, audit, changed_token_share, effective_share, leave_out, mix
from sdft.errors import SdftError

RECORDS = [Record(f"r{i}", f"question {i}", f"{i}") for i in range(40)]
ROWS = [Distilled(record.id, record.instruction, f"It is {record.response}.", reference=record.response,
                  source="rewrite")
        for record in RECORDS]


def rewritten(mixed: list[Record]) -> set[str]:
    return {record.id for record in mixed if record.response.startswith("It is")}


@pytest.mark.parametrize(("ratio", "count"), [(0, 0), (0.25, 10), (0.5, 20), (1, 40)])
def test_the_nominal_ratio_is_met_exactly(ratio, count):
    mixed = mix(RECORDS, ROWS, ratio)
    assert [record.id for record in mixed] == [record.id for record in RECORDS]
    assert len(rewritten(mixed)) == count
    assert effective_share(RECORDS, mixed) == count / 40


def test_who_takes_it_follows_from_seed_and_id_alone():
    quarter, half = rewritten(mix(RECORDS, ROWS, 0.25, seed=3)), rewritten(mix(RECORDS, ROWS, 0.5, seed=3))
    assert quarter < half
    assert rewritten(mix(RECORDS[::-1], ROWS, 0.5, seed=3)) == half
    assert rewritten(mix(RECORDS, ROWS, 0.5, seed=4)) != half


def test_only_the_response_changes():
    record = Record("a", "x", "y", system="s", history=(("u", "v"),), extra={"kind": "k"})
    mixed, = mix([record], [Distilled("a", "x", "z", reference="y", source="rewrite")])
    assert mixed == Record("a", "x", "z", system="s", history=(("u", "v"),), extra={"kind": "k"})


def test_rows_outside_the_mix_hold_what_is_trained_and_say_so():
    rows = leave_out(ROWS, 0.25, seed=3)
    mixed = mix(RECORDS, ROWS, 0.25, seed=3)
    assert [row.response for row in rows] == [record.response for record in mixed]
    assert mix(RECORDS, rows, 0.25, seed=3) == mixed == mix(RECORDS, rows)
    outside = [row for row in rows if row.source == "original"]
    assert len(outside) == 30 and {row.reason for row in outside} == {"not in the mix"}
    assert all(row == old for row, old in zip(rows, ROWS, strict=True) if row.id in rewritten(mixed))
    rejected = Distilled("r0", "question 0", "0", reference="0", source="original", reason="empty")
    assert leave_out([rejected], 0) == [rejected]              # keeps the reason that it has
    assert leave_out(ROWS) == ROWS
    with pytest.raises(SdftError, match="mix ratio = 2"):
        leave_out(ROWS, 2)


def test_the_effective_share_counts_only_targets_that_differ():
    same = [Distilled(record.id, record.instruction, record.response + "\n", reference=record.response,
                  source="rewrite")
            for record in RECORDS[10:]]
    rows = [*ROWS[:10], *same]
    assert effective_share(RECORDS, mix(RECORDS, rows)) == 0.25


def test_changed_tokens_are_those_that_the_original_does_not_have_in_this_order():
    def share(original, target):
        return changed_token_share([Record("a", "x", original)], [Record("a", "x", target)], str.split)

    assert share("a b c", "a b c") == 0 and share("a b c", "d e") == 1 and share("a", "") == 0
    assert share("a b c", "a x c y") == 0.5 and share("a b", "b a") == 0.5
    two = [Record("a", "x", "a b"), Record("b", "x", "c")]
    assert changed_token_share(two, [Record("b", "x", "c d e f g h"), two[0]], str.split) == 5 / 8


def test_a_ratio_out_of_range_and_missing_rows_are_refused():
    with pytest.raises(SdftError, match="mix ratio = 1.5"):
        mix(RECORDS, ROWS, 1.5)
    with pytest.raises(SdftError, match="10 of 40 records are not among the distilled ones .the first is r30."):
        mix(RECORDS, ROWS[:30])


class Words:
    """Words as tokens."""

    def encode(self, text: str) -> list[str]:
        return text.split()


def test_the_audit_counts_and_shows():
    rows = [*ROWS[:35], *(Distilled(r.id, r.instruction, r.response, reference=r.response, source="original",
                                    reason="unfinished") for r in RECORDS[35:39]),
            Distilled("r39", "question 39", "39", reference="39", source="original", reason="empty")]
    rewrites = [Rewrite(r.id, f"It is {r.response}.", [], "stop", 0) for r in RECORDS[:35]]
    rewrites += [Rewrite(r.id, r.response, [], "length", 0) for r in RECORDS[35:39]] + [
        Rewrite("r39", "", [], "stop", 0)]
    found = audit(RECORDS, rewrites, rows, mix(RECORDS, rows), 1.0, Words())
    assert (found["records"], found["accepted"], found["rejected"]) == (40, 35, 5)
    assert found["reasons"] == {"unfinished": 4, "empty": 1}
    assert (found["nominal_ratio"], found["effective_share"]) == (1.0, 35 / 40)
    assert (found["tokens_original"], found["tokens_distilled"]) == (40, 35 * 3 + 5)
    assert found["changed_token_share"] == pytest.approx(1 - (1 + 4) / (35 * 3 + 5))    # "It is 39.": no word of "39"
    assert found["rouge_l"] == pytest.approx(0.5)          # 1 of 1 words found, 1 of 3 asked for: F1 = 2·1·⅓/(1+⅓)
    assert found["rouge_l_written"] == pytest.approx((35 * 0.5 + 4 * 1 + 0) / 40)
    assert [row["reason"] for row in found["examples"]["rejected"]] == ["unfinished"] * 3 + ["empty"]
    assert found["examples"]["accepted"][0] == {"id": "r0", "instruction": "question 0", "reference": "0",
                                                "rewrite": "It is 0.", "reason": ""}
