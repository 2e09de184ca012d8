"""ROUGE-L equal to the package rouge-score."""
import random

from rouge_score.rouge_scorer import RougeScorer

from sdft.tasks.rouge import rouge_l


def test_equal_to_rouge_score_on_random_texts():
    scorer, draw = RougeScorer(["rougeL"]), random.Random(0)
    words = ["a", "B", "cat", "e-mail", "é", "12", "don't", "", "\n"]
    for _ in range(200):
        one, two = (" ".join(draw.choices(words, k=draw.randint(0, 80))) for _ in range(2))
        assert abs(scorer.score(one, two)["rougeL"].fmeasure - rouge_l(one, two)) < 1e-12


def test_known_values():
    assert rouge_l("the cat sat", "the cat sat") == 1
    assert rouge_l("", "") == rouge_l("a", "") == rouge_l("a b", "c d") == 0
    assert rouge_l("a b c d", "b d") == 2 * 1 * 0.5 / 1.5
