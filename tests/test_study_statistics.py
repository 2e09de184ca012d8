"""Differences paired by seed, and correlations, against the textbook and by hand."""
import math

import numpy as np
import pytest

from sdft.experiment.study_statistics import (
    compare, compared_columns, correlate, match, paired, r_squared, ranks, statistics, t_quantile, t_test,
)


def row(ratio, seed, sft, sdft, nll=1.0):
    return {"values": {"ratio": ratio, "seed": seed}, "suite": "passages", "items": {"passages": 400},
            "measures": {"gap": nll},
            "arms": {"seed": {"kl": 0.0}, "sft": {"kl": sft, "passages": 0.5}, "sdft": {"kl": sdft, "passages": 0.25}}}


ROWS = [row(0, 1, 1.0, 1.2, 4), row(0, 2, 2.0, 1.9, 4), row(0, 3, 3.0, 3.1, 4),
        row(1, 1, 1.0, 0.5), row(1, 2, 2.0, 1.5, 2), row(1, 3, 3.0, 2.49, 3)]
PRIMARY = {"column": "kl", "arm": "sdft", "against": "sft"}


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
             "arms": {"seed": {}, "sft": {"passages": 20 / 48}, "sdft": {"passages": 21 / 48}}} for seed in range(3)]
    (found,) = compare(rows, PRIMARY | {"column": "passages"})
    assert found["agree"] == 3 and found["p"] == pytest.approx(t_test(math.sqrt(3), 2)) and not found["detected"]
    for row_, kl in zip(rows, (0.123457, 0.223457, 0.323457)):          # equal but for what was rounded away
        row_["arms"]["sft"]["kl"], row_["arms"]["sdft"]["kl"] = kl, kl + 1e-9
    assert not compare(rows, PRIMARY)[0]["detected"]


def test_a_seed_may_tell_by_itself():
    rows = [row(1, seed, 1.0 + seed, 0.5) for seed in (1, 2, 3)]
    for each, low, high in zip(rows, (-0.6, -0.6, -0.1), (-0.4, 0.1, -0.05)):
        each["arms"]["sdft"] |= {"general.against_sft.low": low, "general.against_sft.high": high,
                                 "suites.passages.against_sft.low": -1, "suites.passages.against_sft.high": 1}
    assert [compare(rows, PRIMARY | {"column": column})[0]["within"] for column in ("kl", "passages")] == [2, 0]
    assert compare(ROWS, PRIMARY)[0]["within"] is None


def test_retention_is_told_beside_what_was_learned_and_what_differs_over_the_seeds():
    for each in (rows := [row(1, seed, 1.0, 0.5) | {"items": {"passages": 4, "instructions": 4}} for seed in (1, 2)]):
        each["arms"]["sdft"] |= {"shift": each["values"]["seed"], "target_nll": 1.0}
    assert compared_columns(PRIMARY, [["shift", "kl"], ["target_nll", "kl"]], rows) == [
        "kl", "passages", "instructions", "shift"]


def test_a_study_of_several_tasks_tells_the_score_of_each():
    rows = [{"values": {"task": suite, "seed": 1}, "suite": suite, "items": {suite: 4}, "measures": {},
             "arms": {"seed": {}, "sft": {"kl": 1.0, suite: 0.5}, "sdft": {"kl": 1.0, suite: 0.75}}}
            for suite in ("sums", "calls")]
    found = statistics({"primary": PRIMARY, "plots": [], "matched": []}, rows)["comparisons"]
    assert [(row["column"], row["condition"]["task"], row["mean"]) for row in found] == [
        ("kl", "sums", 0), ("kl", "calls", 0), ("score", "sums", 0.25), ("score", "calls", 0.25)]


def test_arms_are_compared_within_a_cell_and_conditions_apart():
    first, second = compare(ROWS, PRIMARY)
    assert first["condition"] == {"ratio": 0} and second["condition"] == {"ratio": 1}
    assert first["differences"] == pytest.approx([0.2, -0.1, 0.1]) and not first["detected"]
    assert second["differences"] == pytest.approx([-0.5, -0.5, -0.51]) and second["agree"] == 3
    assert second["p_holm"] == pytest.approx(2 * second["p"]) and second["detected"]
    assert (second["values"], second["others"]) == ([0.5, 1.5, 2.49], [1.0, 2.0, 3.0])


def test_seeds_that_do_not_all_agree_detect_nothing_and_neither_does_one_seed():
    rows = [row(0, seed, 1.0, 2.0) for seed in range(40)] + [row(0, 40, 1.0, 0.99)]
    (found,) = compare(rows, PRIMARY)
    assert found["p"] < 1e-9 and found["agree"] == 40 and not found["detected"]
    assert not compare(rows[:1], PRIMARY)[0]["detected"]


def test_cells_are_compared_with_the_cell_of_the_same_seed():
    (found,) = compare(ROWS[::-1], PRIMARY | {"against": {"ratio": 0}})
    assert found["condition"] == {"ratio": 1} and found["differences"] == pytest.approx([-0.61, -0.4, -0.7])


def test_what_a_cell_lacks_is_left_out():
    rows = [*ROWS[:2], {**ROWS[2], "arms": {"seed": {}, "sdft": {"kl": 1.0}}}]
    assert compare(rows, PRIMARY)[0]["n"] == 2
    assert compare(rows, PRIMARY | {"column": "tv"}) == []


def test_r_squared_by_hand_and_none_where_nothing_varies():
    assert r_squared([(1, 1), (2, 2), (3, 6)]) == {"linear": pytest.approx(25 / 28), "ranks": pytest.approx(1)}
    assert r_squared([(1, 1), (2, 2)]) == {"linear": None, "ranks": None}
    assert r_squared([(1, 1), (1, 2), (1, 3)]) == {"linear": None, "ranks": None}
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]


def test_a_column_of_the_cell_belongs_to_the_primary_arm():
    found = correlate(ROWS[3:], "sdft", "gap", "kl")
    assert found["n"] == 3 and found["linear"] == pytest.approx(np.corrcoef([1, 2, 3], [0.5, 1.5, 2.49])[0, 1] ** 2)
    assert found["points"][1] == {"arm": "sdft", "values": {"ratio": 1, "seed": 2}, "x": 2, "y": 1.5}


def test_columns_of_arms_are_correlated_over_all_arms_and_shared_points_count_once():
    found = correlate(ROWS, "sdft", "passages", "kl")            # sft at three seeds, the same in both ratios
    assert [point["arm"] for point in found["points"]].count("sft") == 3 and found["n"] == 9


def test_the_end_point_stands_beside_what_was_learned():
    found = statistics({"primary": PRIMARY, "plots": [["gap", "kl"]], "matched": ["passages"]}, ROWS)
    assert [(row["column"], row["condition"]["ratio"]) for row in found["comparisons"]] == [
        ("kl", 0), ("kl", 1), ("passages", 0), ("passages", 1)]
    assert found["correlations"][0]["n"] == 6
    assert [(row["against"], row["condition"], row["n"]) for row in found["matched"]] == [
        ("sft", {}, 0)]


def at(lr, sft, sdft, **values):
    arms = {name: {"shift": shift, "kl": kl} for name, (shift, kl) in (("sft", sft), ("sdft", sdft))}
    return {"values": {"lr": lr, **values}, "measures": {}, "arms": arms | {"seed": {"kl": 0}}}


def test_at_equal_accuracy_an_overtrained_run_is_not_joined_to_a_good_one():
    """sft over rates: (.3, .1) → (.6, .4) → (.5, 2). At .55 it had 0.35 on the way up, whatever came later."""
    rows = [at(1, (0.3, 0.1), (0.3, 0.05)), at(3, (0.5, 2.0), (0.55, 1.5)), at(2, (0.6, 0.4), (0.6, 0.2))]
    (found,) = match(rows, PRIMARY, "shift")
    assert sorted(found["differences"]) == pytest.approx([-0.2, -0.05, 1.5 - 0.35])


def test_paths_belong_to_a_seed_and_to_all_settings_but_the_rate():
    rows = [at(lr, (lr, lr * size), (1.5, 0.0), seed=seed, strength=strength)
            for seed, size in ((1, 1.0), (2, 10.0)) for strength in (0.1, 1.0) for lr in (1.0, 2.0)]
    found = match(rows, PRIMARY, "shift")
    assert [(row["condition"], row["n"]) for row in found] == [({}, 4)]         # the strength made no difference
    assert sorted(found[0]["differences"]) == [-15, -15, -1.5, -1.5]
    rows[0]["arms"]["sft"]["kl"] = 0.5                      # now it does
    assert [row["condition"] for row in match(rows, PRIMARY, "shift")] == [{"strength": 0.1}, {"strength": 1.0}]


def test_arms_are_compared_where_they_are_equal_in_another_column():
    """sft: kl 1 at shift 1 and 3 at shift 2, so 2 at 1.5; sdft there 1.5, and at shift 4 beyond its path."""
    (found,) = match([at(1, (2.0, 3.0), (1.5, 1.5)), at(2, (1.0, 1.0), (4.0, 9.0))], PRIMARY, "shift")
    assert found["differences"] == pytest.approx([-0.5]) and (found["n"], found["of"]) == (1, 2)
    assert (found["equal"], found["against"], found["mean"]) == ("shift", "sft", pytest.approx(-0.5))


def test_what_the_seed_of_training_does_not_touch_is_no_repetition():
    rows = [row(1, seed, 1.0, 0.5) for seed in (1, 2, 3)]
    assert compare(rows, PRIMARY) == [] and compare(rows, PRIMARY | {"column": "passages"})[0]["n"] == 3
