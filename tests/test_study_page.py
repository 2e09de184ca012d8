"""The page of a study is made from cells.json alone, and its sentences follow the numbers."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sdft.cli import main
from sdft.errors import SdftError
from sdft.files import write_json
from sdft.studies.collect import run_key
from sdft.studies.columns import axis, measured_on
from sdft.studies.page import PILOT, conditions_table, matched, sentence, write_study
from sdft.studies.specification import planned_runs, read_study
from sdft.studies.statistics import statistics

STUDIES = Path(__file__).parent.parent / "benchmarks" / "studies"
PRIMARY = {"column": "kl", "arm": "sdft", "against": "sft"}


def _arm(score, kl, nll):
    return {"passages": score, "kl": kl, "top1": 1 - kl, "rouge_l": 0.5, "length": 30.0, "shift": 4.0,
            "target_nll": nll, "general.n": 16}


def _run(ratio, seed, sdft):
    return {"name": f"mix_ratio={ratio},seed={seed}", "values": {"mix_ratio": ratio, "seed": seed}, "suite": "passages",
            "items": {"passages": 80}, "measures": {"changed_token_share": ratio * 0.9}, "seconds": 9.0,
            "arms": {"base": {"passages": 0.5, "kl": 0.0, "top1": 1.0, "rouge_l": 1.0, "length": 40.0},
                     "sft": _arm(0.75, 0.25 + seed / 100, 4.5), "sdft": _arm(0.625, sdft, 4.5 - 3 * ratio)}}


@pytest.fixture
def content():
    """At ratio 0.5 the seeds disagree; at 1 sdft is lower by 0.2, 0.2 and 0.19 in all of them."""
    runs = [_run(0.5, 1, 0.30), _run(0.5, 2, 0.20), _run(0.5, 3, 0.27),
            _run(1.0, 1, 0.06), _run(1.0, 2, 0.07), _run(1.0, 3, 0.09)]
    about = {"name": "mix ratio", "question": "Does it follow?", "primary": PRIMARY, "matched": ["shift"], "runs": 7,
             "plots": [["changed_token_share", "kl"], ["target_nll", "kl"]], "settings": {"train_records": 128}}
    return {"study": about, "runs": runs, "failed": {"mix_ratio=2": "a share up to 1"},
            "statistics": statistics(about, runs)}


@pytest.fixture
def folder(content, tmp_path):
    write_json(tmp_path / "cells.json", content)
    return tmp_path


def test_the_page_needs_cells_json_alone(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert str(folder / "report.md") in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"cells.json", "report.md", "end_point.svg", "trade_off.svg", "changed_token_share-kl.svg",
                     "target_nll-kl.svg"}
    page = (folder / "report.md").read_text()
    for name in names - {"cells.json", "report.md"}:
        assert f"({name})" in page and (folder / name).read_text().startswith("<?xml")


def test_the_page_says_what_the_numbers_say(folder):
    page = write_study(folder).read_text()
    for text in ("# Mix ratio", "Does it follow?", "of sdft against sft, paired by training seed. 6 of 7 runs",
                 "train_records = 128", "mix_ratio=2: a share up to 1",
                 "mix_ratio 0.5: no difference detected in KL from the base model between sdft and sft: "
                 "-0.0133 (95 % interval -0.15 to +0.123; lower in 2 of 3 seeds",
                 "mix_ratio 1: KL from the base model is lower with sdft than with sft: -0.197 (95 % "
                 "interval -0.211 to -0.182; lower in 3 of 3 seeds",
                 "| mix_ratio 1 | sdft | 3 | 62.5 / – / – | 0.073 |",
                 "passages: mean score / lost / gained, % (n = 80 items)",
                 "share of target tokens that are changed, n = 6 trained arms (KL from the base model: n = 16 "
                 "general answers). r = -0.",
                 "over NLL of the targets under the base model, nats/token, n = 9 trained arms (KL from "
                 "the base model: n = 16 general answers). r = +0.",
                 "after Holm's adjustment: over the conditions of this end point, over those of the task's score, and "
                 "over all other comparisons of this page together",
                 "mix_ratio 0.5: passages (n = 80 items) is lower with sdft than with sft: -12.5 points",
                 "mix_ratio 1: passages (n = 80 items) is lower with sdft than with sft: -12.5 points",
                 "Named before the first run: KL from the base model, nats/token (n = 16 general answers) of sdft",
                 "At equal ‖ΔW‖, KL from the base model is lower with sdft than with sft: -0.105 (95 % interval ",
                 "there its score on the task differs from that of sft by -12.5 points (6 of 6 runs compared)"):
        assert text in page, text


def test_the_same_results_give_the_same_files(folder):
    write_study(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_study(folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_seed_allows_no_conclusion(content):
    one = statistics(content["study"], content["runs"][:1])["comparisons"][0]
    assert sentence(one) == ("mix_ratio 0.5: KL from the base model of sdft against sft: +0.04; one seed allows no "
                             "conclusion.")


def test_arms_without_a_common_point_are_reported():
    row = {"equal": "shift", "column": "kl", "arm": "sdft", "against": "kl", "condition": {"run": "weak"}, "n": 0,
           "points": 0, "of": 3, "score": None, "items": None, "mean": None}
    assert matched(row) == "At equal ‖ΔW‖, sdft and kl (weak) have no point in common."


def test_retention_is_reported_with_the_score_at_the_same_value_and_one_seed_allows_no_conclusion():
    row = {"equal": "shift", "column": "kl", "arm": "sdft", "against": "sft", "condition": {}, "n": 1, "points": 2,
           "of": 3, "score": -0.125, "items": None, "mean": -0.1, "low": None, "high": None, "agree": 1,
           "detected": False}
    assert matched(row) == (
        "At equal ‖ΔW‖, KL from the base model of sdft minus that of sft: -0.1; there its score on the task differs "
        "from that of sft by -12.5 points (2 of 3 runs compared); one seed allows no conclusion.")
    seeds = row | {"n": 3, "agree": 3, "low": -0.3, "high": 0.1, "p_holm": 0.25}
    assert matched(seeds) == (
        "At equal ‖ΔW‖, no difference detected in KL from the base model between sdft and sft: -0.1 (95 % "
        "interval -0.3 to +0.1; lower in 3 of 3 seeds, p = 0.25); there its score on the task differs from that "
        "of sft by -12.5 points (2 of 3 runs compared).")
    assert "KL from the base model is lower with sdft than with sft: -0.1 (" in matched(seeds | {"detected": True})


def test_differences_of_scores_are_in_points_and_others_in_their_own_unit(content):
    for run in content["runs"]:
        run["arms"]["sdft"]["share"] = run["values"]["seed"] / 100
        run["arms"]["sft"]["share"] = 0.0
    content["study"]["plots"] = [["share", "kl"]]
    reported = {row["column"]: sentence(row) for row in statistics(content["study"], content["runs"])["comparisons"]}
    assert ": +0.02 (" in reported["share"] and "points" not in reported["share"] and "points" in reported["passages"]


def test_a_pilot_has_a_table_and_no_figures(folder, content):
    """With one seed for each condition, a figure would suggest a result."""
    content["runs"] = content["runs"][::3]
    content["statistics"] = statistics(content["study"], content["runs"])
    write_json(folder / "cells.json", content)
    page = write_study(folder).read_text()
    assert {path.name for path in folder.iterdir()} == {"cells.json", "report.md"}
    assert PILOT in page and "| mix_ratio 1 | sdft | 1 | 62.5 / – / – | 0.060 |" in page and "![" not in page


def test_axes_have_units_and_figures_say_how_many_answers_and_items(folder, content):
    write_study(folder)
    kl = "KL from the base model, nats/token"
    for name, texts in {
            "end_point": [kl, "By condition (n = 3 training seeds; n = 16 general answers)"],
            "trade_off": ["score on the task above the base model's, points", kl,
                          "Learned (right) and drifted (up) (n = 9 trained arms)", "sft", "sdft, mix_ratio 0.5"],
            "target_nll-kl": ["NLL of the targets under the base model, nats/token", kl]}.items():
        drawn = (folder / f"{name}.svg").read_text()
        assert not [text for text in texts if f">{text}</text>" not in drawn], name
    page = (folder / "report.md").read_text()
    assert "(passages, n = 80 items) and by KL from the base model, nats/token (n = 16 general answers)" in page
    drift = [f"{head} (n = 16 general answers)" for head in (
        "KL from the base model, nats/token", "top-1 agreement with the base model, share of tokens")]
    texts = ["ROUGE-L to the base model, 0 to 1", "length of the answers, tokens"]      # on all answers: n is not kept
    assert f"| {' | '.join([*drift, *texts])} | ‖ΔW‖ |" in page


@pytest.mark.parametrize(("column", "label"), [
    ("passages", "passages: score, share"), ("lr", "learning rate"), ("general.bleu", "BLEU to the base model, 0 to 1"),
    ("texts.cosine", "embedding cosine of rewrites and originals"), ("nonsense", "nonsense")])
def test_only_a_suite_is_a_score(column, label):
    assert axis(column, ["passages"]) == label


def test_how_much_a_column_is_measured_on():
    runs = [{"items": {"sums": n}, "measures": {"texts.n": 7},
              "arms": {"base": {"general.n": 4}, "sft": {"on_task.n": 2}}} for n in (5, 8)]
    for column, reported in (("sums", "n = 5–8 items"), ("kl", "n = 4 general answers"),
                             ("texts.bleu", "n = 7 rewrites"), ("general.tv", "n = 4 general answers"),
                             ("general.bleu", ""), ("length", ""),
                             ("on_task.reverse.kl", "n = 2 answers to the task"), ("shift", "")):
        assert measured_on(runs, column) == reported


def test_bleu_and_likeness_of_rewrites_are_in_the_table_where_they_were_measured(content):
    assert "BLEU" not in " ".join(conditions_table(content).head)
    for run in content["runs"]:
        run["arms"]["sdft"]["general.bleu"] = 0.25
        run["measures"] |= {"texts.bleu": 0.125, "texts.n": 9}
    table = conditions_table(content)
    last = dict(zip(table.head, table.rows[-1], strict=True))
    assert last["BLEU to the base model, 0 to 1"] == "0.250"
    assert last["BLEU of rewrites to originals, 0 to 1 (n = 9 rewrites)"] == "0.125"


def test_runs_compared_with_runs_have_a_page(folder, content):
    content["study"]["primary"] = {"column": "kl", "arm": "sdft", "against": {"mix_ratio": 0.5}}
    content["statistics"] = statistics(content["study"], content["runs"])
    write_json(folder / "cells.json", content)
    assert "KL from the base model is lower with sdft than with mix_ratio 0.5" in write_study(folder).read_text()


def test_a_run_that_lacks_an_arm_or_a_column_has_dashes(content):
    del content["runs"][3]["arms"]["sdft"], content["runs"][0]["arms"]["sft"]["shift"]
    rows = {tuple(row[:2]): row for row in conditions_table(content).rows}
    assert rows["mix_ratio 1", "sdft"][2] == "2" and rows["all", "base"][-1] == "–"


def test_an_arm_that_is_the_same_in_all_conditions_has_one_row_and_what_is_plotted_a_column(content):
    for run in content["runs"]:
        run["measures"]["accepted_share"] = 0.25
    content["statistics"]["correlations"] += [{"x": "accepted_share", "y": "kl"}]
    table = conditions_table(content)
    assert [row[:2] for row in table.rows] == [["all", "base"], ["all", "sft"], ["mix_ratio 0.5", "sdft"],
                                               ["mix_ratio 1", "sdft"]]
    assert [row[table.head.index("share of rewrites accepted")] for row in table.rows] == ["–", "–", "0.250", "0.250"]


@pytest.mark.parametrize(("text", "message"), [("[]", "expected a study's runs"), ("{", "malformed JSON"),
                                               ('{"study": {}, "runs": [], "failed": {}, "statistics": {}}',
                                                "expected at least one finished run")])
def test_a_file_of_no_study_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "cells.json").write_text(text)
    with pytest.raises(SdftError, match=message):
        write_study(tmp_path)


def test_a_sweep_that_is_rewritten_in_another_folder_has_the_same_page(folder, tmp_path):
    """As benchmarks/studies/<name>/ holds it: only cells.json travels."""
    write_study(folder)
    other = tmp_path / "committed"
    write_json(other / "cells.json", json.loads((folder / "cells.json").read_text()))
    assert write_study(other).read_text() == (folder / "report.md").read_text()


@pytest.mark.parametrize("cells", sorted(STUDIES.glob("*/cells.json")), ids=lambda path: path.parent.name)
def test_the_pages_of_this_repository_are_made_from_their_results(cells, tmp_path):
    """Nobody wrote into them, and the statistics are those that the numbers give now."""
    shutil.copy(cells, tmp_path)
    assert write_study(tmp_path).read_text() == (cells.parent / "report.md").read_text()
    content = json.loads(cells.read_text())
    if "statistics" in content:
        assert content["statistics"] == json.loads(json.dumps(statistics(content["study"], content["runs"])))
        study = read_study(cells.parent.with_suffix(".toml"))
        assert content["study"]["settings"] == json.loads(json.dumps(study.settings))
    drawn = {path.name: path.stat().st_size for path in cells.parent.glob("*.svg")}
    assert drawn.keys() == {path.name for path in tmp_path.glob("*.svg")} and max(drawn.values(), default=0) < 100_000


@pytest.mark.parametrize("name", ["1-first-experiments", "2-mix-ratio", "3-templates", "4-regularisation"])
def test_the_results_of_this_repository_count_as_finished(name):
    """A key is a hash of settings, data and FORMAT: where one of them changes, the results must be measured again."""
    results = json.loads((STUDIES / name / "cells.json").read_text())["runs"]
    assert {result["name"]: result["key"] for result in results} == {
        run.name: run_key(run) for run in planned_runs(read_study(STUDIES / f"{name}.toml"))}
