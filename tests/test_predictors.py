"""What predicts forgetting: points of several studies, ranked, with intervals over whole studies."""
import json

import numpy as np
import pytest

from sdft.cli import main
from sdft.errors import SdftError
from sdft.experiment.predictors import intervals, points_of, predict, rank
from sdft.experiment.study import read_study
from sdft.files import write_json

ASKED = {"measures": ["kl", "shift", "gap", "tv"], "outcomes": ["instructions"]}
TOML = ('name = "predictors"\nquestion = "Which?"\nreads = ["a", "b", "c"]\n'
        '[predict]\nmeasures = ["kl", "shift", "gap", "tv"]\noutcomes = ["instructions"]\n')


def _cell(instructions, kl, shift, gap=1.0):
    """A seed at 0.5; sft drops by 0.125 in every cell, with the same measures."""
    return {"values": {}, "measures": {"gap": gap}, "arms": {
        "seed": {"instructions": 0.5, "kl": 0.0}, "sft": {"instructions": 0.375, "kl": 0.2, "shift": 5.0},
        "sdft": {"instructions": instructions, "kl": kl, "shift": shift}}}


CELLS = {"a": [_cell(0.4, 0.1, 4.0), _cell(0.25, 0.25, 2.0), _cell(0.3, 0.2, 7.0)],
         "b": [_cell(0.45, 0.06, 6.0), _cell(0.35, 0.14, 1.0)]}


@pytest.fixture
def study(tmp_path):
    for name, cells in CELLS.items():
        write_json(tmp_path / name / "cells.json", {"cells": cells})
    (tmp_path / "predictors.toml").write_text(TOML)
    return tmp_path / "predictors.toml"


def test_every_trained_arm_is_a_point_and_a_shared_one_counts_once():
    points = points_of("a", CELLS["a"], ASKED)
    assert [point["arm"] for point in points] == ["sft", "sdft", "sdft", "sdft"]
    assert points[0] == {"study": "a", "arm": "sft", "drops": {"instructions": 0.125},
                         "measures": {"kl": 0.2, "shift": 5.0}}
    assert points[1]["measures"] == {"kl": 0.1, "shift": 4.0, "gap": 1.0}
    assert points[1]["drops"]["instructions"] == pytest.approx(0.1)


def test_measures_are_ranked_by_what_they_explain(study, capsys):
    content = predict(read_study(study))
    assert "without c, which has no" in capsys.readouterr().err
    assert [(row["measure"], row["n"], row["studies"]) for row in content["ranking"]] == [
        ("kl", 7, 2), ("shift", 7, 2)]                                 # gap is the same everywhere: it explains nothing
    assert content["missing"] == ["gap", "tv"] and content["study"]["reads"] == ["a", "b"]
    kl = [point["measures"]["kl"] for point in content["points"]]
    drop = [point["drops"]["instructions"] for point in content["points"]]
    assert content["ranking"][0]["linear"] == pytest.approx(np.corrcoef(kl, drop)[0, 1] ** 2)


def test_intervals_draw_whole_studies():
    """Two studies of one line each: a draw is either of them, where R² is 1, or both, where it is `both`."""
    first, second = [(0, 0), (1, 1), (2, 2)], [(0, 2), (1, 1), (2, 0)]
    assert intervals([first, second]) == {"linear_low": pytest.approx(0), "linear_high": pytest.approx(1),
                                          "ranks_low": pytest.approx(0), "ranks_high": pytest.approx(1)}
    assert intervals([first, first]) == {name: pytest.approx(1) for name in
                                         ("linear_low", "linear_high", "ranks_low", "ranks_high")}
    assert set(intervals([first]).values()) == {None}
    assert intervals([[(0, 0)], [(1, 0)]])["linear_low"] is None       # never three different points


def test_nothing_that_varies_is_no_ranking():
    assert rank(points_of("a", CELLS["a"][:1], ASKED), ASKED) == []


def test_the_command_writes_the_ranking_and_its_page(study, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sweep", str(study), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"cells.json", "study.toml", "report.md",
                                                     "ranking-instructions.svg", "drop-instructions.svg"}
    page = (out / "report.md").read_text()
    best = json.loads((out / "cells.json").read_text())["ranking"][0]
    for text in ("7 trained arms of 2 studies: a, b", "Named before and measured in no cell: gap, tv.",
                 f"kl ranks first: R² = {best['linear']:.2f} (", ") with the drop of instructions, n = 7 arms",
                 "| measure | R², linear |"):
        assert text in page, text
    before = (out / "report.md").read_text()
    assert main(["report", str(out)]) == 0 and (out / "report.md").read_text() == before


def test_without_any_study_it_is_one_line(tmp_path):
    (tmp_path / "predictors.toml").write_text(TOML)
    with pytest.raises(SdftError, match="expected cells.json of a, b, c in folders beside it, found none"):
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
    (out / "cells.json").write_text("{}")
    assert main(["sweep", str(study), "--out", str(out)]) == 1
    assert "holds the study 'other'" in capsys.readouterr().err and (out / "cells.json").read_text() == "{}"


def test_cells_of_no_study_that_runs_some_are_one_line(study):
    (study.parent / "b" / "cells.json").write_text('{"points": []}')
    with pytest.raises(SdftError, match="leave 'b' out of `reads`"):
        predict(read_study(study))
