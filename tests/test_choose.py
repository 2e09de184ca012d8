"""Which rewrites are accepted: the paper's own checks, and those that its system lacks."""
from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from tiny_chat import byte_tokenizer

from sdft.data.chat import training_example
from sdft.data.records import Record, read_records
from sdft.data.templates import get_template
from sdft.distill import Distilled, Limits, Rewrite, choose, read_distilled, write_distilled
from sdft.distill.filters import repeated_share, words
from sdft.errors import SdftError

RECORD = Record("a", "What is the capital of Norway?", "Oslo")


def rewrite(text: str, finish: str = "stop") -> Rewrite:
    return Rewrite("a", text, [], finish, 0)


def reason(text: str, finish: str = "stop", record: Record = RECORD, **check) -> str:
    chosen, = choose([record], [rewrite(text, finish)], **check)
    assert (chosen.source == "rewrite") == (chosen.reason == "")
    assert chosen.response == (text.strip() if chosen.source == "rewrite" else record.response)
    return chosen.reason


def test_an_accepted_rewrite_takes_the_place_of_the_original():
    chosen, = choose([RECORD], [rewrite(" The capital is Oslo.\n")])
    assert chosen == Distilled("a", RECORD.instruction, "The capital is Oslo.", reference="Oslo", source="rewrite")


def test_a_chosen_answer_is_a_record_with_all_that_the_original_has():
    record = Record("a", "And Sweden?", "Stockholm", "Be brief.", (("Norway?", "Oslo"),), {"topic": "capitals"})
    chosen, = choose([record], [rewrite("It is Stockholm.")])
    assert isinstance(chosen, Record) and chosen.reference == "Stockholm"
    assert [getattr(chosen, field.name) for field in fields(Record)] == [
        "a", "And Sweden?", "It is Stockholm.", record.system, record.history, record.extra]


@pytest.mark.parametrize("text", [
    "As the Reference Answer says, it is Oslo.", "Here is YOUR RESPONSE: Oslo", "My response: Oslo.",
    "Write your own response. It is Oslo.", "It is Oslo. Now it's your turn!", "Your turn: Oslo",
])
def test_the_papers_ban_list_in_any_case_anywhere(text):
    assert reason(text).startswith("tell-tale words")


@pytest.mark.parametrize("text", ["Oslo. Your turn", "your turn: it is Oslo", "I will reference the answer: Oslo"])
def test_texts_outside_the_papers_ban_list_pass(text):
    assert reason(text) == ""


def test_the_tasks_check_decides_with_its_own_reason_on_the_text_and_the_record():
    def check(record: Record, text: str) -> str | None:
        return None if record.response in text else "wrong answer"

    assert reason("It is Oslo.", check=check) == ""
    assert reason("It is Bergen.", check=check) == "wrong answer"


def test_unfinished_empty_or_missing_rewrites_are_not_trained_on():
    assert reason("The capital of Norway is", finish="length") == "unfinished"
    assert reason(" \n") == "empty"
    chosen, = choose([RECORD], [])
    assert (chosen.response, chosen.source, chosen.reason) == ("Oslo", "original", "no rewrite")


def test_an_endless_repetition_is_rejected_and_ordinary_prose_is_not():
    assert reason("Oslo is the capital. " * 12) == "repeats itself"
    assert reason("奥斯陆是挪威的首都" * 12) == "repeats itself"
    prose = ("The capital of Norway is Oslo. It lies at the head of a fjord in the south-east of the country, and it "
             "is also the largest city of the country. The capital was moved there from Bergen around the year 1300.")
    assert reason(prose) == ""
    song = Record("a", "Sing.", "Row, row, row your boat. " * 8)
    assert reason(song.response, record=song) == ""


def test_repetition_is_one_minus_distinct_over_all_4_grams():
    assert repeated_share("a b c d e f g".split()) == 0
    assert repeated_share("a b c d a b c d".split()) == pytest.approx(1 - 4 / 5)
    assert repeated_share(["a"] * 10) == pytest.approx(1 - 1 / 7)
    assert repeated_share(["a", "b"]) == 0


def test_far_too_long_means_both_against_the_reference_and_in_itself():
    long = " ".join(f"word{i}" for i in range(301))
    assert reason(long) == "far too long"
    assert reason(" ".join(f"word{i}" for i in range(300))) == ""
    assert reason(", ".join(f"word{i}" for i in range(300))) == ""                      # marks are no words
    essay = Record("a", "Write.", " ".join(f"other{i}" for i in range(100)))
    assert reason(long, record=essay) == ""
    assert choose([RECORD], [rewrite(long)], limits=Limits(max_words=1000))[0].reason == ""


@pytest.mark.parametrize("heading", ["### Instruction:", "### Reference Answer:", "### Response:", "## response :"])
def test_a_rewrite_that_continues_with_the_prompts_headings_is_rejected(heading):
    assert reason(f"Oslo is it.\n\n{heading}\nWhat else?") in ("headings of the prompt",
                                                                'tell-tale words "reference answer"')
    assert reason("Oslo.\n\n### The response was quick") == ""


def test_words_counts_marks_and_ideographs_one_by_one():
    assert words("It's Oslo, 奥斯陆!") == ["It", "'", "s", "Oslo", ",", "奥", "斯", "陆", "!"]


def test_rewrites_are_joined_by_id_not_by_position():
    both = [Record("a", "?", "one"), Record("b", "?", "two")]
    distilled = choose(both, [Rewrite("b", "It is two.", [], "stop", 0), Rewrite("a", "It is one.", [], "stop", 0)])
    assert [(chosen.id, chosen.response) for chosen in distilled] == [("a", "It is one."), ("b", "It is two.")]


def test_impossible_limits_are_refused():
    with pytest.raises(SdftError, match="max_repeated_ngrams in"):
        Limits(max_repeated_ngrams=0)


def test_the_distilled_file_holds_everything_but_extra_columns(tmp_path):
    distilled = [Distilled("a", "x\u2028y", "It is “Oslo”.\nYes.", reference="Oslo", source="rewrite"),
                 Distilled("b", "x", "y", "Be brief.", (("u", "v"), ("w", "")), reference="y", source="original",
                           reason="empty")]
    write_distilled(tmp_path / "distilled.jsonl", [replace(record, extra={"kind": "x"}) for record in distilled])
    assert read_distilled(tmp_path / "distilled.jsonl") == distilled
    first, second = (json.loads(line) for line in (tmp_path / "distilled.jsonl").read_text().split("\n")[:2])
    assert list(first) == ["id", "instruction", "reference", "response", "source", "reason"]
    assert second["system"] == "Be brief." and second["history"] == [["u", "v"], ["w", ""]]


def test_training_on_the_file_is_training_on_what_the_run_trains_on(tmp_path):
    talk = Record("b", "And of Sweden?", "Stockholm", "Be brief.", (("Of Norway?", "Oslo"), ("Sure?", "Yes")))
    distilled = choose([RECORD, talk], [rewrite("It is Oslo."), Rewrite("b", "It is Stockholm.", [], "stop", 0)])
    write_distilled(tmp_path / "distilled.jsonl", distilled)
    for template in ("plain", "alpaca", "gsm8k"):
        from_file, from_run = (
            [training_example(byte_tokenizer(), record, get_template(template)) for record in records]
            for records in (read_records(tmp_path / "distilled.jsonl"), distilled))
        assert from_file == from_run
    text = byte_tokenizer().decode(from_file[1].tokens, skip_special=False)
    assert all(part in text for part in ("Be brief.", "Of Norway?", "Sure?", "It is Stockholm."))


def test_a_damaged_distilled_file_is_reported_with_its_line(tmp_path):
    path = tmp_path / "distilled.jsonl"
    write_distilled(path, [Distilled("a", "x", "y", reference="y", source="original", reason="empty")])
    line = path.read_text()
    path.write_text(line + line.replace("}", ', "history": ["u"]}'))
    with pytest.raises(SdftError, match="line 2: expected history as"):
        read_distilled(path)
    path.write_text(line + '{"id": "b"}\n')
    with pytest.raises(SdftError, match="line 2: expected the texts id, instruction"):
        read_distilled(path)
    with pytest.raises(SdftError, match="no such file; make it with"):
        read_distilled(tmp_path / "none.jsonl")
