"""Brevity passes no item of `elaborate`, good answers do, prompts say what is checked, and every prefix is balanced."""
import math
import re
from collections import Counter

import pytest

from sdft.tasks import elaborate_suite
from sdft.tasks.demands import ONE_WORD_ANSWERS
from sdft.tasks.elaborate import KINDS, score

SUITE = elaborate_suite()


def _prompt(item):
    return item.messages[-1]["content"]


def test_there_are_enough_items_and_all_differ():
    assert len(SUITE.items) >= 480 and len(KINDS) >= 12 and SUITE.name == "elaborate"
    assert len({item.id for item in SUITE.items}) == len({_prompt(item) for item in SUITE.items}) == len(SUITE.items)
    assert set(Counter(item.kind for item in SUITE.items).values()) == {40}
    assert all(re.fullmatch(rf"elaborate-{item.kind}-\d\d", item.id) for item in SUITE.items)


def test_the_suite_is_the_same_each_time():
    assert elaborate_suite().items == SUITE.items


@pytest.mark.parametrize("item", SUITE.items, ids=lambda item: item.id)
def test_no_answer_of_one_word_and_not_the_prompt_itself_passes(item):
    assert len(ONE_WORD_ANSWERS) == len(set(ONE_WORD_ANSWERS)) == 50
    for answer in ["", " \n", *ONE_WORD_ANSWERS, _prompt(item), *_prompt(item).split()]:
        assert SUITE.score(item, answer) == 0, answer
    assert not item.brief


def test_every_prefix_is_balanced_over_kinds_and_topics():
    kinds, topics = Counter(dict.fromkeys(KINDS, 0)), Counter(dict.fromkeys(range(40), 0))
    for item in SUITE.items:
        kinds[item.kind] += 1
        topics[int(item.id[-2:])] += 1
        assert max(kinds.values()) - min(kinds.values()) <= 1
        assert max(topics.values()) - min(topics.values()) <= 1
