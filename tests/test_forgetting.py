"""Forgetting: made-up journals with known flips give exactly these, and a run's numbers are those of its journals."""
from __future__ import annotations

import json
from contextlib import nullcontext
from math import comb, sqrt
from pathlib import Path

import pytest
from small_run import options, save_tiny_model
from tiny_chat import byte_tokenizer, tiny_chat_model

from sdft.cli import main
from sdft.errors import SdftError
from sdft.experiment.context import Context
from sdft.generation import Sampling
from sdft.measure.forgetting import (
    adjust_together,
    compare_forgetting,
    compare_long_answers,
    long_answers,
    suite_result,
)
from sdft.measure.statistics import wilson
from sdft.tasks.base import Item, Suite


def lines(scores: str, kinds: str = "") -> list[dict]:
    """A line per digit of `scores`, of the kind at its place."""
    return [{"id": f"i{n}", "kind": kinds[n : n + 1], "prompt": "", "output": "", "tokens": 1, "finish": "stop",
             "score": float(score)} for n, score in enumerate(scores)]


def suite(n: int, **fields) -> Suite:
    return Suite("made-up", [Item(f"i{k}", [], **{name: values[k] for name, values in fields.items()})
                             for k in range(n)], lambda item, output: 0.0, "accuracy", 1)


BASE, SFT, SDFT = "1111100000", "0001100111", "1100100001"


def test_flips_that_are_known():
    base = lines(BASE, "aaaaabbbbb")
    found = suite_result(suite(10), lines(SFT, "aaaaabbbbb")[::-1], base)
    assert (found["solved_by_base"], found["lost"], found["gained"]) == (5, 3, 3)
    assert found["mean"] == 0.5                                         # as of the base model: the mean shows nothing
    assert (found["forgetting"]["share"], found["forgetting"]["n"]) == (0.6, 5)
    assert (found["backward_transfer"]["share"], found["backward_transfer"]["n"]) == (0.6, 5)
    assert found["by_kind"] == {"a": {"solved_by_base": 5, "lost": 3, "gained": 0, "mean": 0.4, "n": 5},
                                "b": {"solved_by_base": 0, "lost": 0, "gained": 3, "mean": 0.6, "n": 5}}


def test_the_base_model_itself_lost_and_gained_nothing():
    base = lines(BASE)
    whole = suite_result(suite(10, brief=[True, False] * 5), base, base)
    for found in (whole, *whole["parts"].values()):
        assert (found["lost"], found["gained"]) == (0, 0)
        assert not {"forgetting", "backward_transfer", "against_base"} & found.keys()
    assert whole["solved_by_base"] == 5


def test_shares_of_nothing_are_absent():
    assert "forgetting" not in suite_result(suite(2), lines("11"), lines("00"))
    assert "backward_transfer" not in suite_result(suite(2), lines("11"), lines("11"))


def test_a_score_of_a_half_solves_an_item():
    base, arm = lines("11"), [{**line, "score": score} for line, score in zip(lines("00"), (0.5, 0.49), strict=True)]
    assert suite_result(suite(2), arm, base)["lost"] == 1


def test_answers_without_a_score_are_refused():
    with pytest.raises(SdftError, match="scored answers"):
        compare_forgetting([{**line, "score": None} for line in lines("1")], lines("1"), lines("1"))


def test_two_arms_are_compared_on_the_items_that_the_base_model_solves():
    found = compare_forgetting(lines(SDFT), lines(SFT), lines(BASE))
    # of i0 … i4, sdft lost 2 and 3, sft 0, 1 and 2: they disagree on 0, 1 and 3
    assert found["difference"] == pytest.approx(2 / 5 - 3 / 5) and found["n"] == 5
    assert found["p"] == min(1, 2 * (comb(3, 0) + comb(3, 1)) / 2**3) and found["test"] == "McNemar"
    assert compare_forgetting(lines("1"), lines("1"), lines("0")) is None


def test_an_arm_that_did_not_answer_all_items_is_refused():
    with pytest.raises(SdftError, match="one side only"):
        compare_forgetting(lines("1"), [], lines("11"))
    with pytest.raises(SdftError, match="one side only"):
        compare_long_answers(answers(30), answers(30, 30), answers(30, 30))


def test_what_one_word_can_pass_is_reported_apart():
    brief = [True] * 5 + [False] * 5
    parts = suite_result(suite(10, brief=brief), lines(SFT), lines(BASE))["parts"]
    assert {name: (part["n"], part["lost"], part["gained"]) for name, part in parts.items()} == {
        "brief": (5, 3, 0), "long": (5, 0, 3)}
    assert "parts" not in suite_result(suite(10), lines(SFT), lines(BASE))


def test_flips_by_chance_of_a_model_that_guesses():
    """Of two models that guess among four options, 3/16 of the items flip each way, and nothing was forgotten."""
    base = lines("1111" + "0" * 12)                                     # a quarter right
    arm = lines("1000" + "111" + "0" * 9)                               # again a quarter, 3 of 16 flipped each way
    found = suite_result(suite(16, choices=[4] * 16), arm, base)["chance_adjusted"]
    assert found["flips"] == pytest.approx(3 / 16)
    assert (found["forgetting"], found["backward_transfer"], found["n"]) == (pytest.approx(0), pytest.approx(0), 16)
    assert "chance_adjusted" not in suite_result(suite(16), arm, base)


def test_wilsons_interval_by_its_formula_and_at_its_ends():
    """Its bounds solve |p̂ − p| = z·√(p(1 − p)/n); all right has no width of 0."""
    z = 1.959963984540054
    for count, n in ((1, 4), (33, 52), (7, 8)):
        for bound in wilson(count, n):
            assert abs(count / n - bound) == pytest.approx(z * sqrt(bound * (1 - bound) / n))
    assert wilson(4, 4) == (pytest.approx(4 / (4 + z * z)), 1.0)
    assert wilson(0, 4) == (0.0, pytest.approx(z * z / (4 + z * z)))
    with pytest.raises(SdftError, match="at least 1"):
        wilson(0, 0)


def answers(*words: int) -> list[dict]:
    return [{**line, "output": "word " * count} for line, count in zip(lines("1" * len(words)), words, strict=True)]


def test_long_answers_that_are_kept_and_that_shrank():
    base, sft, sdft = answers(100, 100, 25, 24, 40), answers(24, 25, 3, 90, 10), answers(99, 80, 24, 1, 40)
    found = long_answers(sft, base)
    assert (found["n"], found["kept"], found["share"]) == (4, 1, 0.25)
    assert found["shrunk"] == 2                                         # 24 of 100 and 3 of 25, not 10 of 40
    assert compare_long_answers(sdft, sft, base)["difference"] == pytest.approx(3 / 4 - 1 / 4)
    assert long_answers(sft, answers(1, 1, 1, 1, 1)) is None


def test_primary_end_points_are_not_corrected_and_all_others_are_one_family():
    def result(**p):
        forgetting = {"forgetting_against_sft": {"p": p.pop("lost")}} if "lost" in p else {}
        return {"mean": 0.5, **{f"against_{arm}": {"p": value} for arm, value in p.items()}, **forgetting}

    arms = {"base": {"suites": {"task": result(), "other": result()}, "general": {}},
            "sft": {"suites": {"task": result(base=0.01), "other": result(base=0.04)}, "general": {}},
            "sdft": {"suites": {"task": result(base=0.02, sft=0.5, lost=0.3),
                                "other": {**result(base=0.9, sft=0.03, lost=0.001),
                                          "parts": {"long": result(base=0.2)}}},
                     "general": {"long_answers": {"against_sft": {"p": 0.01}}}}}
    adjust_together(arms, {"task", "other.forgetting"})
    sft, sdft = arms["sft"]["suites"], arms["sdft"]["suites"]
    for primary in (sft["task"]["against_base"], sdft["task"]["against_base"], sdft["task"]["against_sft"],
                    sdft["other"]["forgetting_against_sft"]):
        assert "p_holm" not in primary
    assert [comparison["p_holm"] for comparison in (
        arms["sdft"]["general"]["long_answers"]["against_sft"], sdft["other"]["against_sft"],
        sft["other"]["against_base"], sdft["other"]["parts"]["long"]["against_base"],
        sdft["task"]["forgetting_against_sft"], sdft["other"]["against_base"])] == pytest.approx(
            [0.06, 0.15, 0.16, 0.6, 0.6, 0.9])


def test_the_numbers_of_a_run_are_recomputed_from_its_journals(tmp_path, monkeypatch):
    """Twenty lines of plain Python, on a run with a tiny model whose items are scored by the length of its answers."""
    monkeypatch.setattr("sdft.tasks.elaborate.Suite", lambda name, items, score, metric, limit: Suite(
        name, items, lambda item, output: float(sum(map(ord, output)) % 2), metric, 8))
    folder = tmp_path / "run"
    assert main(["run", *options(save_tiny_model(tmp_path / "model")), "--elaborate_items=24", "--lr=0.05",
                 "--epochs=4", f"--out={folder}"]) == 0
    suites = {arm: json.loads((folder / "measures.json").read_text())["arms"][arm]["suites"]["elaborate"]
              for arm in ("base", "sft", "sdft")}
    scores = {}
    for arm in suites:
        journal = (folder / "eval" / arm / "elaborate.jsonl").read_text().splitlines()
        scores[arm] = {line["id"]: line["score"] for line in map(json.loads, journal)}
    solved = {id for id, score in scores["base"].items() if score == 1}
    failed = scores["base"].keys() - solved
    assert 0 < len(solved) < 24 == len(scores["base"])
    for arm in ("sft", "sdft"):
        lost = [id for id in solved if scores[arm][id] == 0]
        gained = [id for id in failed if scores[arm][id] == 1]
        found = suites[arm]
        assert (found["solved_by_base"], found["lost"], found["gained"]) == (len(solved), len(lost), len(gained))
        assert found["forgetting"]["share"] == pytest.approx(len(lost) / len(solved))
        assert found["backward_transfer"]["share"] == pytest.approx(len(gained) / len(failed))
        assert sum(kind["lost"] for kind in found["by_kind"].values()) == len(lost)
    assert suites["sft"]["lost"] + suites["sdft"]["lost"] > 0                   # else nothing was tested
    difference = sum(scores["sft"][id] - scores["sdft"][id] for id in solved) / len(solved)
    assert suites["sdft"]["forgetting_against_sft"]["difference"] == pytest.approx(difference)
    assert suites["base"]["noise_floor"] == {"share": 0.0, "low": 0.0, "high": pytest.approx(
        1.96**2 / (len(solved) + 1.96**2), rel=1e-3), "n": len(solved)}         # greedy in fp32: nothing flips


def test_the_noise_floor_needs_another_number_of_sequences_at_a_time(monkeypatch):
    """Greedy answers decoded one by one cannot differ when they are decoded one by one again; sampled ones can."""
    items = [Item(f"e{index}", [{"role": "user", "content": "Describe rivers."}]) for index in range(9)]
    suites = [Suite(name, items, None, "solved", 8) for name in ("a", "b", "c")]
    lines = {suite.name: [{"id": item.id, "score": float(index != 2)} for index, item in enumerate(items)]
             for suite in suites}
    lines["b"] = [line | {"score": 0.0} for line in lines["b"]]
    context, asked = object.__new__(Context), []
    context.base, context.tokenizer, context.chat = tiny_chat_model(), byte_tokenizer(), None
    context.suites, context.general, context.folder = suites[:2], suites[2], Path()
    context.primary, context.answers = {"a.forgetting", "b.forgetting"}, {"base": lines}
    context.timed = lambda stage: nullcontext()

    def answers(model, tokenizer, suites, folder, sampling, batch_size, chat):
        asked.append(([suite.name for suite in suites], len(suites[0].items), batch_size, sampling.seed))
        return {suite.name: [{"id": item.id, "score": float(item.id != "e0")} for item in suite.items]
                for suite in suites}

    monkeypatch.setattr("sdft.experiment.context.evaluate", answers)
    for sampling, batch_size in ((Sampling(), 128), (Sampling(), 3), (Sampling(), 1), (Sampling(temperature=1.0), 1)):
        context.sampling, context.batch_size = sampling, batch_size
        floors = context.noise_floors()
        assert floors.keys() == ({"a"} if sampling.temperature or batch_size > 1 else set())
        assert all((floor["share"], floor["n"]) == (1 / 8, 8) for floor in floors.values())
    # 27 answers are decoded 27 at a time; on a GPU that has room for 8, 8 at a time
    assert asked == [(["a"], 8, 6, 0), (["a"], 8, 1, 0), (["a"], 8, 1, 1)]
    monkeypatch.setattr("sdft.experiment.context.batch_size_for", lambda model, lengths, most: min(8, most))
    context.sampling, context.batch_size = Sampling(), 128
    assert context.noise_floors() and asked[-1][2] == 2
