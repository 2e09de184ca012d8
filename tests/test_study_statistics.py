"""Differences paired by seed, and correlations, against the textbook and by hand."""
import math

import numpy as np
import pytest

from sdft.studies.statistics import (
    compare,
    compared_columns,
    correlate,
    correlation,
    crossing,
    interval,
    judge,
    match,
    more_is_better,
    paired,
    ranks,
    statistics,
    t_quantile,
    t_test,
)


def row(ratio, seed, sft, sdft, nll=1.0):
    return {"values": {"mix_ratio": ratio, "seed": seed}, "suite": "passages", "items": {"passages": 400},
            "measures": {"gap": nll},
            "arms": {"base": {"kl": 0.0}, "sft": {"kl": sft, "passages": 0.5}, "sdft": {"kl": sdft, "passages": 0.25}}}


ROWS = [row(0, 1, 1.0, 1.2, 4), row(0, 2, 2.0, 1.9, 4), row(0, 3, 3.0, 3.1, 4),
        row(1, 1, 1.0, 0.5), row(1, 2, 2.0, 1.5, 2), row(1, 3, 3.0, 2.49, 3)]
PRIMARY = {"column": "kl", "arm": "sdft", "against": "sft"}


def judged(rows, primary):
    judge(found := compare(rows, primary))
    return found


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216),
                                                   (30, 2.04227)])
def test_students_t_is_that_of_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, abs=2e-4)
    assert t_test(-quantile, degrees) == pytest.approx(0.05, abs=1e-5)
    assert t_test(0, degrees) == 1


def test_two_degrees_of_freedom_have_a_closed_form():
    for t in (0.3, 1.0, 8.0):
        assert t_test(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-7)


def test_a_paired_difference_by_hand():
    found = paired([0.2, -0.1, 0.1])
    assert found["mean"] == pytest.approx(0.2 / 3) and found["agree"] == 2 and found["n"] == 3
    half = 4.30265 * math.sqrt(42 / 900 / 2 / 3)            # squared deviations (4² + 5² + 1²) / 30², of 2 degrees
    assert (found["low"], found["high"]) == (pytest.approx(0.2 / 3 - half, abs=1e-4),
                                             pytest.approx(0.2 / 3 + half, abs=1e-4))


def test_one_seed_has_no_interval_and_equal_differences_are_certain():
    assert paired([0.3]) == {"n": 1, "differences": [0.3], "mean": 0.3, "low": None, "high": None, "agree": 1,
                             "p": None}
    assert paired([0.5, 0.5])["p"] == 0 and paired([0.0, 0.0])["p"] == 1 and paired([0.0, 0.0])["agree"] == 0


def test_one_item_more_in_each_of_three_seeds_is_no_certainty():
    """Scores of 48 items: the differences are equal, but no finer than an item. t = 1 / (1/√3) = √3 of 2 degrees."""
    rows = [{"values": {"seed": seed}, "suite": "passages", "items": {"passages": 48}, "measures": {},
             "arms": {"base": {}, "sft": {"passages": 20 / 48}, "sdft": {"passages": 21 / 48}}} for seed in range(3)]
    (found,) = judged(rows, PRIMARY | {"column": "passages"})
    assert found["p"] == pytest.approx(t_test(math.sqrt(3), 2))
    assert found["items"] == 48 and found["agree"] == 3 and not found["detected"]
    for row_, kl in zip(rows, (0.123457, 0.223457, 0.323457), strict=True):  # equal up to rounding
        row_["arms"]["sft"]["kl"], row_["arms"]["sdft"]["kl"] = kl, kl + 1e-9
    assert not judged(rows, PRIMARY)[0]["detected"]


def test_a_seed_may_have_an_interval_of_its_own():
    rows = [row(1, seed, 1.0 + seed, 0.5) for seed in (1, 2, 3)]
    for each, low, high in zip(rows, (-0.6, -0.6, -0.1), (-0.4, 0.1, -0.05), strict=True):
        each["arms"]["sdft"] |= {"general.against_sft.low": low, "general.against_sft.high": high,
                                 "suites.passages.against_sft.low": -1, "suites.passages.against_sft.high": 1}
    assert [compare(rows, PRIMARY | {"column": column})[0]["within"] for column in ("kl", "passages")] == [2, 0]
    assert compare(ROWS, PRIMARY)[0]["within"] is None


def test_retention_is_compared_with_what_was_learned_and_what_differs_over_the_seeds():
    for each in (rows := [row(1, seed, 1.0, 0.5) | {"items": {"passages": 4, "instructions": 4}} for seed in (1, 2)]):
        each["arms"]["sdft"] |= {"shift": each["values"]["seed"], "target_nll": 1.0}
    assert compared_columns(PRIMARY, [["shift", "kl"], ["target_nll", "kl"]], rows) == [
        "kl", "passages", "instructions", "shift"]


def test_a_study_of_several_tasks_compares_the_score_of_each():
    rows = [{"values": {"task": suite, "seed": 1}, "suite": suite, "items": {suite: 4}, "measures": {},
             "arms": {"base": {}, "sft": {"kl": 1.0, suite: 0.5}, "sdft": {"kl": 1.0, suite: 0.75}}}
            for suite in ("sums", "calls")]
    found = statistics({"primary": PRIMARY, "plots": [], "matched": []}, rows)["comparisons"]
    assert [(row["column"], row["condition"]["task"], row["mean"]) for row in found] == [
        ("kl", "sums", 0), ("kl", "calls", 0), ("score", "sums", 0.25), ("score", "calls", 0.25)]


def test_arms_are_compared_within_a_run_and_conditions_apart():
    first, second = judged(ROWS, PRIMARY)
    assert first["condition"] == {"mix_ratio": 0} and second["condition"] == {"mix_ratio": 1}
    assert first["differences"] == pytest.approx([0.2, -0.1, 0.1]) and not first["detected"]
    assert second["differences"] == pytest.approx([-0.5, -0.5, -0.51]) and second["agree"] == 3
    assert second["p_holm"] == pytest.approx(2 * second["p"]) and second["detected"]
    assert (second["values"], second["against_values"]) == ([0.5, 1.5, 2.49], [1.0, 2.0, 3.0])


def test_seeds_that_do_not_all_agree_detect_nothing_and_neither_does_one_seed():
    rows = [row(0, seed, 1.0, 2.0) for seed in range(40)] + [row(0, 40, 1.0, 0.99)]
    (found,) = judged(rows, PRIMARY)
    assert found["p"] < 1e-9 and found["agree"] == 40 and not found["detected"]
    assert not judged(rows[:1], PRIMARY)[0]["detected"]


def test_runs_are_compared_with_the_run_of_the_same_seed():
    (found,) = compare(ROWS[::-1], PRIMARY | {"against": {"mix_ratio": 0}})
    assert found["condition"] == {"mix_ratio": 1} and found["differences"] == pytest.approx([-0.61, -0.4, -0.7])


def test_what_a_run_lacks_is_left_out():
    rows = [*ROWS[:2], {**ROWS[2], "arms": {"base": {}, "sdft": {"kl": 1.0}}}]
    assert compare(rows, PRIMARY)[0]["n"] == 2
    assert compare(rows, PRIMARY | {"column": "tv"}) == []


def test_the_end_point_what_was_learned_and_all_else_are_three_families():
    """kl, passages (the task's score) and shift, in two conditions each: Holm over the two of each."""
    rows = [row(ratio, seed, float(seed), seed - 0.5 - ratio - seed / 100) for ratio in (0, 1) for seed in (1, 2, 3)]
    for each in rows:
        seed, ratio = each["values"]["seed"], each["values"]["mix_ratio"]
        each["arms"]["sft"] |= {"shift": 4.0, "passages": 0.5}
        each["arms"]["sdft"] |= {"shift": 3.0 - ratio + seed / 50, "passages": 0.6 + seed / 100 + ratio / 10}
    found = statistics({"primary": PRIMARY, "plots": [["shift", "kl"]], "matched": []}, rows)["comparisons"]
    assert [row["column"] for row in found] == ["kl"] * 2 + ["passages"] * 2 + ["shift"] * 2
    for family in (found[:2], found[2:4], found[4:]):
        smallest = min(family, key=lambda row: row["p"])
        assert smallest["p_holm"] == pytest.approx(len(family) * smallest["p"])


def test_arms_at_equal_values_belong_to_the_secondary_family():
    """Over three seeds sdft has kl 0.1 less (and a little) at every shift, and 1/8 more of the score."""
    rows = [at(lr, (lr, lr), (1.5, 1.4 + seed / 1000), (0.5, 0.625), seed=seed)
            for seed in (1, 2, 3) for lr in (1.0, 2.0)]
    found = statistics({"primary": PRIMARY, "plots": [], "matched": ["shift"]}, rows)
    (matched,) = found["matched"]
    assert (matched["n"], matched["points"], matched["of"]) == (3, 6, 6) and matched["agree"] == 3
    assert matched["score"] == pytest.approx(0.125) and matched["mean"] == pytest.approx(-0.098)
    assert matched["p"] < 0.001 and matched["detected"]
    assert {row["column"] for row in found["comparisons"]} == {"kl", "passages"}        # neither is of its family
    assert matched["p_holm"] == pytest.approx(matched["p"])


def test_r_by_hand_and_none_where_nothing_varies():
    assert correlation([[(1, 1), (2, 2), (3, 6)]])[0] == pytest.approx(math.sqrt(25 / 28), abs=1e-6)
    assert correlation([[(1, -1), (2, -2), (3, -6)]])[0] == pytest.approx(-math.sqrt(25 / 28), abs=1e-6)
    assert correlation([[(1, 1), (2, 2)]])[0] is None and correlation([])[0] is None
    assert correlation([[(1, 1), (1, 2), (1, 3)]])[0] is None and correlation([[(0.1, x) for x in range(3)]])[0] is None
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_draws_are_of_whole_clusters_and_those_of_too_few_pairs_are_left_out():
    """Draws of three clusters, one of which has r = −1: r of every multiset, as numpy gives it."""
    clusters = [[(0, 0), (1, 1), (2, 2)], [(0, 2), (1, 1.5), (2, 0)], [(5, 7)]]
    r, draws = correlation(clusters)
    assert r == pytest.approx(np.corrcoef(np.array(sum(clusters, [])).T)[0, 1], abs=1e-6)
    by_hand = {round(float(np.corrcoef(np.array(sum((clusters[i] for i in draw), [])).T)[0, 1]), 9)
               for draw in ((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 2), (0, 2, 2), (1, 1, 1), (1, 1, 2),
                            (1, 2, 2))}
    assert {round(float(each), 9) for each in draws if not np.isnan(each)} == by_hand
    assert np.isnan(draws).mean() == pytest.approx(1 / 27, abs=0.01)        # the single pair, thrice
    assert interval(draws)[0] == pytest.approx(min(by_hand), abs=1e-6)
    assert interval(correlation(clusters[:2])[1]) == (None, None)           # two clusters give no interval


def test_a_column_of_the_run_belongs_to_the_primary_arm():
    found = correlate(ROWS[3:], "sdft", "gap", "kl")
    assert found["n"] == 3 and found["r"] == pytest.approx(np.corrcoef([1, 2, 3], [0.5, 1.5, 2.49])[0, 1], abs=1e-6)
    assert found["points"][1] == {"arm": "sdft", "values": {"mix_ratio": 1, "seed": 2}, "x": 2, "y": 1.5}


def test_a_falling_line_has_a_negative_r_with_an_interval_over_conditions():
    rows = [row(ratio, seed, 1.0, 3.0 - ratio + seed / 10) for ratio in range(4) for seed in (1, 2)]
    for each in rows:
        each["arms"]["sdft"]["share"] = each["values"]["mix_ratio"]
    found = correlate(rows, "sdft", "share", "kl")
    assert found["r"] < -0.99 and found["low"] <= found["r"] <= found["high"] < -0.9 and found["ranks"] < -0.9
    assert (found["n"], found["groups"]) == (8, 4)


def test_columns_of_arms_are_correlated_over_all_arms_and_shared_points_count_once():
    found = correlate(ROWS, "sdft", "passages", "kl")            # sft at three seeds, the same in both ratios
    assert [point["arm"] for point in found["points"]].count("sft") == 3 and found["n"] == 9


def test_the_end_point_is_reported_with_what_was_learned():
    found = statistics({"primary": PRIMARY, "plots": [["gap", "kl"]], "matched": ["passages"]}, ROWS)
    assert [(row["column"], row["condition"]["mix_ratio"]) for row in found["comparisons"]] == [
        ("kl", 0), ("kl", 1), ("passages", 0), ("passages", 1)]
    assert found["correlations"][0]["n"] == 6
    assert [(row["against"], row["condition"], row["n"]) for row in found["matched"]] == [
        ("sft", {}, 0)]


def at(lr, sft, sdft, scores=(0.5, 0.75), **values):
    arms = {name: {"shift": shift, "kl": kl, "passages": score}
            for name, (shift, kl), score in zip(("sft", "sdft"), (sft, sdft), scores, strict=True)}
    return {"values": {"lr": lr, **values}, "suite": "passages", "items": {"passages": 8}, "measures": {},
            "arms": arms | {"base": {"kl": 0}}}


def test_at_equal_accuracy_an_overtrained_run_is_not_joined_to_a_good_one():
    """sft over rates: (.3, .1) → (.6, .4) → (.5, 2). At .55 it had 0.35 on the way up, whatever came later."""
    rows = [at(1, (0.3, 0.1), (0.3, 0.05)), at(3, (0.5, 2.0), (0.55, 1.5)), at(2, (0.6, 0.4), (0.6, 0.2))]
    (found,) = match(rows, PRIMARY, "shift")
    assert found["differences"] == pytest.approx([(-0.2 - 0.05 + 1.5 - 0.35) / 3]) and found["points"] == 3


def test_the_best_of_a_likeness_or_a_score_is_its_highest():
    way = [(0.0, 0.9, 0.5), (1.0, 0.5, 0.6), (0.0, 0.2, 0.7)]           # there and back over x = 0.5: 0.7 and 0.35
    assert crossing(way, 0.5) == pytest.approx((0.35, 0.65)) and crossing(way, 0.5, max) == pytest.approx((0.7, 0.55))
    assert crossing(way, 1.0) == (0.5, 0.6) and crossing(way, 2.0) is None
    rows = [at(1, (0.0, 0), (0.5, 0)), at(2, (1.0, 0), (9, 0)), at(3, (0.0, 0), (9, 0))]
    for each, (_, top1, _) in zip(rows, way, strict=True):
        each["arms"]["sft"]["top1"], each["arms"]["sdft"]["top1"] = top1, 0.8
    assert match(rows, PRIMARY | {"column": "top1"}, "shift")[0]["mean"] == pytest.approx(0.1)
    assert not any(more_is_better(column, rows) for column in ("kl", "shift", "general.tv"))
    assert all(more_is_better(column, rows) for column in (
        "top1", "general.bleu", "activations.cka", "shift.left_cosine", "passages", "score"))


def test_paths_belong_to_a_seed_and_to_all_settings_but_the_rate():
    rows = [at(lr, (lr, lr * size), (1.5, 0.0), seed=seed, strength=strength)
            for seed, size in ((1, 1.0), (2, 10.0)) for strength in (0.1, 1.0) for lr in (1.0, 2.0)]
    found = match(rows, PRIMARY, "shift")
    assert [(row["condition"], row["n"], row["points"]) for row in found] == [({}, 2, 4)]   # no difference by strength
    assert sorted(found[0]["differences"]) == [-15, -1.5] and found[0]["mean"] == -8.25
    rows[0]["arms"]["sft"]["kl"] = 0.5                      # now it does
    assert [row["condition"] for row in match(rows, PRIMARY, "shift")] == [{"strength": 0.1}, {"strength": 1.0}]


def test_arms_are_compared_where_they_are_equal_in_another_column_with_their_scores():
    """sft: kl 1 and score 1/4 at shift 1, kl 3 and 3/4 at shift 2: kl 2 and 1/2 at 1.5; sdft there 1.5 and 5/8."""
    rows = [at(2, (2.0, 3.0), (1.5, 1.5), (0.75, 0.625)), at(1, (1.0, 1.0), (4.0, 9.0), (0.25, 0.5))]
    (found,) = match(rows, PRIMARY, "shift")
    assert found["differences"] == pytest.approx([-0.5]) and (found["n"], found["points"], found["of"]) == (1, 1, 2)
    assert (found["equal"], found["against"], found["mean"]) == ("shift", "sft", pytest.approx(-0.5))
    assert found["score"] == pytest.approx(0.125) and found["p"] is None


def test_what_the_seed_of_training_does_not_touch_is_no_repetition():
    rows = [row(1, seed, 1.0, 0.5) for seed in (1, 2, 3)]
    assert compare(rows, PRIMARY) == [] and compare(rows, PRIMARY | {"column": "passages"})[0]["n"] == 3
