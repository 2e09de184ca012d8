"""A study of a tiny model: its runs, what they share, resuming after a kill, a run that fails, and cells.json."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from small_run import save_tiny_model

from sdft.cli import main
from sdft.errors import SdftError
from sdft.studies.estimate import remaining
from sdft.studies.runs import carried, take_over, to_make
from sdft.studies.specification import planned_runs, read_study
from sdft.studies.stages import stages

SMALL = """
dtype = "float32"
train_records = 4
test_records = 3
rewrite_tokens = 8
measure = "all"
elaborate_items = 2
instruction_items = 2
general_items = 2
epochs = 1
batch_size = 2
save_every = 1
max_length = 2048
"""
HEAD = 'name = "tiny"\nquestion = "Does it work?"\n[primary]\ncolumn = "kl"\narm = "sdft"\nagainst = "sft"\n'
GRID = "[grid]\nmix_ratio = [0, 1]\nseed = [1, 2]\n"
NAMES = ["mix_ratio=0,seed=1", "mix_ratio=0,seed=2", "mix_ratio=1,seed=1", "mix_ratio=1,seed=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def write(model, tmp_path):
    """Write a study file on the tiny model: its grid, and more settings."""
    def _write(grid=GRID, more="", head=HEAD, small=SMALL):
        path = tmp_path / "study.toml"
        path.write_text(f'{head}[settings]\nmodel = "{model}"\n{small}{more}{grid}')
        return path
    return _write


@pytest.fixture(scope="module")
def swept(model, tmp_path_factory):
    """A finished sweep, and how many rewrites, answers, training steps and measures of the base model it made."""
    import sdft.distill.rewriting
    import sdft.experiment.context
    import sdft.measure.abilities
    import sdft.train.loop

    base = tmp_path_factory.mktemp("sweep")
    (base / "study.toml").write_text(f'{HEAD}[settings]\nmodel = "{model}"\n{SMALL}{GRID}')
    counts = {"rewritten": 0, "answered": 0, "steps": 0, "base": 0}
    with pytest.MonkeyPatch.context() as patch:
        for module, name, count in ((sdft.distill.rewriting, "stream", "rewritten"),
                                    (sdft.measure.abilities, "stream", "answered"),
                                    (sdft.train.loop, "gradient", "steps"),
                                    (sdft.experiment.context, "base_view", "base"),
                                    (sdft.experiment.context, "fisher", "base")):
            work = getattr(module, name)

            def counted(*arguments, work=work, count=count):
                counts[count] += 1 if count in ("steps", "base") else len(arguments[2])
                return work(*arguments)
            patch.setattr(module, name, counted)
        assert main(["sweep", str(base / "study.toml"), "--out", str(base / "out")]) == 0
    return base, counts


def _results(folder):
    return json.loads((folder / "cells.json").read_text())


def test_every_run_has_a_folder_named_by_its_own_settings(swept):
    base, _ = swept
    assert [run["name"] for run in _results(base / "out")["runs"]] == NAMES
    for name in NAMES:
        assert (base / "out" / name / "summary.json").is_file()
    assert 'mix_ratio = 1.0' in (base / "out" / NAMES[2] / "config.toml").read_text()
    assert 'seed = 2' in (base / "out" / NAMES[3] / "config.toml").read_text()


def test_what_runs_have_in_common_is_made_once(swept):
    """4 rewrites; 9 answers of the base model, of sft at 2 seeds, of sdft in 4 runs; 2 steps for each of these 6."""
    _, counts = swept
    assert counts == {"rewritten": 4, "answered": 9 * (1 + 2 + 4), "steps": 2 * (2 + 4), "base": 3}


def test_a_run_that_took_over_equals_the_run_that_did_not(swept, write, tmp_path):
    base, _ = swept
    assert main(["sweep", str(write("[grid]\nmix_ratio = [1]\nseed = [2]\n")), "--out", str(tmp_path / "alone")]) == 0
    alone, shared = tmp_path / "alone" / NAMES[3], base / "out" / NAMES[3]
    for arm in ("sft", "sdft"):
        ours, theirs = (load_file(str(path / arm / "adapter_model.safetensors")) for path in (alone, shared))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    measured, expected = (json.loads((path / "measures.json").read_text()) for path in (alone, shared))
    for arm in ("sft", "sdft"):
        del measured["arms"][arm]["training"]["seconds"], expected["arms"][arm]["training"]["seconds"]
    assert measured == expected


def test_a_finished_sweep_is_left_as_it_is(swept, capsys):
    base, _ = swept
    before = {path: path.stat().st_mtime_ns for path in (base / "out").rglob("*.jsonl")}
    assert main(["sweep", str(base / "study.toml"), "--out", str(base / "out")]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (base / "out").rglob("*.jsonl")}
    assert "nothing is left to run" in capsys.readouterr().out


def test_cells_json_holds_the_numbers_of_the_run_folders(swept):
    base, _ = swept
    for run in _results(base / "out")["runs"]:
        measures = json.loads((base / "out" / run["name"] / "measures.json").read_text())
        table = json.loads((base / "out" / run["name"] / "summary.json").read_text())["table"]
        assert run["arms"]["sdft"]["kl"] == pytest.approx(table["sdft"]["kl"], rel=1e-5)
        assert run["arms"]["sdft"]["general.kl_low"] == pytest.approx(
            measures["arms"]["sdft"]["general"]["kl_low"], rel=1e-5)
        assert run["arms"]["sft"]["training.target_tokens"] == measures["arms"]["sft"]["training"]["target_tokens"]
        assert run["arms"]["sft"]["target_nll"] == pytest.approx(measures["gap"]["original"]["nll"], rel=1e-5)
        assert run["measures"]["gap.distilled.nll"] == pytest.approx(measures["gap"]["distilled"]["nll"], rel=1e-5)
        assert run["measures"]["accepted_share"] == measures["audit"]["accepted"] / 4
        assert run["arms"]["sdft"]["general.reverse.kl"] > 0 and run["arms"]["sdft"]["fisher.total"] > 0
        assert ("texts.rouge_l" in run["measures"]) == bool(measures["texts"])
        assert run["items"] == {"passages": 3, "elaborate": 2, "instructions": 2}
    text = (base / "out" / "cells.json").read_text()
    found = [word for word in ("modules", "layers", "kinds", '"by_', ".by_") if word in text]
    assert not found and len(text) < 4 * 20_000         # with what every kind of item lost and gained
    assert _results(base / "out")["study"]["primary"] == {"column": "kl", "arm": "sdft", "against": "sft"}


def test_comparisons_pair_the_runs_of_one_seed(swept):
    base, _ = swept
    content = _results(base / "out")
    kl = [row for row in content["statistics"]["comparisons"] if row["column"] == "kl"]
    assert [row["condition"] for row in kl] == [{"mix_ratio": 0.0}, {"mix_ratio": 1.0}]
    for row, names in zip(kl, (NAMES[:2], NAMES[2:]), strict=True):
        arms = [run["arms"] for run in content["runs"] if run["name"] in names]
        assert row["differences"] == [pytest.approx(arm["sdft"]["kl"] - arm["sft"]["kl"]) for arm in arms]
        assert row["n"] == 2 and not row["detected"]


def test_rewrites_go_to_runs_with_the_same_template_only(write, tmp_path):
    study = read_study(write('[grid]\ntemplate = ["using", "refer"]\nseed = [1, 2]\n'))
    runs = planned_runs(study)
    for run in runs:
        (tmp_path / run.name).mkdir()
    source = tmp_path / runs[0].name
    (source / "rewrites.jsonl").write_text('{"id": "a"}\n')
    (source / "rewrites.settings.json").write_text("{}")
    assert [take_over(run, runs[:1], tmp_path) for run in runs[1:]] == [["rewrite"], [], []]
    assert (tmp_path / runs[1].name / "rewrites.jsonl").read_text() == '{"id": "a"}\n'
    assert not (tmp_path / runs[2].name / "rewrites.jsonl").exists()


@pytest.mark.parametrize(("change", "shared"), [
    ("mix_ratio = 0.5", {"rewrite", "eval base", "train sft", "eval sft", "measure sft"}),
    ('template = "refer"', {"eval base", "train sft", "eval sft", "measure sft"}),
    ("rewrite_tokens = 9", {"eval base", "train sft", "eval sft", "measure sft"}),
    ("max_length_ratio = 6", {"rewrite", "eval base", "train sft", "eval sft", "measure sft"}),
    ("seed = 3", {"rewrite", "gap", "eval base"}),
    ("lr = 0.1", {"rewrite", "gap", "eval base"}),
    ("n_probe_texts = 3", {"rewrite", "gap", "eval base", "train sft", "eval sft", "train sdft", "eval sdft"}),
    ("svd_layers = 1", {"rewrite", "gap", "eval base", "train sft", "eval sft", "train sdft", "eval sdft"}),
    ('train_template = "alpaca"', {"rewrite", "eval base"}),
    ("sampling_seed = 1", {"train sft"}),
    ("general_items = 1", {"rewrite", "gap", "train sft", "train sdft"}),
    ("instruction_items = 1", {"rewrite", "gap", "train sft", "train sdft"}),
    ("data_seed = 1", set()), ("train_records = 5", set()), ('dtype = "bfloat16"', set()),
])
def test_a_stage_is_shared_where_no_setting_that_it_reads_differs(write, change, shared):
    """A key that forgot a setting would share too much."""
    assert all(f"eval {arm}" in shared for arm in ("sft", "sdft") if f"measure {arm}" in shared)
    name = change.partition(" ")[0]
    small = "\n".join(line for line in SMALL.splitlines() if not line.startswith(f"{name} ")) + "\n"
    ours, theirs = (stages(planned_runs(read_study(write("", more, small=base)))[0].config, ("sft", "sdft"))
                    for base, more in ((SMALL, ""), (small, f"{change}\n")))
    again = {"eval base again"} & ours.keys() if "eval base" in shared else set()       # it repeats a part of eval base
    assert {stage for stage in ours if ours[stage] == theirs[stage]} == shared | again


def test_a_stage_that_a_run_has_begun_is_left_to_it(write, tmp_path):
    runs = planned_runs(read_study(write()))
    for run in runs[:2]:
        (tmp_path / run.name / "eval" / "base").mkdir(parents=True)
        (tmp_path / run.name / "rewrites.jsonl").write_text(f"{run.name}\n")
    (tmp_path / runs[0].name / "eval" / "base" / "a.jsonl").write_text("1\n")
    assert take_over(runs[1], runs[:1], tmp_path) == []
    assert (tmp_path / runs[1].name / "rewrites.jsonl").read_text() == f"{runs[1].name}\n"


def test_a_journal_taken_over_is_a_copy_and_a_state_the_same_file(swept):
    base, _ = swept
    first, second = (base / "out" / name for name in (NAMES[0], NAMES[2]))
    assert (first / "sft" / "state.safetensors").samefile(second / "sft" / "state.safetensors")
    assert not (first / "rewrites.jsonl").samefile(second / "rewrites.jsonl")
    assert not (first / "sft" / "log.jsonl").samefile(second / "sft" / "log.jsonl")


def test_a_baseline_on_the_original_answers_is_trained_once_over_ratios(write, tmp_path):
    path, out = write("[grid]\nmix_ratio = [0, 1]\n", 'arms = ["kl", "self-output"]\n',
                      HEAD.replace('"sdft"', '"self-output"').replace('"sft"', '"kl"')), tmp_path / "out"
    assert main(["sweep", str(path), "--out", str(out)]) == 0
    kl, own = ([out / f"mix_ratio={ratio}" / arm / "state.safetensors" for ratio in (0, 1)]
               for arm in ("kl", "self-output"))
    assert kl[0].samefile(kl[1]) and not own[0].samefile(own[1])
    assert list(_results(out)["runs"][1]["arms"]) == ["base", "kl", "self-output"]


def test_a_killed_sweep_resumes_to_the_same_result(swept, write, tmp_path):
    base, _ = swept
    path, out = write(), tmp_path / "killed"
    command = [sys.executable, "-m", "sdft", "sweep", str(path), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    waited = out / NAMES[1] / "sdft" / "state.safetensors"
    while process.poll() is None and not waited.is_file():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.communicate()[1]
    assert [run["name"] for run in _results(out)["runs"]] == NAMES[:1]
    assert main(["sweep", str(path), "--out", str(out)]) == 0
    ours, theirs = _results(out), _results(base / "out")
    for content in (ours, theirs):
        for run in content["runs"]:
            del run["seconds"]
            for row in run["arms"].values():
                row.pop("training.seconds", None)
    assert ours == theirs


def test_a_run_that_fails_is_reported_and_the_others_are_made(write, tmp_path, capsys):
    path, out = write("[grid]\nlora_rank = [2, 3000]\n"), tmp_path / "out"
    assert main(["sweep", str(path), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "run lora_rank=3000 failed: " in error and "sdft: 1 of 2 runs failed: lora_rank=3000" in error
    content = _results(out)
    assert [run["name"] for run in content["runs"]] == ["lora_rank=2"] and list(content["failed"]) == ["lora_rank=3000"]
    assert not (out / "lora_rank=3000").exists()


def test_runs_made_with_other_settings_are_refused(swept, write, tmp_path, capsys):
    base, _ = swept
    out = shutil.copytree(base / "out", tmp_path / "copy")
    assert main(["sweep", str(write(more="lr = 0.1\n")), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.count("train.lr was 0.0005, is 0.1") == 4 and "4 of 4 runs failed" in error
    other = write(head=HEAD.replace('"tiny"', '"other"'))
    assert main(["sweep", str(other), "--out", str(out)]) == 1
    assert "holds the study 'tiny', not 'other'" in capsys.readouterr().err
    assert main(["sweep", str(other), "--out", str(out / NAMES[0])]) == 1
    assert "expected the folder of a study or an empty one" in capsys.readouterr().err


def test_the_plan_says_what_is_left_and_how_long_it_takes(swept, write, tmp_path, capsys):
    base, _ = swept
    assert main(["sweep", str(write()), "--out", str(tmp_path / "new"), "--dry-run", "--gflops=400"]) == 0
    out = capsys.readouterr().out
    assert "4 runs, 4 of them to do" in out and "by sdft plan at 400 GFLOP/s" in out
    assert f"{NAMES[3]}  eval sdft, measure sdft, train sdft\n" in out and not (tmp_path / "new").exists()
    copy = shutil.copytree(base / "out", tmp_path / "copy")
    runs = planned_runs(read_study(base / "study.toml"))
    for name, seconds in ((NAMES[0], {"rewrite": 7, "train sft": 5, "train sdft": 20, "gap": 2, "eval sdft": 3,
                                      "measure sft": 1, "measure sdft": 1}),
                          (NAMES[1], {"train sft": 6, "rewrite": 0})):
        path = copy / name / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    for path in (copy / "cells.json", *(copy / name / "summary.json" for name in NAMES[2:])):
        path.unlink()
    own = ["eval sdft", "measure sdft", "train sdft"]
    assert to_make(runs, copy) == [(runs[2], [own[0], "gap", *own[1:]]), (runs[3], own)]
    assert remaining(runs, copy) == (2 * (3 + 20 + 1) + 2, 2)


def test_runs_of_another_machine_are_finished_by_their_results(swept, write, tmp_path, capsys):
    """Only cells.json was copied: its results stay as they were, and the run that it lacks is made."""
    base, _ = swept
    out = tmp_path / "moved"
    out.mkdir()
    content = _results(base / "out")
    for run in content["runs"]:
        run["machine"]["processor"] = "another"
    foreign = {**content, "runs": [{**run, "model_sha256": "0"} for run in content["runs"]]}
    (out / "cells.json").write_text(json.dumps(foreign))
    assert carried(planned_runs(read_study(write())), out) == {}
    last = content["runs"].pop()
    (out / "cells.json").write_text(json.dumps(content))
    assert main(["sweep", str(write()), "--out", str(out)]) == 0
    assert "4 runs, 1 of them to do" in capsys.readouterr().out
    assert [path.name for path in out.iterdir() if path.is_dir()] == [last["name"]]
    runs = _results(out)["runs"]
    assert runs[:3] == content["runs"] and runs[3]["machine"]["processor"] != "another"
    assert runs[3]["arms"]["sdft"]["kl"] == last["arms"]["sdft"]["kl"]
    assert _results(out)["statistics"] == _results(base / "out")["statistics"]


def test_results_of_other_settings_do_not_finish_a_run(swept, write, tmp_path):
    base, _ = swept
    (tmp_path / "out").mkdir()
    shutil.copy(base / "out" / "cells.json", tmp_path / "out")
    runs = planned_runs(read_study(write(more="lr = 0.1\n")))
    assert carried(runs, tmp_path / "out") == {}
    assert list(carried(planned_runs(read_study(write(more="generation_batch_size = 3\n"))), tmp_path / "out")) == NAMES


def test_settings_that_no_run_takes_name_the_study(write):
    with pytest.raises(SdftError, match="study.toml: distill.mix_ratio: expected a share from 0 to 1, got 2.0"):
        planned_runs(read_study(write("[grid]\nmix_ratio = [2]\n")))
    with pytest.raises(SdftError, match="two runs are named 'mix_ratio=0.1'"):
        planned_runs(read_study(write("[grid]\nmix_ratio = [0.1, 0.1000000001]\n")))


def test_an_end_point_of_arms_that_no_run_has_is_refused_at_once(write):
    for wrong, key in ((HEAD.replace('"sdft"', '"sdfft"'), "arm"), (HEAD.replace('"sft"', '"stf"'), "against")):
        with pytest.raises(SdftError, match=f"primary.{key}: expected an arm of a run, of base, sft, sdft"):
            planned_runs(read_study(write(head=wrong)))


def test_an_end_point_that_does_not_exist_stops_after_the_first_run(write, tmp_path, capsys):
    path = write(head=HEAD.replace('"kl"', '"kll"'))
    assert main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "primary.column: sdft has no 'kll' (did you mean kl?)" in capsys.readouterr().err
    assert len(_results(tmp_path / "out")["runs"]) == 1


def test_the_estimate_takes_the_rate_that_is_given(write, tmp_path, capsys):
    def reported(*options):
        main(["sweep", str(write()), "--out", str(tmp_path / "new"), "--dry-run", *options])
        return capsys.readouterr()

    assert "by sdft plan at 1500 GFLOP/s" in reported("--gflops=1500").out
    assert "by sdft plan at " in reported().out
    assert "--gflops: expected a positive number, got -1" in reported("--gflops=-1").err


def test_an_end_point_that_the_base_model_leaves_nothing_to_lose_of_is_refused_in_one_line(write, tmp_path, capsys):
    """The tiny model solves no item, so forgetting cannot be measured: the other runs would lack it too."""
    head = HEAD.replace('"kl"', '"elaborate.forgetting"')
    assert main(["sweep", str(write("[grid]\nseed = [1, 2]\n", head=head)), "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith(
        "primary.column: expected items that the base model solves, but it solves none of elaborate, so none can be "
        "lost; name another end point, or another model")
    assert [run["name"] for run in _results(tmp_path / "out")["runs"]] == ["seed=1"]
