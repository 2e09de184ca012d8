"""What predicts forgetting: points of several studies, ranked within studies, with sign and interval over studies."""
import json

import numpy as np
import pytest

from sdft.cli import main
from sdft.errors import SdftError
from sdft.files import write_json
from sdft.studies.predictors import difference, explain, points_of, predict, rank, scores_of_base
from sdft.studies.ranking import base_sentence, direction, ranking_figures, ranking_sentence, ranking_table
from sdft.studies.specification import read_study

ASKED = {"measures": ["kl", "shift", "gap", "tv"], "outcomes": ["instructions"]}
TOML = ('name = "predictors"\nquestion = "Which?"\nreads = ["a", "b", "c", "d"]\n'
        '[predict]\nmeasures = ["kl", "shift", "gap", "tv"]\noutcomes = ["instructions"]\n')


def _run(instructions, kl, shift, gap=1.0, base=0.5, task="passages", score=0.75):
    """The base model scores 0.5; sft drops by 0.125 in every run, with the same measures."""
    return {"values": {}, "suite": task, "items": {task: 8, "instructions": 40}, "measures": {"gap": gap}, "arms": {
        "base": {"instructions": base, "kl": 0.0, task: 0.5},
        "sft": {"instructions": base - 0.125, "kl": 0.2, "shift": 5.0, task: 0.625},
        "sdft": {"instructions": instructions, "kl": kl, "shift": shift, task: score}}}


RUNS = {"a": [_run(0.4, 0.1, 4.0), _run(0.25, 0.25, 2.0), _run(0.3, 0.2, 7.0)],
         "b": [_run(0.45, 0.06, 6.0), _run(0.35, 0.14, 1.0)],
         "c": [_run(0.45, 0.09, 6.5), _run(0.4, 0.11, 3.0), _run(0.1, 0.4, 4.0, score=0.5)]}


def _points(*studies, outcome="instructions"):
    """Points of studies given as lists of (measures, drop)."""
    return [{"study": str(place), "task": "passages", "arm": "sft", "drops": {outcome: drop}, "measures": measures}
            for place, rows in enumerate(studies) for measures, drop in rows]


@pytest.fixture
def study(tmp_path):
    for name, runs in RUNS.items():
        write_json(tmp_path / name / "cells.json", {"runs": runs})
    (tmp_path / "predictors.toml").write_text(TOML)
    return tmp_path / "predictors.toml"


def test_every_trained_arm_is_a_point_and_a_shared_one_counts_once():
    points = points_of("a", RUNS["a"], ASKED)
    assert [point["arm"] for point in points] == ["sft", "sdft", "sdft", "sdft"]
    assert points[0] == {"study": "a", "task": "passages", "arm": "sft", "drops": {"instructions": 0.125},
                         "measures": {"kl": 0.2, "shift": 5.0, "gained": 0.125}}
    assert points[1]["measures"] == {"kl": 0.1, "shift": 4.0, "gap": 1.0, "gained": 0.25}
    assert points[1]["drops"]["instructions"] == pytest.approx(0.1)


def test_measures_are_ranked_by_what_they_explain_within_studies(study, capsys):
    content = predict(read_study(study))
    assert "without d, which has no" in capsys.readouterr().err
    assert [(row["measure"], row["n"], row["studies"]) for row in content["ranking"]] == [
        ("kl", 11, 3), ("gained", 11, 3), ("shift", 11, 3)]
    assert content["missing"] == ["tv"] and content["constant"] == ["gap"]      # gap is the same everywhere
    assert content["study"]["reads"] == ["a", "b", "c"]
    apart = np.concatenate([own - own.mean(0) for name in "abc" for own in [np.array(
        [(point["measures"]["kl"], point["drops"]["instructions"]) for point in content["points"]
         if point["study"] == name])]])
    assert content["ranking"][0]["r"] == pytest.approx(np.corrcoef(apart.T)[0, 1], abs=1e-6)
    assert content["ranking"][0]["within"] == pytest.approx(content["ranking"][0]["r"] ** 2, abs=1e-6)


def test_what_only_the_studies_differ_in_explains_nothing_and_the_sign_is_kept():
    """Simpson: within each of three studies y falls by 1 as x rises by 1; from study to study both rise by 10."""
    points = _points(*[[({"kl": 10 * place + step}, 10.0 * place - step) for step in range(3)] for place in range(3)])
    row = explain(points, "instructions", "kl")
    assert row["r"] == pytest.approx(-1) and (row["low"], row["high"]) == (pytest.approx(-1), pytest.approx(-1))
    assert row["pooled"] > 0.97 and row["within"] == pytest.approx(1) and row["ranks"] == pytest.approx(-1)
    assert direction(row) == "larger values, smaller drop"
    only_between = _points(*[[({"kl": place}, place + step) for step in range(3)] for place in range(3)])
    assert explain(only_between, "instructions", "kl") is None


def test_arms_are_compared_with_those_of_their_own_task():
    """One study of two tasks: within each y = x, and the second task's arms are shifted."""
    points = _points([({"kl": step}, float(step)) for step in range(3)])
    points += [point | {"task": "dolly", "drops": {"instructions": point["drops"]["instructions"] - 50}}
               for point in points]
    row = explain(points, "instructions", "kl")
    assert row["r"] == pytest.approx(1) and abs(row["pooled"]) < 0.1 and (row["groups"], row["studies"]) == (2, 1)
    assert row["low"] is None and direction(row) == "not clear"             # one study: no interval


def test_intervals_draw_whole_studies():
    """Two studies of y = x and one of y = −x: the third alone is drawn once in 27, more often than 2.5 %."""
    rising, falling = ([({"kl": float(x)}, sign * float(x)) for x in range(3)] for sign in (1, -1))
    row = explain(_points(rising, rising, falling), "instructions", "kl")
    assert row["r"] == pytest.approx(1 / 3, abs=1e-6) and (row["low"], row["high"]) == (-1, 1)
    assert direction(row) == "not clear"


def test_a_base_model_that_scores_nothing_can_lose_nothing_and_is_counted():
    runs = [_run(0.4, 0.1, 4.0), _run(0.0, 0.3, 9.0, base=0.0), _run(0.1, 0.2, 9.0, base=0.0, task="dolly")]
    runs[1]["arms"]["sft"]["instructions"] = runs[2]["arms"]["sft"]["instructions"] = 0.0
    points = points_of("a", runs, ASKED)
    assert [point["drops"] for point in points] == [{"instructions": pytest.approx(d)} for d in (0.125, 0.1)] + [{}] * 4
    scores = scores_of_base("a", runs, ["instructions", "top1"])
    assert [(row["task"], row["runs"], row["left_out"], row["n"]) for row in scores] == [
        ("passages", 2, 1, 40), ("dolly", 1, 1, 40), ("passages", 2, 0, 0), ("dolly", 1, 0, 0)]
    text = base_sentence(scores[:2])
    assert "dolly: 0 of 1, n = 40 items, 1 of 1 runs left out" in text and text.endswith(
        "2 runs whose base model scores 0 are left out: nothing can be lost there.")
    assert base_sentence(scores[2:]).endswith("Not measured in a.")


def test_what_was_learned_is_shown_with_every_measure():
    points = [point for name in "abc" for point in points_of(name, RUNS[name], ASKED)]
    content = {row["measure"]: row for row in rank(points, ASKED)}
    assert content["kl"]["with_gained"] < 0 and content["gained"]["with_gained"] is None
    table = ranking_table(list(content.values()))
    assert "r with gained" in table.head and ["gained"] == [row[0] for row in table.rows if row[0] == "gained"]


def test_an_outcome_does_not_predict_itself_and_one_that_some_lack_has_its_n():
    points = _points(*[[({"top1": 1 - x / 10, "general.top1": 1 - x / 10, "tv": x + x * x} | ({"low": x} if x else {}),
                         float(x)) for x in range(4)]] * 3, outcome="top1")
    ranking = rank(points, {"measures": ["top1", "general.top1", "tv", "low"], "outcomes": ["top1"]})
    assert [(row["measure"], row["n"]) for row in ranking] == [("low", 9), ("tv", 12)]
    assert ranking[1]["below_first"]["n"] == 9                           # compared on the arms that have both


def _clear():
    """kl follows the drop, tv hardly: in every one of four studies."""
    drops, noise = (0.0, 1.0, 2.0, 3.0, 4.0), (1.0, -1.0, 0.3, 1.2, -0.9)
    return _points(*[[({"kl": drop + noise[(step + place) % 5] / 50, "tv": noise[step]}, drop)
                      for step, drop in enumerate(drops)] for place in range(4)])


def test_measures_are_compared_by_the_difference_on_the_same_draws():
    ranking = rank(_clear(), {"measures": ["tv", "kl"], "outcomes": ["instructions"]})
    below = ranking[1]["below_first"]
    assert ranking[0]["below_first"] is None and below["low"] > 0 and below["n"] == 20
    text = ranking_sentence("instructions", ranking)
    assert "KL from the base model ranks first: R² = 1.00" in text and "The next, tv, explains less: R² = " in text
    assert "larger values, larger drop" in text and "By such an interval 1 of the other 1 measures explain less" in text
    assert "by chance" not in text                                  # of three studies alone it is all of them in a row
    assert "one time in 4" in ranking_sentence("instructions", [ranking[0] | {"studies": 3}])


def test_a_study_in_which_a_measure_does_not_vary_is_none_to_draw():
    varying = [({"a": float(x)}, float(x)) for x in range(4)]
    constant = [({"a": 1.0}, float(x)) for x in range(4)]
    (row,) = rank(_points(varying, varying, constant), {"measures": ["a"], "outcomes": ["instructions"]})
    assert (row["n"], row["studies"], row["low"]) == (8, 2, None)         # no interval of two studies


def test_overlapping_intervals_do_not_hide_a_difference_nor_make_one():
    """b explains less than a in every study, though both vary between studies far more than they differ."""
    studies = []
    for size in (0.3, 1.0, 2.0, 4.0):
        disturbed = np.array([1, -2, 2, -2, 1]) * size                        # orthogonal to a line
        studies.append([({"a": x + d, "b": x + 1.3 * d}, float(x)) for x, d in zip(range(5), disturbed, strict=True)])
    first, second = rank(_points(*studies), {"measures": ["a", "b"], "outcomes": ["instructions"]})
    assert first["measure"] == "a" and first["within_low"] < second["within_high"] and second["below_first"]["low"] > 0
    assert "The next, b, explains less" in ranking_sentence("instructions", [first, second])
    same = difference(_points(*studies), "instructions", "a", "a")
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    second["below_first"] = {"difference": 0.1, "low": -0.1, "high": 0.2, "n": 20}
    assert "No difference detected from the next, b: R² = " in ranking_sentence("instructions", [first, second])


def test_a_direction_is_named_where_the_interval_excludes_zero():
    row = {"r": 0.5, "low": 0.1, "high": 0.9}
    assert direction(row) == "larger values, larger drop" and direction(row | {"low": -0.1}) == "not clear"


def test_nothing_that_varies_is_no_ranking():
    assert rank(points_of("a", RUNS["a"][:1], ASKED), ASKED) == []
    assert ranking_sentence("instructions", []) == (
        "No measure varies together with a drop of instructions: nothing to rank.")


def test_figures_name_measures_in_words_with_units_and_n(study):
    figures = {figure.name: figure.svg for figure in ranking_figures(predict(read_study(study)))}
    assert ">KL from the base model, nats/token (n = 11)</text>" in figures["ranking-instructions"]
    assert ">r with the drop   (right: larger values, larger drop)</text>" in figures["ranking-instructions"]
    for text in ("KL from the base model, nats/token", "instructions, share", "n = 11 trained arms", "a (n = 4)"):
        assert f">{text}</text>" in figures["drop-instructions"], text


def test_the_command_writes_the_ranking_and_its_page(study, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sweep", str(study), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"cells.json", "study.toml", "report.md",
                                                     "ranking-instructions.svg", "drop-instructions.svg"}
    page = (out / "report.md").read_text()
    best = json.loads((out / "cells.json").read_text())["ranking"][0]
    for text in ("11 trained arms of 3 studies: a, b, c", "Named in the study file, but measured in no run: tv.",
                 "The same in every arm of a study, or measured in too few arms: gap.",
                 f"KL from the base model ranks first: R² = {best['within']:.2f} (", f"r = {best['r']:+.2f} (",
                 "n = 11 arms of 3 studies",
                 f"Pooled over the studies r = {best['pooled']:+.2f}. With what was learned r = ",
                 "The base model's own: a (passages: 0.5 of 1, n = 40 items)", "| measure | meaning | R² within |"):
        assert text in page, text
    before = (out / "report.md").read_text()
    assert main(["report", str(out)]) == 0 and (out / "report.md").read_text() == before


def test_a_study_that_finds_no_other_is_refused_in_one_line(tmp_path):
    (tmp_path / "predictors.toml").write_text(TOML)
    with pytest.raises(SdftError, match="expected cells.json of a, b, c, d in folders next to it, found none"):
        predict(read_study(tmp_path / "predictors.toml"))
    (tmp_path / "bare.toml").write_text(TOML.partition("[predict]")[0])
    with pytest.raises(SdftError, match="expected 'predict'"):
        read_study(tmp_path / "bare.toml")


def test_a_dry_run_writes_nothing_and_another_studys_folder_is_refused(study, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sweep", str(study), "--out", str(out), "--dry-run"]) == 0 and not out.exists()
    out.mkdir()
    (out / "study.toml").write_text('name = "other"\nquestion = "?"\nreads = ["a"]\n[predict]\nmeasures = ["kl"]\n'
                                    'outcomes = ["top1"]\n')
    (out / "cells.json").write_text(held := '{"study": {"name": "other"}, "runs": []}')
    assert main(["sweep", str(study), "--out", str(out)]) == 1
    assert "holds the study 'other'" in capsys.readouterr().err and (out / "cells.json").read_text() == held


def test_results_of_a_study_without_runs_are_refused_in_one_line(study):
    (study.parent / "b" / "cells.json").write_text('{"points": []}')
    with pytest.raises(SdftError, match="leave 'b' out of `reads`"):
        predict(read_study(study))


def test_a_ranking_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    (tmp_path / "cells.json").write_text('{"study": {}, "points": [], "ranking": [], "missing": []}')
    assert main(["report", str(tmp_path)]) == 1
