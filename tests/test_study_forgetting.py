"""What was lost and gained in a study: its columns, its statistics over training seeds, its page, with and without."""
from __future__ import annotations

import math

import pytest
from test_forgetting import lines, suite

from sdft.files import write_json
from sdft.measure.forgetting import compare_forgetting, suite_result
from sdft.studies.collect import numbers
from sdft.studies.columns import axis, items_of, measured_on, more_is_better, parts_and_kinds, words
from sdft.studies.page import UNCOUNTED, conditions_table, kinds_table, sentence, write_study
from sdft.studies.predictors import points_of, scores_of_base
from sdft.studies.ranking import CONFOUNDED, base_sentence, ranking_page
from sdft.studies.ranking import UNCOUNTED as NO_RANKING
from sdft.studies.statistics import compare, compared_columns, judge, statistics

BASE, KINDS = "1111111100", "llllssssss"                  # the base model solves 8 of 10; kinds l (4 items) and s (6)
SFT = {42: "0001111111", 43: "0000011110", 44: "0001101110"}                    # lost 3, 5, 4 of 8: F .375 .625 .5
SDFT = {42: "0111111100", 43: "1011110100", 44: "1101101111"}                   # lost 1, 2, 2 of 8: F .125 .25 .25
PRIMARY = {"column": "elaborate.forgetting", "arm": "sdft", "against": "sft"}


def _columns(scores: str, against: str = "") -> dict[str, float]:
    """The columns of an arm whose answers have these scores, as `run_result` makes them."""
    base, ours = lines(BASE, KINDS), lines(scores, KINDS)
    result = suite_result(suite(10, brief=[True] * 3 + [False] * 7), base if scores == BASE else ours, base)
    if against:
        result["forgetting_against_sft"] = compare_forgetting(ours, lines(against, KINDS), base)
    shares = {f"elaborate.{name}": result[name]["share"] for name in ("forgetting", "backward_transfer")
              if name in result}
    return {"elaborate": result["mean"], **shares, **dict(numbers({"suites": {"elaborate": result}})),
            **dict(parts_and_kinds("elaborate", result, scores == BASE)), "passages": 0.5, "kl": 0.1}


def _run(seed: int, counted: bool = True) -> dict:
    arms = {"base": _columns(BASE), "sft": _columns(SFT[seed]), "sdft": _columns(SDFT[seed], SFT[seed])}
    arms["base"]["suites.passages.solved_by_base"] = 25
    if not counted:
        arms = {arm: {name: columns[name] for name in ("elaborate", "passages", "kl")} for arm, columns in arms.items()}
    return {"name": f"seed={seed}", "values": {"seed": seed}, "suite": "passages",
            "items": {"passages": 50, "elaborate": 10}, "measures": {}, "arms": arms, "seconds": 1.0}


@pytest.fixture
def runs():
    return [_run(seed) for seed in (42, 43, 44)]


def _content(runs, **more):
    info = {"name": "forgetting", "question": "Less?", "primary": PRIMARY, "matched": [], "runs": 3, "settings": {},
            "plots": [], **more}
    return {"study": info, "runs": runs, "failed": {}, "statistics": statistics(info, runs)}


def test_forgetting_is_compared_over_seeds_and_within_each_seed(runs):
    """Differences .125 − .375, .25 − .625, .25 − .5 = −1/4, −3/8, −1/4; t of two degrees has a closed form."""
    judge(found := compare(runs, PRIMARY))
    (only,) = found
    assert only["differences"] == pytest.approx([-0.25, -0.375, -0.25]) and only["agree"] == 3
    mean, deviation = -0.875 / 3, math.sqrt((2 / 24**2 + 4 / 24**2) / 2)               # from −7/24: 1/24, −2/24, 1/24
    t = mean / (max(deviation, 1 / 8) / math.sqrt(3))                          # no finer than one of the 8 items
    assert only["p"] == pytest.approx(1 - abs(t) / math.sqrt(2 + t * t), abs=1e-6)
    assert only["items"] == 8                                                  # those that the base model solves
    low_high = [(run["arms"]["sdft"]["suites.elaborate.forgetting_against_sft.low"],
                 run["arms"]["sdft"]["suites.elaborate.forgetting_against_sft.high"]) for run in runs]
    assert only["within"] == sum(low > 0 or high < 0 for low, high in low_high)
    for run, high in zip(runs, (-0.1, 0.1, -0.2), strict=True):
        run["arms"]["sdft"]["suites.elaborate.forgetting_against_sft.low"] = -0.9
        run["arms"]["sdft"]["suites.elaborate.forgetting_against_sft.high"] = high
    assert compare(runs, PRIMARY)[0]["within"] == 2
    assert sentence(found[0]).startswith("no difference detected in forgetting on elaborate (n = 8 items solved by "
                                         "base) between sdft and sft: -29.2 points (95 % interval ")


def test_a_mean_is_compared_together_with_what_was_lost(runs):
    assert compared_columns({**PRIMARY, "column": "kl"}, [], runs) == [
        "kl", "passages", "elaborate", "elaborate.forgetting"]
    assert compared_columns(PRIMARY, [], runs) == ["elaborate.forgetting", "passages", "elaborate"]
    old = [_run(42, counted=False)]
    assert compared_columns({**PRIMARY, "column": "kl"}, [], old) == ["kl", "passages", "elaborate"]


def test_parts_and_kinds_are_columns():
    """Kind l: base 1111, sft 0001: 3 of 4 lost. Kind s: base 111100, sft 111111: none of 4 lost, 2 of 2 gained."""
    base, sft = _columns(BASE), _columns(SFT[42])
    assert (base["elaborate.l.n"], base["elaborate.l.solved_by_base"], base["elaborate.s.n"]) == (4, 4, 6)
    assert (sft["elaborate.l.forgetting"], sft["elaborate.s.forgetting"]) == (0.75, 0)
    assert sft["elaborate.s.backward_transfer"] == 1 and "elaborate.l.backward_transfer" not in sft
    assert (sft["elaborate.l"], sft["elaborate.s"]) == (0.25, 1)
    assert (sft["elaborate.brief.forgetting"], sft["elaborate.long.forgetting"]) == (1, 0)
    assert (sft["suites.elaborate.lost"], sft["suites.elaborate.gained"]) == (3, 2)
    assert "elaborate.l.n" not in sft and not [name for name in sft if "by_kind" in name]       # small


def test_a_part_or_kind_can_be_the_end_point(runs):
    (kind,) = compare(runs, {**PRIMARY, "column": "elaborate.l.forgetting"})
    assert kind["values"] == [0.25, 0.25, 0.25] and kind["against_values"] == [0.75, 1, 0.75]
    assert (kind["items"], kind["within"]) == (4, None)
    for run in runs:
        part = "suites.elaborate.parts.long.forgetting_against_sft"
        run["arms"]["sdft"] |= {f"{part}.low": 0.1, f"{part}.high": 0.2}
    (part,) = compare(runs, {**PRIMARY, "column": "elaborate.long.forgetting"})
    assert (part["items"], part["within"]) == (5, 3)
    assert "forgetting on elaborate where no single word passes (n = 5 items solved by base)" in sentence(part | {
        "detected": False, "p_holm": 1.0})


def test_columns_of_early_tokens_and_long_answers_have_their_own_intervals(runs):
    for run in runs:
        run["arms"]["sft"] |= {"kl8": 0.5, "long_answers": 0.5, "general.long_answers.n": 97}
        run["arms"]["sdft"] |= {
            "kl8": 0.2 + run["values"]["seed"] / 1000, "long_answers": 0.9, "general.long_answers.n": 97,
            "general.kl8_against_sft.low": -0.4, "general.kl8_against_sft.high": -0.2,
            "general.long_answers.against_sft.low": -0.1, "general.long_answers.against_sft.high": 0.8}
    (early,), (long,) = (compare(runs, {**PRIMARY, "column": column}) for column in ("kl8", "long_answers"))
    assert (early["within"], early["items"], long["within"], long["items"]) == (3, None, 0, 97)
    assert measured_on(runs, "long_answers") == "n = 97 long answers of the base model"
    assert more_is_better("long_answers", runs) and more_is_better("elaborate.backward_transfer", runs)
    assert not more_is_better("elaborate.forgetting", runs) and not more_is_better("kl8", runs)


def test_a_control_that_no_run_has_yet_is_left_out_of_the_page(runs, tmp_path):
    write_json(tmp_path / "cells.json", _content(runs, controls=["low-lr"]))
    assert "low-lr" not in write_study(tmp_path).read_text() + (tmp_path / "end_point.svg").read_text()


def test_a_control_is_compared_where_only_another_run_of_the_seed_has_it(runs):
    controls = [{**_run(seed), "values": {"run": "low", "seed": seed}} for seed in (42, 43, 44)]
    for run in controls:
        run["arms"] = {"base": run["arms"]["base"], "low-lr": run["arms"]["sft"]}
    for run in runs:
        run["values"] = {"run": "built-in", **run["values"]}
    found = _content([*runs, *controls], controls=["low-lr"])["statistics"]["comparisons"]
    (forgot,) = [row for row in found if row["against"] == "low-lr" and row["column"] == "elaborate.forgetting"]
    assert forgot["differences"] == pytest.approx([-0.25, -0.375, -0.25]) and forgot["condition"] == {"run": "built-in"}
    assert [row["column"] for row in found if row["against"] == "low-lr"] == ["elaborate.forgetting", "passages"]
    more = [*runs, *controls, {**controls[0], "values": {"run": "third", "seed": 42}}]          # of which two have it
    (fewer,) = compare(more, {**PRIMARY, "against": "low-lr"})
    assert fewer["n"] == 2


def test_forgetting_at_equal_task_accuracy_is_compared_with_that_of_sft_there(runs):
    for run, ours, theirs, high in zip(runs, (0.1, 0.2, 0.3), (0.5, 0.5, 0.4), (-0.1, -0.1, 0.1), strict=True):
        run["arms"]["sdft"] |= {"matched.forgetting": ours, "matched.forgetting_with": theirs, "matched.n": 22,
                                "matched.low": -0.6, "matched.high": high}
    (found,) = compare(runs, {**PRIMARY, "column": "matched.forgetting"})
    assert found["differences"] == pytest.approx([-0.4, -0.3, -0.1])
    assert (found["items"], found["within"]) == (22, 2)


def test_the_page_shows_no_mean_without_lost_and_gained(runs, tmp_path):
    for run in runs:
        run["arms"]["base"]["suites.elaborate.noise_floor.share"] = 0.125
    content = _content(runs)
    table = conditions_table(content)
    column = table.head.index("elaborate: mean score / lost / gained, % (n = 10 items)")
    # sft: 7, 4 and 5 of 10 solved; 3, 5 and 4 of 8 lost; 2, 1 and 1 of 2 gained
    assert [row[column] for row in table.rows] == ["80.0 / 12.5 / –", "53.3 / 50.0 / 66.7", "70.0 / 20.8 / 33.3"]
    write_json(tmp_path / "cells.json", content)
    page = write_study(tmp_path).read_text()
    assert UNCOUNTED not in page
    assert "## Lost and gained by kind of item: elaborate" in page and "kinds of item: passages" not in page
    assert "Named before the first run: forgetting on elaborate, share of the items solved by base (n = 8 items" in page


def test_the_table_of_kinds_has_what_every_arm_lost_and_gained(runs):
    table = kinds_table(runs, "elaborate")
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["where one word or the prompt itself passes", "where no single word passes", "l", "s"]
    assert rows["l"] == ["4", "4", "16.7 / 83.3 / –", "75.0 / 25.0 / –"]
    assert rows["s"][:2] == ["6", "4"]
    assert kinds_table([_run(42, counted=False)], "elaborate").rows == []


def test_results_without_counts_have_dashes_and_say_why(tmp_path):
    runs = [_run(seed, counted=False) for seed in (42, 43, 44)]
    write_json(tmp_path / "cells.json", _content(runs, primary={**PRIMARY, "column": "kl"}))
    page = write_study(tmp_path).read_text()
    assert UNCOUNTED in page and "| 50.0 / – / – | 53.3 / – / – |" in page and "kind of item" not in page


def test_columns_are_named_in_words():
    assert words("elaborate.forgetting") == "forgetting on elaborate"
    assert words("score.forgetting") == "forgetting on the task"
    assert words("elaborate.story.backward_transfer") == "backward transfer on elaborate, story"
    assert words("instructions.long", ["instructions"]) == "instructions where no single word passes"
    assert axis("elaborate.forgetting") == "forgetting on elaborate, share of the items solved by base"
    assert axis("recovery.steps.k10") == "recovery on 10 dialogues, optimiser steps"
    assert axis("general.forgetful") == "general.forgetful"


def test_what_is_not_known_has_no_count(runs):
    assert items_of(_run(42, counted=False), "elaborate.forgetting") is None
    assert items_of(runs[0], "elaborate.backward_transfer") == 2 and items_of(runs[0], "elaborate.none") is None
    assert measured_on([_run(42, counted=False)], "elaborate.forgetting") == ""


def test_forgetting_is_an_outcome_to_predict(runs):
    """It is itself what was lost: the base model has none of it."""
    asked = {"measures": ["kl"], "outcomes": ["elaborate.forgetting", "elaborate"]}
    points = points_of("a", runs, asked)
    assert [point["drops"]["elaborate.forgetting"] for point in points] == [0.375, 0.125, 0.625, 0.25, 0.5, 0.25]
    assert points[0]["drops"]["elaborate"] == pytest.approx(0.1)
    counted, mean = scores_of_base("a", runs, asked["outcomes"])
    assert (counted["score"], counted["n"], counted["left_out"]) == (pytest.approx(0.8), 10, 0)
    assert mean["score"] == pytest.approx(0.8)


def test_a_ranking_says_which_outcome_is_confounded_and_which_was_not_counted():
    old = [_run(seed, counted=False) for seed in (42, 43)]
    outcomes = ["elaborate.forgetting", "elaborate", "top1"]
    asked = {"measures": ["kl"], "outcomes": outcomes}
    base_scores = scores_of_base("a", old, outcomes)
    page = ranking_page({"study": {"name": "predictors", "question": "Which?", "reads": ["a"], **asked},
                         "base_scores": base_scores, "points": points_of("a", old, asked), "ranking": [],
                         "missing": [], "constant": []}, {})
    forgetting, mean, likeness = page.split("\n## ")[1:]
    assert forgetting.startswith("Forgetting on elaborate\n") and NO_RANKING in forgetting
    assert "Not measured in a." in forgetting and CONFOUNDED not in forgetting
    assert mean.startswith("Drop of elaborate\n\n" + CONFOUNDED)
    assert CONFOUNDED not in likeness and NO_RANKING not in likeness
    assert base_sentence(base_scores[:1]) == "Not measured in a."
