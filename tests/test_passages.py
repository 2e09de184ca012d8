"""The built-in task: natural passages, answerable questions, and no passage on both sides."""
import re
from collections import Counter
from itertools import pairwise

import pytest

from sdft.errors import SdftError
from sdft.tasks import load_task
from sdft.tasks.passages import FORM, KINDS, WOMEN, check, passage_records
from sdft.tasks.scorers import normalise


@pytest.fixture(scope="module")
def many():
    return {split: passage_records(split, 2000, seed=3) for split in ("train", "test")}


def test_default_sizes_templates_and_kinds():
    task = load_task("passages")
    assert (len(task.train), len(task.suites[0].items)) == (400, 150)
    assert (task.distill_template, task.train_template, task.epochs) == ("using", "plain", 2)
    assert len(KINDS) >= 6 and all(len(kind.questions) == 5 for kind in KINDS)
    # 400 records hold every kind 50 times, every question of it 10 times
    assert Counter(r.extra["kind"] for r in task.train) == {kind.name: 50 for kind in KINDS}


def test_no_test_passage_or_subject_repeats_a_training_one(many):
    passages = {split: {r.extra["passage"] for r in records} for split, records in many.items()}
    assert len(passages["train"]) == len(passages["test"]) == 2000
    assert not passages["train"] & passages["test"]
    for kind in KINDS:
        first, second = kind.subject.values()
        named = {split: {pair for r in records if r.extra["kind"] == kind.name
                         for pair in [_subject(r.extra["question"], first, second)] if pair}
                 for split, records in many.items()}
        assert named["train"] and named["test"] and not named["train"] & named["test"]


def _subject(question, firsts, seconds):
    pairs = [(a, b) for a, b in pairwise(re.findall(r"\w+", question)) if a in firsts and b in seconds]
    return pairs[0] if pairs else None


def test_the_guarantee_holds_across_seeds():
    train = {r.extra["passage"] for seed in range(5) for r in passage_records("train", 400, seed)}
    test = {r.extra["passage"] for seed in range(5) for r in passage_records("test", 150, seed)}
    assert not train & test


def test_the_answer_is_one_word_that_the_passage_states_once_and_the_question_does_not(many):
    for record in many["train"] + many["test"]:
        answer = normalise(record.response)
        assert len(answer.split()) == 1
        assert normalise(record.extra["passage"]).split().count(answer) == 1, record
        assert answer not in normalise(record.extra["question"]).split(), record
        assert record.instruction.endswith(f"{record.extra['question']} {FORM}")
        assert check(record, f"I think it is {record.response}.") is None
        assert check(record, "I do not know.") == "the answer does not occur"


def test_passages_read_as_english(many):
    for record in many["train"]:
        text = record.extra["passage"]
        assert "{" not in text and "  " not in text
        assert not re.search(r"\b[Aa] [aeioAEIO]", text), text                # "a oboe"
        assert all(s[0].isupper() for s in re.split(r"(?<=[.]) ", text)), text
        if record.extra["kind"] in ("life", "dish"):
            woman = any(name in text.split() for name in WOMEN)
            assert not re.search(r"\b(he|him|his)\b" if woman else r"\b(she|her)\b", text.replace("mother", "")), text


def test_sentences_come_in_many_patterns():
    opened = {kind.name: set() for kind in KINDS}
    for record in passage_records("train", 2000, 0):
        shape = re.sub(r"\b[A-Z]\w+|\d+", "#", record.extra["passage"])
        opened[record.extra["kind"]].add(" ".join(re.findall(r"(?:^|\. )(\S+ \S+)", shape)))
    assert all(len(shapes) > 50 for shapes in opened.values())


def test_a_longer_list_begins_with_the_shorter_and_sizes_do_not_change_the_other_split():
    assert passage_records("train", 40, 1) == passage_records("train", 90, 1)[:40]
    assert passage_records("train", 40, 1) != passage_records("train", 40, 2)
    small, large = load_task("passages", max_records=64), load_task("passages", train_records=500, test_records=200)
    assert small.train == large.train[:64] and small.suites[0].items == large.suites[0].items[:32]
    assert (len(large.train), len(large.suites[0].items)) == (500, 200)
    ids = [r.id for r in large.train] + [i.id for i in large.suites[0].items]
    assert len(set(ids)) == 700


def test_the_score_is_the_check():
    suite = load_task("passages").suites[0]
    item, score = suite.items[0], suite.score
    assert score(item, f"**{item.reference.upper()}**") == 1.0 and score(item, "") == 0.0


def test_a_data_folder_is_refused():
    with pytest.raises(SdftError, match="reads no data.*--task custom"):
        load_task("passages", data="somewhere")


def test_vocabularies_share_no_word_where_a_passage_could_confuse_them():
    for kind in KINDS:
        vocabularies = {id(v): v for v in (*kind.subject.values(), *kind.slots.values())}.values()
        assert all(len(set(v)) == len(v) for v in vocabularies)
