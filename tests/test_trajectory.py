"""Accuracy and forgetting along training, and two arms compared where their task accuracy is equal."""
from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from small_run import save_tiny_model

from sdft.errors import SdftError
from sdft.experiment import settings, trajectory
from sdft.experiment.run import run
from sdft.measure.matched import matched
from sdft.report.figures import draw_figures
from sdft.report.run import read_run
from sdft.report.trajectory import trajectory_findings
from sdft.studies.collect import numbers
from sdft.tasks import Item, Suite, load_task


def _points(curve, n_task=10, n=10, every=10):
    """A trajectory through (task items solved, items lost), the first of them in both suites."""
    return [{"step": every * index, "scores": [1.0] * solved + [0.0] * (n_task - solved),
             "kept": [0] * lost + [1] * (n - lost)} for index, (solved, lost) in enumerate(curve)]


# ------------------------------------------------------------------------------------------------- at equal accuracy
def test_a_known_crossing_is_read_off_exactly():
    """sft: 2 → 8 of 10 solved while 0 → 6 are lost; sdft ends at 5 solved, 1 lost. At a* = .5 sft is halfway: F .3."""
    sft, sdft = _points([(2, 0), (8, 6), (9, 8)]), _points([(2, 0), (4, 0), (5, 1)])
    result = matched(sdft, sft)
    assert result["accuracy"] == 0.5 and result["n"] == result["n_task"] == 10
    assert (result["forgetting"], result["step"]) == (0.1, 20)
    assert (result["forgetting_with"], result["step_with"]) == (0.3, 5)
    assert result["difference"] == 0.1 - 0.3 and result["low"] <= -0.2 <= result["high"]
    mirrored = matched(sft, sdft)
    assert mirrored["difference"] == pytest.approx(0.2) and mirrored["low"] == pytest.approx(-result["high"])


def test_an_accuracy_that_falls_again_is_crossed_at_its_first_rise():
    sft, sdft = _points([(2, 0), (6, 4), (3, 9), (7, 9)]), _points([(2, 0), (3, 0), (2, 5), (4, 2)])
    result = matched(sdft, sft)
    assert result["accuracy"] == 0.4
    assert (result["step_with"], result["forgetting_with"]) == (5, 0.2)
    assert (result["step"], result["forgetting"]) == (30, 0.2)       # from 2 (not 3) solved to 4


def test_nothing_is_compared_where_nothing_was_learned():
    learned, same, worse = _points([(2, 0), (8, 6)]), _points([(2, 0), (2, 6)]), _points([(2, 0), (1, 6)])
    assert matched(learned, same) is matched(worse, learned) is None
    assert matched(_points([(2, 0), (8, 0)], n=0), _points([(2, 0), (8, 0)], n=0)) is None


def test_the_interval_is_a_bootstrap_over_items_of_both_suites():
    """Against plain Python that draws items one by one, and follows each draw from curves to crossing."""
    draw = random.Random(1)
    sides = [[{"step": 10 * index, "scores": [float(draw.random() < 0.2 + 0.2 * index) for _ in range(40)],
               "kept": [int(draw.random() > rate * index) for _ in range(30)]} for index in range(4)]
             for rate in (0.05, 0.2)]
    sides[1][0] = sides[0][0]                               # the base model
    result = matched(*sides)
    differences = []
    for _ in range(4000):
        task, items = draw.choices(range(40), k=40), draw.choices(range(30), k=30)
        curves = [[(sum(p["scores"][i] for i in task) / 40, sum(1 - p["kept"][i] for i in items) / 30) for p in side]
                  for side in sides]
        level = min(max(accuracy for accuracy, _ in curve) for curve in curves)
        at = []
        for curve in curves:
            after = next(index for index, (accuracy, _) in enumerate(curve) if accuracy >= level)
            (a, f), (b, g) = curve[max(0, after - 1)], curve[after]
            at.append(f + (level - a) / (b - a) * (g - f) if b > a else f)
        differences.append(at[0] - at[1])
    differences.sort()
    # Quantiles of 4000 and of 10,000 draws differ by sampling: their standard error is about .006 here.
    assert result["low"] == pytest.approx(differences[100], abs=0.02)
    assert result["high"] == pytest.approx(differences[3900], abs=0.02)
    assert matched(*sides) == result                        # the same values give the same interval


def test_trajectories_on_different_items_are_refused():
    with pytest.raises(SdftError, match="on the same items"):
        matched(_points([(2, 0), (8, 6)]), _points([(2, 0), (8, 6)], n=9))


# ---------------------------------------------------------------------------------------------------- along a whole run
def _score(item, output):
    """A score that a random model reaches on about half of its answers, and that changes with the answer."""
    return float(sum(output.encode()) % 2)


ELABORATE = Suite("elaborate", [Item(f"e{index}", [{"role": "user", "content": f"Describe {index} rivers."}])
                                for index in range(14)], _score, "solved", max_new_tokens=8)


@pytest.fixture(scope="module")
def run_small(tmp_path_factory):
    """Runs on the tiny model by name; items are scored by `_score`, and only some of them are used along training."""
    folder, monkeypatch = tmp_path_factory.mktemp("trajectory"), pytest.MonkeyPatch()
    model = save_tiny_model(folder / "model")
    monkeypatch.setattr("sdft.experiment.context.elaborate_suite", lambda: ELABORATE)
    load = settings.load_task

    def load_scored(*given):
        task = load(*given)
        return replace(task, suites=[replace(task.suites[0], score=_score, max_new_tokens=8)])

    monkeypatch.setattr(settings, "load_task", load_scored)
    monkeypatch.setattr(trajectory, "ITEMS", 10)
    monkeypatch.setattr(trajectory, "ANSWERS", 2)

    def _run(name, **more):
        options = {"model": model, "dtype": "float32", "train_records": 8, "test_records": 14, "rewrite_tokens": 8,
                   "elaborate_items": 14, "instruction_items": 0, "general_items": 3, "epochs": 2, "batch_size": 2,
                   "save_every": 3, "max_length": 2048, "lr": 0.05, "schedule": "constant", "lora_dropout": 0.1}
        given = {key: str(value) for key, value in {**options, **more}.items()}
        return run(*settings.make_config(None, given), folder / name)

    yield _run
    monkeypatch.undo()


@pytest.fixture(scope="module")
def whole(run_small):
    """The folder of a run with both arms and a point every two of eight steps."""
    return run_small("whole", eval_every=2)


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _without_seconds(folder, arm="sft"):
    return [{key: value for key, value in point.items() if key != "seconds"}
            for point in _lines(folder / arm / "trajectory.jsonl")]


def test_the_last_point_is_the_end_of_the_run(whole):
    """Recomputed from the answers and the drift of the whole run by plain Python."""
    folder, measures = whole, json.loads((whole / "measures.json").read_text())
    base = {line["id"]: line["score"] for line in _lines(folder / "eval/base/elaborate.jsonl")}
    order, items = ([item.id for item in suite.items[:10]] for suite in (
        ELABORATE, load_task("passages", train_records=8, test_records=14).suites[0]))
    general = [line["id"] for line in sorted(_lines(folder / "eval/base/general.jsonl"), key=lambda line: line["id"])]
    for arm in ("sft", "sdft"):
        points = _lines(folder / arm / "trajectory.jsonl")
        assert [point["step"] for point in points] == [0, 2, 4, 6, 8]
        assert points[0]["lost"] == points[0]["kl32"] == points[0]["delta_norm"] == points[0]["seconds"] == 0
        last, ours = points[-1], {line["id"]: line["score"] for line in _lines(folder / f"eval/{arm}/elaborate.jsonl")}
        task = {line["id"]: line["score"] for line in _lines(folder / f"eval/{arm}/passages.jsonl")}
        assert last["scores"] == [task[id] for id in items] and last["accuracy"] == sum(last["scores"]) / 10
        solved = [id for id in order if base[id] == 1]
        assert last["kept"] == [int(ours[id] == 1) for id in solved] and last["solved_by_base"] == len(solved) > 2
        assert last["forgetting"] == last["lost"] / len(solved) and last["lost"] == last["kept"].count(0)
        drifts = [answer for answer in measures["arms"][arm]["general"]["answers"] if answer["id"] in general[:2]]
        assert last["kl32"] == pytest.approx(sum(a["kl32"] * min(32, a["tokens"]) for a in drifts)
                                             / sum(min(32, a["tokens"]) for a in drifts), rel=1e-12)
        assert last["delta_norm"] == _lines(folder / arm / "log.jsonl")[-1]["delta_norm"]
    expected = matched(_lines(folder / "sdft/trajectory.jsonl"), _lines(folder / "sft/trajectory.jsonl"))
    assert measures["arms"]["sdft"].get("matched") == expected and "matched" not in measures["arms"]["sft"]


def test_a_point_in_between_is_the_end_of_a_shorter_training(run_small, whole):
    short = run_small("short", eval_every=2, steps=2, arms="sft")
    point, end = _without_seconds(whole)[1], _without_seconds(short)[-1]
    # The point's answers stop after 32 tokens, and the micro-batch holds others: fp32 sums in another order.
    assert point.pop("kl32") == pytest.approx(end.pop("kl32"), rel=1e-4)
    assert point == end and point["step"] == 2 and point["kept"].count(0) > 0


def test_training_is_the_same_bit_for_bit_with_a_trajectory(run_small, whole):
    plain = run_small("plain", arms="sft")
    assert not (plain / "sft" / "trajectory.jsonl").exists()
    ours, theirs = ((folder / "sft" / "adapter_model.safetensors").read_bytes() for folder in (whole, plain))
    assert ours == theirs


def test_an_interrupted_run_measures_no_point_again(run_small, whole, monkeypatch):
    measured, real = [], trajectory.drift

    def dies(model, *given):
        measured.append(model.training)
        if len(measured) == 3:                              # at step 6, when the saved state is that of step 3
            raise SdftError("killed")
        return real(model, *given)

    monkeypatch.setattr(trajectory, "drift", dies)
    with pytest.raises(SdftError, match="killed"):
        run_small("killed", eval_every=2, arms="sft")
    with (whole.parent / "killed" / "sft" / "trajectory.jsonl").open("a") as file:
        file.write('{"step": 6, "accu')                     # a line that a kill tore
    folder = run_small("killed", eval_every=2, arms="sft")
    assert measured == [False] * 4            # step 6 alone; the last is the end of the run
    assert _without_seconds(folder) == _without_seconds(whole)


def test_kl_along_training_is_of_the_same_answers_with_measure_main_and_all(run_small, monkeypatch):
    for module in ("context", "trajectory"):
        monkeypatch.setattr(f"sdft.experiment.{module}.DRIFT_ANSWERS", 3)       # of 6: with main, every other one
    main, everything = ([point["kl32"] for point in _without_seconds(run_small(
        f"of {measure}", eval_every=2, steps=4, arms="sft", general_items=6, measure=measure))]
        for measure in ("main", "all"))
    assert main[:2] == everything[:2] and main[1] > 0
    assert main[2] == pytest.approx(everything[2], rel=1e-4)        # the end: micro-batches of 3 and of 6 answers


def test_a_run_without_elaborate_has_accuracy_and_kl_but_no_forgetting(run_small):
    folder = run_small("alone", eval_every=4, elaborate_items=0, primary="task", arms="sft")
    points = _lines(folder / "sft" / "trajectory.jsonl")
    assert [point["forgetting"] for point in points] == [None] * 3 and points[1]["kl32"] > 0


# ----------------------------------------------------------------------------------------------------- in the report
def test_the_report_draws_the_trajectories_and_says_what_was_forgotten_at_equal_accuracy(whole):
    finished = read_run(whole)
    (figure,) = [figure for figure in draw_figures(finished) if figure.name == "trajectory"]
    n = len(_lines(whole / "sft" / "trajectory.jsonl")[0]["kept"])
    assert f"the first 10 items of the task against F, the share lost of {n} items" in figure.caption
    assert "after the steps 0, 2, 4, 6, 8." in figure.caption and figure.svg.count("<!-- step 8 -->") == 2
    sdft = finished.results["sdft"]
    sdft["matched"] = {"difference": -0.2, "low": -0.31, "high": -0.05, "n": 20, "accuracy": 0.5, "forgetting": 0.1,
                       "forgetting_with": 0.3, "step": 20.0, "step_with": 5.4, "n_task": 48}
    sdft["recovery"] = {"forgetting": 0.3, "n": 48, "steps": {"k1": None, "k3": 8},
                        "checks": [{"k": 1, "step": 64, "forgetting": 0.2}, {"k": 3, "step": 8, "forgetting": 0.0}]}
    assert dict(numbers(sdft))["matched.difference"] == -0.2                # a column of a study
    assert trajectory_findings(finished) == [
        "At equal accuracy, 50 % of 48 items of the task, sdft forgot 10 % and sft 30 % of 20 items of elaborate: "
        "-20 points (-31 to -5). sdft reached it at step 20, sft at step 5.",
        "sdft forgot 30 % of 48 items of elaborate. Trained further on the base model's own answers, it forgets less "
        "than 10 % after 8 steps on 3 of them, but not within 64 steps on 1."]
    sdft["matched"]["high"] = 0.01
    assert "of elaborate: no difference detected, -20 points" in trajectory_findings(finished)[0]
    del sdft["matched"], sdft["recovery"]
    assert trajectory_findings(finished) == [
        "sdft and sft are not compared at equal accuracy: one of them never exceeds the base model's."]
