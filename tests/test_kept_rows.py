"""What cells.json keeps, which results finish a run, and what distinguishes one result from another."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from small_run import save_tiny_model
from test_sweep import HEAD, SMALL

from sdft.cli import main
from sdft.errors import SdftError
from sdft.experiment.run_folder import data_hash, hashes, make_folder
from sdft.experiment.settings import load_chosen
from sdft.files import read_json, write_json
from sdft.model.io.fetch import model_hash
from sdft.studies.collect import run_key, run_result
from sdft.studies.runs import carried, sweep, to_make
from sdft.studies.specification import planned_runs, read_study

FEW = SMALL.replace("test_records = 3", "test_records = 1").replace("instruction_items = 2", "instruction_items = 0")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def write(model, tmp_path):
    """Write a study of one run, with more settings or of another model; return its path."""
    def _write(more="", head=HEAD, name=None):
        path = tmp_path / "study.toml"
        path.write_text(f'{head}[settings]\nmodel = "{name or model}"\n{FEW}{more}')
        return path
    return _write


@pytest.fixture(scope="module")
def swept(model, tmp_path_factory):
    """The folder of a finished sweep of one run, and its study."""
    base = tmp_path_factory.mktemp("sweep")
    (base / "study.toml").write_text(f'{HEAD}[settings]\nmodel = "{model}"\n{FEW}')
    assert main(["sweep", str(base / "study.toml"), "--out", str(base / "out")]) == 0
    return base / "out", read_study(base / "study.toml")


def _alone(swept, folder):
    """A folder with nothing but cells.json of the finished sweep, and its content."""
    folder.mkdir()
    shutil.copy(swept[0] / "cells.json", folder)
    return read_json(folder / "cells.json")


def test_results_of_other_settings_stay_and_come_back_with_them(swept, write, tmp_path, capsys):
    """Also where the first run fails, which once left cells.json empty."""
    out = tmp_path / "out"
    before = _alone(swept, out)
    for _ in range(2):                                      # rank 3000 is refused before any work
        assert main(["sweep", str(write("lora_rank = 3000\n")), "--out", str(out)]) == 1
        after = read_json(out / "cells.json")
        assert after["earlier"] == before["runs"] and after["runs"] == [] and list(after["failed"]) == ["run"]
        error = capsys.readouterr().err
        assert error.count('cells.json: kept under "earlier", since no run has their settings, data and measures: run\n'
                           ) == 1
    assert main(["sweep", str(write()), "--out", str(out)]) == 0
    assert read_json(out / "cells.json") == before
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


def test_results_of_another_version_stay(swept, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = _alone(swept, out)
    study, runs = swept[1], planned_runs(swept[1])
    monkeypatch.setattr("sdft.studies.collect.FORMAT", 10**6)
    monkeypatch.setattr("sdft.studies.runs._make", lambda *given: _stop())
    assert list(sweep(study, runs, out)) == ["run"]
    assert read_json(out / "cells.json")["earlier"] == before["runs"]


def _stop():
    raise SdftError("as if the disk were full")


def test_results_of_another_study_are_refused_before_they_are_overwritten(swept, write, tmp_path, capsys):
    out = tmp_path / "out"
    before = _alone(swept, out)
    other = write(head=HEAD.replace('"tiny"', '"other"'))
    assert main(["sweep", str(other), "--out", str(out)]) == 1
    assert "holds the study 'tiny', not 'other'" in capsys.readouterr().err
    assert read_json(out / "cells.json") == before
    for wrong in ([], {"runs": 3}, {"runs": []}):
        write_json(out / "cells.json", wrong)
        assert main(["sweep", str(other), "--out", str(out)]) == 1
        assert f"{out / 'cells.json'}: expected " in capsys.readouterr().err
        assert read_json(out / "cells.json") == wrong


def test_a_finished_result_goes_before_what_a_folder_has_begun(swept, tmp_path):
    out, (run,) = tmp_path / "out", planned_runs(swept[1])
    before = _alone(swept, out)
    shutil.copy(swept[1].path, out)
    make_folder(out / run.name, run.config, hashes(run.config.model.model, run.data_sha256))
    (out / run.name / "rewrites.jsonl").write_text("")
    assert carried([run], out) == {"run": before["runs"][0]} and to_make([run], out) == []
    assert sweep(swept[1], [run], out) == {}
    assert read_json(out / "cells.json") == before
    assert sorted(path.name for path in (out / run.name).iterdir()) == ["config.toml", "environment.json",
                                                                         "rewrites.jsonl"]


def test_a_key_names_the_data_of_the_folder_and_the_version_of_the_measures(swept, tmp_path, monkeypatch):
    out, (run,) = swept[0], planned_runs(swept[1])
    folder = shutil.copytree(out / run.name, tmp_path / "run")
    keys = [run_result(run, folder)["key"]]
    assert keys == [run_key(run)]
    environment = read_json(folder / "environment.json")
    write_json(folder / "environment.json", environment | {"data_sha256": "0" * 64})
    keys.append(run_result(run, folder)["key"])
    write_json(folder / "environment.json", environment)
    monkeypatch.setattr("sdft.studies.collect.FORMAT", 10**6)
    assert len({*keys, run_result(run, folder)["key"]}) == 3


def test_a_run_whose_data_were_replaced_is_refused(swept, tmp_path, capsys):
    out = shutil.copytree(swept[0], tmp_path / "out")
    path = out / "run" / "environment.json"
    write_json(path, read_json(path) | {"data_sha256": "0" * 64})
    before = read_json(out / "cells.json")["runs"]
    assert main(["sweep", str(swept[1].path), "--out", str(out)]) == 1
    assert "the data's SHA-256 was 000000000000…, is " in capsys.readouterr().err
    assert read_json(out / "cells.json")["earlier"] == before


def test_a_run_folder_of_an_older_version_is_refused(swept, tmp_path, capsys):
    out = shutil.copytree(swept[0], tmp_path / "out")
    path = out / "run" / "environment.json"
    write_json(path, read_json(path) | {"format": 1})
    before = read_json(out / "cells.json")["runs"]
    assert main(["sweep", str(swept[1].path), "--out", str(out)]) == 1
    assert f"run run failed: {out / 'run'}: expected a run folder of format " in capsys.readouterr().err
    assert read_json(out / "cells.json")["earlier"] == before


@pytest.mark.parametrize(("more", "same"), [
    ("micro_tokens = 64\n", True), ("gradient_checkpointing = true\n", True), ("generation_batch_size = 3\n", True),
    ("lora_dropout = 0.1\n", False), ("lr = 0.1\n", False), ("n_probe_texts = 3\n", False)])
def test_a_key_is_of_the_settings_that_decide_the_result(write, more, same):
    (ours,), (theirs,) = planned_runs(read_study(write())), planned_runs(read_study(write(more)))
    assert (run_key(ours) == run_key(theirs)) == same


def test_a_key_depends_neither_on_the_folder_of_the_model_nor_on_save_every(write, model, tmp_path):
    (run,) = planned_runs(read_study(write()))
    (moved,) = planned_runs(read_study(write(name=shutil.copytree(model, tmp_path / "elsewhere"))))
    often = replace(run, config=replace(run.config, train=replace(run.config.train, save_every=7)))
    assert moved.config.model.model != run.config.model.model
    assert run_key(run) == run_key(moved) == run_key(often)


def test_with_dropout_the_micro_batches_decide_the_result(write):
    (ours,), (theirs,) = (planned_runs(read_study(write(f"lora_dropout = 0.1\nmicro_tokens = {n}\n")))
                          for n in (64, 128))
    assert run_key(ours) != run_key(theirs)


def test_a_model_that_moved_keeps_its_results(swept, write, model, tmp_path):
    _alone(swept, tmp_path / "out")
    moved = shutil.copytree(model, tmp_path / "elsewhere")
    assert list(carried(planned_runs(read_study(write(name=moved))), tmp_path / "out")) == ["run"]
    (moved / "config.json").write_text(json.dumps(read_json(moved / "config.json") | {"rms_norm_eps": 0.5}))
    assert model_hash(moved) != model_hash(model)
    assert carried(planned_runs(read_study(write(name=moved))), tmp_path / "out") == {}


def test_the_data_are_all_that_scores_depend_on(swept):
    task = load_chosen(planned_runs(swept[1])[0].config.task)
    suite = task.suites[0]
    assert suite.items[0].reference and data_hash(task) == data_hash(replace(task))
    for change in ({"reference": "another"}, {"extra": {"kind": "another"}}, {"kind": "another"}):
        items = [replace(suite.items[0], **change), *suite.items[1:]]
        assert data_hash(replace(task, suites=[replace(suite, items=items), *task.suites[1:]])) != data_hash(task)
    train = [replace(task.train[0], response="another"), *task.train[1:]]
    assert data_hash(replace(task, train=train)) != data_hash(task)
