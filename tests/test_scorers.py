"""Answers are extracted and compared as the paper's system does it, without its defects."""
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from sdft.tasks.scorers import answer_occurs, call_occurs, last_integer, normalise, rouge_l


@pytest.mark.parametrize("text, expected", [
    ("The answer is 72.", 72),
    ("She pays $1,200.00 in all.", 1200),
    ("1,234,567", 1234567),
    ("The answer is -5.", -5),
    ("It fell to −12", -12),                # a typographic minus
    ("5-3", 3),                             # subtraction, not minus three
    ("pages 10-12", 12),
    ("(4)-3", 3),
    ("10 20", 20),                          # the published pattern reads 1020
    ("12\n7", 7),                           # and joins these two into something int() rejects
    ("apples: 1, 2, 3", 3),
    ("1,2345", 2345),                       # not a number with thousands separators
    ("= $118 000.", 118000),                # a blank separates thousands, too
    ("1\u202f234\u202f567 people", 1234567),
    ("in 2019 300 people", 300),
    ("1 2345", 2345),
    ("1" * 4301, None),                     # more digits than Python reads
    ("#### 18", 18),
    ("The answer is 2.5", None),
    ("half of it is 7.0", 7),
    ("7.", 7),
    ("no number", None),
    ("", None),
])
def test_last_integer(text, expected):
    assert last_integer(text) == expected


def test_normalise():
    assert normalise("  The Fee:\n1,200 Euros! ") == "the fee 1200 euros"
    assert normalise("1, 200") == "1 200"
    assert normalise("snake_case—dash") == "snake case dash"


@pytest.mark.parametrize("answer, response, expected", [
    ("Lisbon", "The ship left **Lisbon's** harbour.", True),
    ("rose", "They were roses.", False),
    ("1200", "It costs 1,200 euros.", True),
    ("12", "It costs 1,200 euros.", False),
    ("New York", "in new\nyork", True),
    ("cello", "", False),
    ("", "anything", False),
    ("!", "anything!", False),
])
def test_answer_occurs(answer, response, expected):
    assert answer_occurs(answer, response) is expected


@pytest.mark.parametrize("response, expected", [
    ("""log.enable(level='high', to="file")""", True),
    ("""Use this call: `log.enable(level="high",to="file")`.""", True),
    ("""log.enable(level="high",\n   to="file")""", True),
    ("""my log.enable(level="high", to="file") call""", True),
    ("""catalog.enable(level="high", to="file")""", False),      # no word boundary
    ("""log.enable(to="file", level="high")""", False),          # another order is another call
    ("""log.enable("high", "file")""", False),                   # no half credit
    ("""log.enable(level="high", to="file", x=1)""", False),
    ("", False),
])
def test_call_occurs(response, expected):
    assert call_occurs("""log.enable(level="high", to='file')""", response) is expected


def test_a_reference_that_is_no_call_is_never_matched():
    assert not call_occurs("log.enable", "log.enable")


def test_text_around_the_references_call_does_not_matter():
    assert call_occurs("f(a=1)  # sets a", "f(a=1)") and call_occurs("Call: f(a=1).", "f(a=1)")


def test_the_reference_is_taken_literally():
    assert call_occurs("f(x=[1]+2)", "f(x=[1]+2)") and not call_occurs("f(x=1.5)", "f(x=1x5)")


def test_rouge_l_equals_the_package_rouge_score_on_random_texts():
    scorer, draw = RougeScorer(["rougeL"]), random.Random(0)
    words = ["a", "B", "cat", "e-mail", "é", "12", "don't", "", "\n"]
    for _ in range(200):
        one, two = (" ".join(draw.choices(words, k=draw.randint(0, 80))) for _ in range(2))
        assert abs(scorer.score(one, two)["rougeL"].fmeasure - rouge_l(one, two)) < 1e-12


def test_rouge_l_of_known_texts():
    assert rouge_l("the cat sat", "the cat sat") == 1
    assert rouge_l("", "") == rouge_l("a", "") == rouge_l("a b", "c d") == 0
    assert rouge_l("a b c d", "b d") == 2 * 1 * 0.5 / 1.5
