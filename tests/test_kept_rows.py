"""What cells.json keeps, whose rows it takes, and what tells one result from another."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from small_run import save_tiny_model
from test_sweep import HEAD, SMALL

from sdft.cli import main
from sdft.errors import SdftError
from sdft.experiment.run_folder import data_hash, make_folder, sources
from sdft.experiment.settings import load_chosen
from sdft.files import read_json, write_json
from sdft.model.io.fetch import model_hash
from sdft.studies.collect import cell_key, cell_row
from sdft.studies.runs import carried, remaining, sweep, to_make
from sdft.studies.specification import cells_of, read_study

FEW = SMALL.replace("test_records = 3", "test_records = 1").replace("instruction_items = 2", "instruction_items = 0")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def write(model, tmp_path):
    """Write a study of one cell, with more settings or of another model; return its path."""
    def _write(more="", head=HEAD, name=None):
        path = tmp_path / "study.toml"
        path.write_text(f'{head}[settings]\nmodel = "{name or model}"\n{FEW}{more}')
        return path
    return _write


@pytest.fixture(scope="module")
def swept(model, tmp_path_factory):
    """The folder of a finished sweep of one cell, and its study."""
    base = tmp_path_factory.mktemp("sweep")
    (base / "study.toml").write_text(f'{HEAD}[settings]\nmodel = "{model}"\n{FEW}')
    assert main(["sweep", str(base / "study.toml"), "--out", str(base / "out")]) == 0
    return base / "out", read_study(base / "study.toml")


def _alone(swept, folder):
    """A folder with nothing but cells.json of the finished sweep, and its content."""
    folder.mkdir()
    shutil.copy(swept[0] / "cells.json", folder)
    return read_json(folder / "cells.json")


def test_rows_of_other_settings_stay_and_come_back_with_them(swept, write, tmp_path, capsys):
    """Also where the first cell fails: it used to leave cells.json empty."""
    out = tmp_path / "out"
    before = _alone(swept, out)
    for _ in range(2):                                      # rank 3000 is refused before any work
        assert main(["sweep", str(write("lora_rank = 3000\n")), "--out", str(out)]) == 1
        after = read_json(out / "cells.json")
        assert after["earlier"] == before["cells"] and after["cells"] == [] and list(after["failed"]) == ["cell"]
        error = capsys.readouterr().err
        assert error.count('cells.json: kept under "earlier", since no cell has their settings, data and measures: cell\n'
                           ) == 1
    assert main(["sweep", str(write()), "--out", str(out)]) == 0
    assert read_json(out / "cells.json") == before
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


def test_rows_of_measures_of_another_version_stay(swept, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = _alone(swept, out)
    study, cells = swept[1], cells_of(swept[1])
    monkeypatch.setattr("sdft.studies.collect.FORMAT", 10**6)
    monkeypatch.setattr("sdft.studies.runs._run_cell", lambda *given: _stop())
    assert list(sweep(study, cells, out)) == ["cell"]
    assert read_json(out / "cells.json")["earlier"] == before["cells"]


def _stop():
    raise SdftError("as if the disk were full")


def test_cells_of_another_study_are_refused_before_they_are_overwritten(swept, write, tmp_path, capsys):
    out = tmp_path / "out"
    before = _alone(swept, out)
    other = write(head=HEAD.replace('"tiny"', '"other"'))
    assert main(["sweep", str(other), "--out", str(out)]) == 1
    assert "holds the study 'tiny', not 'other'" in capsys.readouterr().err
    assert read_json(out / "cells.json") == before
    for wrong in ([], {"cells": 3}, {"cells": []}):
        write_json(out / "cells.json", wrong)
        assert main(["sweep", str(other), "--out", str(out)]) == 1
        assert f"{out / 'cells.json'}: expected " in capsys.readouterr().err
        assert read_json(out / "cells.json") == wrong


def test_a_finished_row_goes_before_what_a_folder_has_begun(swept, tmp_path):
    out, (cell,) = tmp_path / "out", cells_of(swept[1])
    before = _alone(swept, out)
    shutil.copy(swept[1].path, out)
    make_folder(out / cell.name, cell.config, sources(cell.config.model.model, cell.data))
    (out / cell.name / "rewrites.jsonl").write_text("")
    assert carried([cell], out) == {"cell": before["cells"][0]} and to_make([cell], out) == []
    assert sweep(swept[1], [cell], out) == {}
    assert read_json(out / "cells.json") == before
    assert sorted(path.name for path in (out / cell.name).iterdir()) == ["config.toml", "environment.json",
                                                                         "rewrites.jsonl"]


def test_a_key_says_which_data_and_measures_the_folder_holds_not_todays(swept, tmp_path):
    out, (cell,) = swept[0], cells_of(swept[1])
    folder = shutil.copytree(out / cell.name, tmp_path / "cell")
    assert cell_row(cell, folder)["key"] == cell_key(cell)
    environment, summary = read_json(folder / "environment.json"), read_json(folder / "summary.json")
    keys = {cell_key(cell)}
    for found in ({"data_sha256": "0" * 64}, {}):            # other data; a folder of a version that did not tell
        write_json(folder / "environment.json", {name: value for name, value in environment.items()
                                                 if name != "data_sha256"} | found)
        keys.add(cell_row(cell, folder)["key"])
    write_json(folder / "environment.json", environment)
    write_json(folder / "summary.json", summary | {"format": 0})
    assert len({*keys, cell_row(cell, folder)["key"]}) == 4


def test_a_cell_whose_data_were_replaced_is_refused(swept, tmp_path, capsys):
    out = shutil.copytree(swept[0], tmp_path / "out")
    path = out / "cell" / "environment.json"
    write_json(path, read_json(path) | {"data_sha256": "0" * 64})
    before = read_json(out / "cells.json")["cells"]
    assert main(["sweep", str(swept[1].path), "--out", str(out)]) == 1
    assert "the data's SHA-256 was 000000000000…, is " in capsys.readouterr().err
    assert read_json(out / "cells.json")["earlier"] == before


def test_measures_of_an_older_version_are_planned_and_taken_anew(swept, tmp_path):
    out, (cell,) = shutil.copytree(swept[0], tmp_path / "out"), cells_of(swept[1])
    path = out / "cell" / "summary.json"
    write_json(path, read_json(path) | {"format": 0})
    (out / "cells.json").unlink()
    assert to_make([cell], out) == [(cell, ["gap", "measure sdft", "measure sft"])]
    assert remaining([cell], out)[0] < sum(read_json(path)["seconds"].values())
    assert sweep(swept[1], [cell], out) == {}
    (row,), (expected,) = (read_json(folder / "cells.json")["cells"] for folder in (out, swept[0]))
    assert row["arms"] == expected["arms"] and row["key"] == expected["key"] == cell_key(cell)


@pytest.mark.parametrize(("more", "same"), [
    ("micro_tokens = 64\n", True), ("gradient_checkpointing = true\n", True), ("generation_batch_size = 3\n", True),
    ("lora_dropout = 0.1\n", False), ("lr = 0.1\n", False), ("n_probe_texts = 3\n", False)])
def test_a_key_is_of_the_settings_that_decide_the_result(write, more, same):
    (ours,), (theirs,) = cells_of(read_study(write())), cells_of(read_study(write(more)))
    assert (cell_key(ours) == cell_key(theirs)) == same


def test_a_key_is_the_same_wherever_the_model_lies_and_however_often_a_state_is_saved(write, model, tmp_path):
    (cell,) = cells_of(read_study(write()))
    (moved,) = cells_of(read_study(write(name=shutil.copytree(model, tmp_path / "elsewhere"))))
    often = replace(cell, config=replace(cell.config, train=replace(cell.config.train, save_every=7)))
    assert moved.config.model.model != cell.config.model.model
    assert cell_key(cell) == cell_key(moved) == cell_key(often)


def test_with_dropout_the_packs_decide_the_result(write):
    (ours,), (theirs,) = (cells_of(read_study(write(f"lora_dropout = 0.1\nmicro_tokens = {n}\n"))) for n in (64, 128))
    assert cell_key(ours) != cell_key(theirs)


def test_a_model_that_moved_takes_its_rows_along(swept, write, model, tmp_path):
    _alone(swept, tmp_path / "out")
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    assert list(carried(cells_of(read_study(write(name=moved))), tmp_path / "out")) == ["cell"]
    (moved / "config.json").write_text(json.dumps(read_json(moved / "config.json") | {"rms_norm_eps": 0.5}))
    assert model_hash(moved) != model_hash(model)
    assert carried(cells_of(read_study(write(name=moved))), tmp_path / "out") == {}


def test_the_data_are_all_that_scores_depend_on(swept):
    task = load_chosen(cells_of(swept[1])[0].config.task)
    suite = task.suites[0]
    assert suite.items[0].reference and data_hash(task) == data_hash(replace(task))
    for change in ({"reference": "another"}, {"extra": {"kind": "another"}}, {"kind": "another"}):
        items = [replace(suite.items[0], **change), *suite.items[1:]]
        assert data_hash(replace(task, suites=[replace(suite, items=items), *task.suites[1:]])) != data_hash(task)
    assert data_hash(replace(task, train=[replace(task.train[0], response="another"), *task.train[1:]])) != data_hash(task)
