"""A whole run on a tiny model: every file of the contract, resuming after SIGKILL, refusing other settings."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import ARMS, options, save_tiny_model

import sdft
from sdft.cli import main
from sdft.distill import Distilled
from sdft.experiment.context import evenly
from sdft.files import Journal
from sdft.kernels.lora_linear import lora_linear


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert main(["run", *options(model), "--out", str(folder)]) == 0
    return folder


def test_the_run_folder_holds_what_the_contract_says(finished):
    for name in ("config.toml", "environment.json", "rewrites.jsonl", "distilled.jsonl", "measures.json",
                 "distilled.settings.json", "summary.json", "report.md", "report.html"):
        assert (finished / name).is_file(), name
    for arm in ARMS:
        for suite in ("passages", "instructions", "general"):
            rows = [json.loads(line) for line in (finished / "eval" / arm / f"{suite}.jsonl").read_text().splitlines()]
            assert rows and {"id", "prompt", "output", "tokens", "finish", "score"} <= rows[0].keys()
        if arm != "base":
            for name in ("adapter_model.safetensors", "adapter_config.json", "log.jsonl", "state.safetensors"):
                assert (finished / arm / name).is_file(), (arm, name)
    rewrite = json.loads((finished / "rewrites.jsonl").read_text().splitlines()[0])
    assert {"id", "text", "tokens", "finish", "seed"} <= rewrite.keys()
    distilled = [json.loads(line) for line in (finished / "distilled.jsonl").read_text().splitlines()]
    assert len(distilled) == 4
    assert all(row["source"] in ("rewrite", "original") and (row["source"] == "rewrite") == (not row["reason"])
               for row in distilled)


def test_the_measures_agree_with_the_files(finished):
    measures = json.loads((finished / "measures.json").read_text())
    assert list(measures["arms"]) == list(ARMS)
    assert len({measures["arms"][arm]["general"]["tokens"] for arm in ARMS}) == 1       # of the seed's answers, all
    for arm in ARMS:
        rows = [json.loads(line) for line in (finished / "eval" / arm / "passages.jsonl").read_text().splitlines()]
        suite = measures["arms"][arm]["suites"]["passages"]
        assert suite["mean"] == pytest.approx(sum(row["score"] for row in rows) / len(rows)) and suite["n"] == 3
    for arm in ARMS[1:]:
        log = [json.loads(line) for line in (finished / arm / "log.jsonl").read_text().splitlines()]
        shift = measures["arms"][arm]["shift"]
        assert shift["total"] == pytest.approx(log[-1]["delta_norm"], rel=1e-6) and shift["total"] > 0
        assert measures["arms"][arm]["general"]["kl"] > 0
    table = json.loads((finished / "summary.json").read_text())["table"]
    assert table["sft"]["kl"] == measures["arms"]["sft"]["general"]["kl"] and table["base"]["kl"] == 0
    assert {row["id"] for row in measures["gap"]["original"]["records"]} == {
        json.loads(line)["id"] for line in (finished / "distilled.jsonl").read_text().splitlines()}


def test_the_other_measures_of_the_arms_agree_with_each_other(finished):
    measures = json.loads((finished / "measures.json").read_text())
    sft, sdft = (measures["arms"][arm] for arm in ARMS[1:])
    for arm in (sft, sdft):
        assert arm["general"]["reverse"]["kl"] > 0 and arm["on_task"]["kl"] > 0 and arm["on_task"]["reverse"]["kl"] > 0
        assert len(arm["activations"]["layers"]) == 1 and 0 < arm["activations"]["cka"] < 1
        assert arm["fisher"]["total"] > 0 and arm["shift"]["stable_rank"] >= 1
        assert all("spectral_shift" in module for module in arm["shift"]["modules"])   # both matrices of one layer
        way = {at["t"]: at for at in arm["interpolation"]}
        assert way[1]["nll"] < way[0]["nll"]                    # the arm learned its targets
    # t = 0 is the seed, which reads the same answers for either arm
    assert sft["interpolation"][0]["nll_general"] == pytest.approx(sdft["interpolation"][0]["nll_general"], rel=1e-6)
    pair = measures["between"]["sft, sdft"]
    assert pair["norms"] == pytest.approx([sft["shift"]["total"], sdft["shift"]["total"]], rel=1e-6)
    assert 0 < pair["cosine"] <= 1                               # both began at the same factors


def test_by_default_a_run_measures_what_answers_its_question_and_has_the_same_page(finished, model, tmp_path):
    folder = tmp_path / "main"
    assert main(["run", *options(model), "--measure=main", "--out", str(folder)]) == 0
    ours, all_of_it = (json.loads((path / "measures.json").read_text())["arms"]["sdft"] for path in (folder, finished))
    assert all_of_it.keys() - ours.keys() == {"activations", "interpolation", "fisher", "on_task"}
    assert all_of_it["general"].keys() - ours["general"].keys() == {"reverse"}
    for name in ("kl8", "kl32", "kl", "rouge_l"):
        assert ours["general"][name] == all_of_it["general"][name]
    assert ours["shift"]["total"] == all_of_it["shift"]["total"] and len(ours["shift"]["modules"]) == 2
    assert "intruders" not in ours["shift"] and "intruders" in all_of_it["shift"]
    page = (folder / "report.html").read_text()
    assert "KL(base ‖ arm)" in page and "Activations" not in page


def test_what_is_measured_of_fewer_texts_is_evenly_spread():
    assert evenly("abcdefgh", 4) == ["a", "c", "e", "g"] and evenly("abcdefg", 3) == ["a", "c", "e"]
    assert evenly("abc", 5) == ["a", "b", "c"] and evenly("", 5) == []


def test_a_finished_run_is_shown_again_and_not_done_again(finished, model, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.jsonl")}
    assert main(["run", *options(model), "--out", str(finished)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.jsonl")}
    out = capsys.readouterr().out
    assert "sdft" in out and str(finished / "report.html") in out


def test_other_settings_are_refused_and_named(finished, model, capsys):
    assert main(["run", *options(model), "--out", str(finished), "--lr=1e-3", "--rewrite_tokens=9"]) == 1
    error = capsys.readouterr().err
    assert "was made with other settings" in error
    assert "train.lr was 0.0005, is 0.001" in error and "distill.rewrite_tokens was 8, is 9" in error
    how = ["--generation_batch_size=3", "--save_every=7"]                       # these do not change the result
    assert main(["run", *options(model), "--out", str(finished), *how]) == 0


def test_another_model_under_the_same_name_is_refused(finished, model, tmp_path, capsys):
    other = shutil.copytree(model, tmp_path / "other")
    changed = {name: weight + 1 for name, weight in load_file(other / "model.safetensors").items()}
    save_file(changed, other / "model.safetensors")
    folder = shutil.copytree(finished, tmp_path / "run")
    config = folder / "config.toml"
    config.write_text(config.read_text().replace(f'"{model}"', f'"{other}"'))
    assert main(["run", str(config), "--out", str(folder)]) == 1
    assert "the model's SHA-256 was" in capsys.readouterr().err


def test_other_data_under_the_same_settings_are_refused(model, tmp_path, capsys):
    """A file was replaced: what its records were trained to and scored by is no longer what a run would find."""
    data, folder = tmp_path / "mine.json", tmp_path / "run"
    rows = [{"instruction": f"What is {n} and {n}?", "response": f"{2 * n}"} for n in range(6)]
    data.write_text(json.dumps(rows))
    command = ["run", *(x for x in options(model) if "_records" not in x), "--task=custom", f"--data={data}",
               "--test_records=1", "--instruction_items=0", "--general_items=1", "--arms=sft", "--out", str(folder)]
    assert main(command) == 0 and main(command) == 0
    data.write_text(json.dumps([row | {"response": "no number"} for row in rows]))
    capsys.readouterr()
    for _ in range(2):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "the data's SHA-256 was" in error
        assert "Use the old ones to resume, or name another folder with --out" in error
        (folder / "summary.json").unlink(missing_ok=True)                       # nor is an unfinished run gone on with


@pytest.mark.parametrize("version", [1, 2, None])
def test_a_folder_of_an_older_version_is_refused_in_one_line(finished, model, tmp_path, capsys, version):
    folder = shutil.copytree(finished, tmp_path / "run")
    environment = json.loads((folder / "environment.json").read_text())
    assert environment.pop("format") == 3
    (folder / "environment.json").write_text(json.dumps(environment | ({"format": version} if version else {})))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    for _ in range(2):
        assert main(["run", *options(model), "--out", str(folder)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"sdft: {folder}: expected a run folder of format 3, got one of format {version or 1} "
                                "by another")
        assert error.count("\n") == 1
        (folder / "summary.json").unlink(missing_ok=True)                # an unfinished run is refused too
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}.items() <= before.items()


def test_a_setting_that_is_newer_than_the_folder_was_at_its_default(finished, model, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    config = folder / "config.toml"
    lines = config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("max_repeated_ngrams ")]
    assert len(kept) == len(lines) - 1
    config.write_text("\n".join(kept) + "\n")
    assert main(["run", *options(model), "--out", str(folder)]) == 0
    (folder / "summary.json").unlink()
    assert main(["run", *options(model), "--out", str(folder)]) == 0
    assert main(["run", *options(model), "--out", str(folder), "--max_repeated_ngrams=0.6"]) == 1


def test_the_resolved_settings_are_a_valid_input(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(finished / "config.toml"), "--out", str(finished)]) == 0


@pytest.mark.parametrize(("file", "number"), [
    ("rewrites.jsonl", signal.SIGKILL), ("eval/base/instructions.jsonl", signal.SIGKILL),
    ("sft/log.jsonl", signal.SIGINT), ("sdft/state.safetensors", signal.SIGKILL),
])
def test_a_run_stopped_at_any_stage_goes_on_to_the_same_result(finished, model, tmp_path, file, number):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "sdft", "run", *options(model), "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and not ((folder / file).is_file() and (folder / file).stat().st_size):
        time.sleep(0.002)
    process.send_signal(number)
    errors = process.communicate()[1]
    assert process.returncode == (130 if number == signal.SIGINT else -number), errors
    assert errors.count("sdft: ") == (number == signal.SIGINT) and "Traceback" not in errors
    assert not (folder / "summary.json").exists()
    stages = {line["stage"] for line in Journal(folder / "seconds.jsonl").read()}
    assert main(["run", *options(model), "--out", str(folder)]) == 0
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    lines = Journal(folder / "seconds.jsonl").read()
    assert all(seconds[name] == pytest.approx(sum(line["seconds"] for line in lines if line["stage"] == name), abs=1e-6)
               for name in seconds)
    assert stages < seconds.keys() == json.loads((finished / "summary.json").read_text())["seconds"].keys()
    for arm in ARMS[1:]:
        ours, theirs = (load_file(str(base / arm / "adapter_model.safetensors")) for base in (folder, finished))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("rewrites.jsonl", "distilled.jsonl"):
        assert sorted((folder / name).read_text().splitlines()) == sorted((finished / name).read_text().splitlines())
    measured, expected = (json.loads((base / "measures.json").read_text()) for base in (folder, finished))
    for arm in ARMS[1:]:
        del measured["arms"][arm]["training"]["seconds"], expected["arms"][arm]["training"]["seconds"]
    assert measured == expected


def test_the_mix_decides_what_is_trained_and_what_the_distilled_file_says(model, tmp_path, monkeypatch):
    """As if every check had accepted "My own words."; half of the records may take it."""
    def accept(records, rewrites, check, limits):
        return [Distilled(r.id, r.instruction, "My own words.", reference=r.response, source="rewrite")
                for r in records]

    monkeypatch.setattr("sdft.experiment.run.choose", accept)
    assert main(["run", *options(model), "--mix_ratio=0.5", "--out", str(tmp_path / "half")]) == 0
    rows = Journal(tmp_path / "half" / "distilled.jsonl").read()
    assert sorted(row["reason"] for row in rows) == ["", "", "not in the mix", "not in the mix"]
    assert all((row["response"] == "My own words.") == (row["source"] == "rewrite") for row in rows)
    audit = json.loads((tmp_path / "half" / "measures.json").read_text())["audit"]
    assert (audit["accepted"], audit["effective_share"], audit["nominal_ratio"]) == (2, 0.5, 0.5)


def test_full_fine_tuning_is_the_second_way(model, tmp_path):
    folder = tmp_path / "full"
    assert main(["run", *options(model), "--method=full", "--lr=1e-3", "--out", str(folder)]) == 0
    measures = json.loads((folder / "measures.json").read_text())
    assert (folder / "sdft" / "model.safetensors").is_file()
    assert {module["kind"] for module in measures["arms"]["sft"]["shift"]["modules"]} >= {"q_proj", "down_proj", "norm"}
    sft = measures["arms"]["sft"]
    assert sft["general"]["kl"] > 0
    assert {row["kind"] for row in sft["fisher"]["kinds"]} >= {"q_proj", "down_proj"} and sft["fisher"]["total"] > 0
    decomposed = [module["name"] for module in sft["shift"]["modules"] if "spectral_shift" in module]
    assert len(decomposed) == 7 and all(".layers.0." in name for name in decomposed)    # the matrices of its one layer
    pair = measures["between"]["sft, sdft"]
    assert pair["norms"] == pytest.approx([measures["arms"][arm]["shift"]["total"] for arm in ARMS[1:]], rel=1e-6)
    assert 0 < pair["cosine"] <= 1 and pair["left_cosine"] is not None
    assert main(["generate", "Hello", f"--model={folder / 'sdft'}", "--dtype=float32", "--max_new_tokens=2"]) == 0


def test_from_the_command_to_the_lora_gradient_a_reader_passes_seven_files(model, tmp_path, monkeypatch):
    package, stacks = Path(sdft.__file__).parent, []

    def watched(*arguments):
        stacks.append([Path(frame.filename) for frame in traceback.extract_stack()])
        return lora_linear(*arguments)

    monkeypatch.setattr("sdft.model.lora.lora_linear", watched)
    assert main(["run", *options(model), "--arms=sft", "--out", str(tmp_path / "run")]) == 0
    training = next(stack for stack in stacks if package / "train/loop.py" in stack)
    files = [str(path.relative_to(package)) for path in dict.fromkeys(training) if path.is_relative_to(package)]
    assert files == ["cli.py", "commands/run.py", "experiment/run.py", "train/loop.py", "objectives/hidden_states.py",
                     "model/llama.py", "model/lora.py"]                     # and kernels/lora_linear.py, which it calls
