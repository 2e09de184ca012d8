"""Tasks one after the other: made-up scores give known transfer, and a run's later stages are those of its files."""
from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from small_run import options, save_tiny_model

from sdft.commands import add_settings, settings
from sdft.data.chat import training_example
from sdft.data.templates import get_template
from sdft.errors import SdftError
from sdft.experiment.run import run
from sdft.experiment.settings import SECTIONS, load_later, make_config, resolve_settings, with_later_task
from sdft.files import Journal
from sdft.measure.transfer import compare_retained, transfer
from sdft.model import load
from sdft.model.io.adapters import load_adapter
from sdft.model.io.checkpoints import fingerprint
from sdft.report.run import Run
from sdft.report.sequence import sequence_findings, sequence_table
from sdft.studies.collect import numbers, run_key
from sdft.studies.specification import PlannedRun
from sdft.studies.stages import stages
from sdft.tasks import load_task
from sdft.train.order import step_examples
from sdft.train.settings import TrainSettings
from sdft.train.weights import trained_weights

SCORES = {"sdft.tasks.free_text.rouge_l": 5, "sdft.tasks.passages.answer_occurs": 2}
RUN = """
import sys
from test_sequence import scored_by_bytes
scored_by_bytes(setattr)
from pathlib import Path
from sdft.experiment.run import run
from sdft.experiment.settings import make_config
run(*make_config(None, dict(option[2:].split("=", 1) for option in sys.argv[2:])), Path(sys.argv[1]))
"""


# ------------------------------------------------------------------------------------------------- made-up scores
def lines(scores: str) -> list[dict]:
    return [{"id": f"i{n}", "kind": "", "prompt": "", "output": "", "tokens": 1, "finish": "stop",
             "score": float(score)} for n, score in enumerate(scores)]


def ends_at(base: int, altitude: int, after: int, n: int = 40) -> dict:
    """Transfer of a model that solves the first `base`, `altitude` and `after` of n items."""
    return transfer(*(lines("1" * count + "0" * (n - count)) for count in (after, altitude, base)))


def test_known_flips_give_known_transfer():
    base, own, now = "1100000000", "1111111100", "0111100001"
    shuffled = lines(now)
    Random(0).shuffle(shuffled)
    for after in (lines(now), shuffled):
        found = transfer(after, lines(own), lines(base))
        assert (found["base"], found["altitude"], found["after"]) == (0.2, 0.8, 0.5)
        assert found["raw"]["difference"] == pytest.approx(0.5 - 0.8)
        assert found["retained"]["share"] == pytest.approx((0.5 - 0.2) / (0.8 - 0.2))
        assert (found["solved"], found["lost"], found["gained"]) == (8, 4, 1)
        assert (found["forgetting"]["share"], found["forgetting"]["n"]) == (0.5, 8)
        assert (found["backward_transfer"]["share"], found["backward_transfer"]["n"]) == (0.5, 2)


def test_raw_falls_with_the_altitude_with_slope_minus_one_and_the_retained_share_does_not():
    end_equal = [ends_at(4, altitude, 10)["raw"]["difference"] for altitude in (16, 24, 32)]
    assert [end_equal[0] - raw for raw in end_equal] == pytest.approx([0, 8 / 40, 16 / 40])
    lose_half = [ends_at(4, altitude, (4 + altitude) // 2) for altitude in (16, 24, 32)]
    assert [found["raw"]["difference"] for found in lose_half] == pytest.approx([-6 / 40, -10 / 40, -14 / 40])
    assert [found["retained"]["share"] for found in lose_half] == pytest.approx([0.5, 0.5, 0.5])


def test_the_retained_share_is_one_at_the_altitude_zero_at_the_base_model_and_negative_below():
    shares = [ends_at(10, 30, after)["retained"]["share"] for after in (30, 10, 5, 35)]
    assert shares == pytest.approx([1, 0, -0.25, 1.25])
    found = ends_at(10, 30, 20)["retained"]
    assert found["low"] < found["share"] < found["high"] and found["n"] == 40


def test_no_share_is_retained_of_what_was_not_learned():
    for altitude in (9, 10, 11):                    # one item of 40 more than the base model: the interval reaches 0
        assert "retained" not in ends_at(10, altitude, 5)
    assert "forgetting" not in ends_at(0, 0, 5) and "backward_transfer" not in ends_at(10, 40, 5)


def test_two_arms_are_compared_by_their_retained_shares():
    base, high, low = lines("0" * 40), lines("1" * 32 + "0" * 8), lines("1" * 16 + "0" * 24)
    half_high, half_low = lines("01" * 16 + "0" * 8), lines("01" * 8 + "0" * 24)
    found = compare_retained((half_high, high, base), (half_low, low, base))
    assert found["difference"] == 0 and found["low"] < 0 < found["high"] and found["n"] == 40
    found = compare_retained((high, high, base), (half_high, high, base))
    assert found["difference"] == 0.5 and 0 < found["low"] < 0.5 < found["high"]
    assert set(compare_retained((half_high, high, base), (half_high, high, base)).values()) == {0, 40}
    assert compare_retained((half_high, high, base), (base, base, base)) is None


# ------------------------------------------------------------------------------------------------- a run of three tasks
def scored_by_bytes(replace) -> None:
    """Replace the scores of the tasks: the tiny model is never right, but its bytes differ from stage to stage."""
    for name, values in SCORES.items():
        module, _, function = name.rpartition(".")
        replace(import_module(module), function,
                lambda reference, output, most=values - 1: sum(output.encode()) % (most + 1) / most)


@pytest.fixture(scope="module", autouse=True)
def _scores():
    with pytest.MonkeyPatch.context() as patch:
        scored_by_bytes(patch.setattr)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the file of dolly, and a file of own records next to it."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"instruction": f"What is {n} and {n}?", "context": "", "response": f"{2 * n}"} for n in range(12)]
    (folder / "more").mkdir()
    for name in ("dolly_train.json", "mine.json", "yours.json", "general.json", "more/mine.json"):
        (folder / name).write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def settings_of_run(model, data):
    small = [option for option in options(model) if "instruction_items" not in option]
    return [*small, "--instruction_items=0", "--lr=0.05", f"--data={data}", f"--then=dolly,{data / 'mine.json'}"]


def make(folder: Path, given: list[str]) -> dict:
    run(*make_config(None, dict(option[2:].split("=", 1) for option in given)), folder)
    return json.loads((folder / "measures.json").read_text())


@pytest.fixture(scope="module")
def finished(settings_of_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    make(folder, settings_of_run)
    return folder


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(each) for key, each in value.items() if key != "seconds"}
    return value


def test_every_stage_leaves_its_files_and_its_results(finished):
    measures = json.loads((finished / "measures.json").read_text())
    tasks = ["passages", "dolly", "mine"]
    for number, task in ((1, "dolly"), (2, "mine")):
        folder = finished / "then" / f"{number}-{task}"
        for arm in ("sft", "sdft"):
            names = ["log.jsonl", "state.safetensors", "adapter_model.safetensors", "adapter_config.json",
                     *(["rewrites.jsonl", "distilled.jsonl"] if arm == "sdft" else [])]
            assert all((folder / arm / name).is_file() for name in names)
            result = measures["arms"][arm]["then"][str(number)]
            assert result["task"] == task and result["training"]["steps"] == 2
            assert ("accepted" in result) == (arm == "sdft")
            assert list(result["suites"]) == [*tasks[: number + 1], "elaborate"]
            assert list(result["transfer"]) == tasks[:number]
            assert {path.stem for path in (folder / "eval" / arm).glob("*.jsonl")} == set(result["suites"])
        assert "training" not in measures["arms"]["base"]["then"][str(number)]
        accepted = [row["source"] == "rewrite" for row in Journal(folder / "sdft" / "distilled.jsonl").read()]
        assert measures["arms"]["sdft"]["then"][str(number)]["accepted"] == sum(accepted) and len(accepted) == 4


def test_the_first_stage_is_that_of_a_run_without_later_tasks(finished, settings_of_run, tmp_path):
    first = [option for option in settings_of_run if not option.startswith(("--then", "--data"))]
    alone = make(tmp_path / "alone", first)
    sequence = json.loads((finished / "measures.json").read_text())
    for arm in sequence["arms"].values():
        del arm["then"]
    assert without_seconds(sequence) == without_seconds(alone)
    assert not (tmp_path / "alone" / "then").exists()


def test_a_stage_starts_from_the_model_of_the_stage_before(finished, model, data):
    """The loss of the first step, before any update, is the NLL of its records under that model, by plain torch."""
    llama, tokenizer = load(model, "float32")
    records = load_task("dolly", data, train_records=4, test_records=3).train
    examples = [training_example(tokenizer, record, get_template("alpaca"), None) for record in records]

    def nll() -> float:
        losses = []
        for example in step_examples(examples, 0, 2, TrainSettings().seed):
            with torch.no_grad():
                log_p = llama(torch.tensor([example.tokens]))[0].log_softmax(-1)
            losses += [-log_p[at - 1, token].item() for at, (token, target)
                       in enumerate(zip(example.tokens, example.mask, strict=True)) if target]
        return sum(losses) / len(losses)

    under_base = nll()
    load_adapter(llama, finished / "sft")
    first = Journal(finished / "then/1-dolly/sft/log.jsonl").read()[0]["loss"]
    assert first == pytest.approx(nll(), rel=1e-5)                      # summed in another order
    assert abs(under_base - first) > 0.1


def test_sdft_distills_from_the_model_as_it_is_at_the_stage(finished, model):
    llama, _ = load(model, "float32")
    for before, stage in (("sdft", "1-dolly"), ("then/1-dolly/sdft", "2-mine")):
        load_adapter(llama, finished / before)
        made_with = json.loads((finished / "then" / stage / "sdft/rewrites.settings.json").read_text())
        assert made_with["model"] == fingerprint(llama)


def test_transfer_is_that_of_the_journals(finished):
    measures, moved = json.loads((finished / "measures.json").read_text()), set()
    for arm in ("sft", "sdft"):
        own = {"passages": f"eval/{arm}", "dolly": f"then/1-dolly/eval/{arm}"}
        of_base = {"passages": "eval/base", "dolly": "then/1-dolly/eval/base"}
        for task in own:
            scores = [{line["id"]: line["score"] for line in Journal(finished / folder / f"{task}.jsonl").read()}
                      for folder in (of_base[task], own[task], f"then/2-mine/eval/{arm}")]
            base, altitude, after = (sum(side.values()) / 3 for side in scores)
            found = measures["arms"][arm]["then"]["2"]["transfer"][task]
            assert [found[name] for name in ("base", "altitude", "after")] == pytest.approx([base, altitude, after])
            assert found["raw"]["difference"] == pytest.approx(after - altitude)
            assert found["lost"] == sum(scores[1][id] >= 0.5 > scores[2][id] for id in scores[1])
            assert 0 < found["raw"]["p"] <= found["raw"]["p_holm"] <= 1
            moved |= {(task, altitude != base), (task, after != altitude)}
    assert {("passages", True), ("dolly", True)} <= moved               # not all of it is zero


def test_a_study_finds_the_figures_of_every_stage(finished):
    columns = dict(numbers(json.loads((finished / "measures.json").read_text())["arms"]["sdft"]))
    assert {"then.1.transfer.passages.raw.difference", "then.2.transfer.dolly.altitude", "then.2.suites.mine.mean",
            "then.1.accepted", "then.2.training.steps"} <= columns.keys()


def test_runs_that_differ_in_their_later_tasks_share_their_first_stages_and_nothing_else(settings_of_run):
    given = dict(option[2:].split("=", 1) for option in settings_of_run)
    ours, theirs = (stages(resolve_settings(*make_config(None, {**given, "then": then}))[0])
                    for then in (given["then"], "dolly"))
    assert {name: stage.key for name, stage in ours.items()} == {name: stage.key for name, stage in theirs.items()}
    assert not any(path.startswith("then") for stage in ours.values() for path in stage.paths)


@pytest.mark.parametrize("file", ["then/1-dolly/eval/base/dolly.jsonl", "then/1-dolly/sdft/rewrites.jsonl",
                                  "then/2-mine/sft/state.safetensors", "then/2-mine/eval/sdft/passages.jsonl"])
def test_a_run_killed_in_a_later_stage_ends_with_the_same_numbers(finished, settings_of_run, tmp_path, file):
    folder = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder), *settings_of_run], stderr=subprocess.DEVNULL,
                               env=environment)
    while process.poll() is None and not ((folder / file).is_file() and (folder / file).stat().st_size):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "measures.json").exists()
    measures = make(folder, settings_of_run)
    assert without_seconds(measures) == without_seconds(json.loads((finished / "measures.json").read_text()))
    for path in ("then/1-dolly/sdft", "then/2-mine/sft", "then/2-mine/sdft"):
        ours, theirs = (load_file(base / path / "adapter_model.safetensors") for base in (folder, finished))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_later_task_takes_its_own_defaults_also_when_the_settings_are_read_back(finished, settings_of_run, data):
    later = load_task("dolly", data)
    found = []
    for given in (make_config(None, dict(option[2:].split("=", 1) for option in settings_of_run)),
                  make_config(finished / "config.toml")):
        config, first = resolve_settings(*given)
        found.append(with_later_task(config, first, later))
    assert found[0].train == found[1].train and found[0].distill == found[1].distill
    config = found[0]
    assert config.eval.train_template == "alpaca"                       # of dolly: the run left it to the task
    assert (config.train.epochs, config.distill.rewrite_tokens) == (1, 8)                   # set, for every stage


def test_a_later_stage_says_which_settings_it_uses(settings_of_run, finished, tmp_path, capsys):
    """epochs = 5 is the first task's default, so that of dolly is taken; a template that was set is kept."""
    class Begun(Exception):
        pass

    def begins(*given):
        raise Begun

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Begun):
        patch.setattr("sdft.experiment.run.timetable_of", begins)
        make(tmp_path / "run", [*settings_of_run, f"--epochs={load_task('passages').epochs}", "--template=refer"])
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("then ")] == [
        "then dolly: epochs 2, distill_template refer, train_template alpaca, rewrite_tokens 8",
        "then mine: epochs 2, distill_template refer, train_template plain, rewrite_tokens 8"]


def test_files_are_tasks_of_their_own_names_and_a_results_key_has_none_of_their_paths(model, data, tmp_path):
    given = {option[2:].partition("=")[0]: option.partition("=")[2] for option in options(model)}
    given |= {"task": "custom", "data": str(data / "mine.json")}
    keys = []
    for folder in (data, shutil.copytree(data, tmp_path / "data")):
        config, first = resolve_settings(*make_config(None, given | {
            "then": f"{folder / 'mine.json'},{folder / 'yours.json'}"}))
        assert [task.name for task in (first, *load_later(config, first))] == ["custom", "mine", "yours"]
        assert [task.suites[0].name for task in load_later(config, first)] == ["mine", "yours"]
        keys.append(run_key(PlannedRun("", {}, config, frozenset(), "the hash of the data")))
    other = replace(config, arms=replace(config.arms, then=config.arms.then[:1]))
    assert keys[0] == keys[1] != run_key(PlannedRun("", {}, other, frozenset(), "the hash of the data"))


def test_other_data_of_a_later_task_are_refused(settings_of_run, finished, data, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    moved = shutil.copytree(data, tmp_path / "data")
    given = [option.replace(str(data), str(moved)) for option in settings_of_run]
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace(str(data), str(moved)))
    make(folder, given)                                                  # the same content elsewhere
    (moved / "mine.json").write_text((data / "mine.json").read_text().replace("What is", "How much is"))
    with pytest.raises(SdftError, match="the data's SHA-256 was"):
        make(folder, given)


@pytest.mark.parametrize(("change", "message"), [
    ("--then=doly", "unknown task 'doly'.*did you mean dolly"),
    ("--then=dolly,dolly", "then: expected every task of a run once, got dolly twice"),
    ("--then=passages", "then: expected every task of a run once, got passages twice"),
    ("--then=DATA/mine.json,DATA/more/mine.json", "every task of a run once, got mine twice.*rename a file"),
    ("--then=DATA/general.json", "general.json: expected a file whose name is no suite of every run"),
    ("--then=gsm8k", "task gsm8k expects .*gsm8k_train.json, which does not exist"),
    ("--arms=sft,kl", "then: arm kl holds the model near the base model"),
    ("--arms=sft,wise-ft", "then: arm wise-ft holds the model near the base model"),
    ("--arms=sdft-onpolicy", "then: arm sdft-onpolicy holds the model near the base model"),
    ("--arms=sdft,token-matched-sft", "then: arm token-matched-sft is as long as the training of sdft"),
    ("--method=full", "then: a later stage trains the adapter of the stage before: expected method = lora"),
])
def test_what_a_later_stage_cannot_do_is_refused_before_any_work(settings_of_run, data, tmp_path, change, message):
    change = change.replace("DATA", str(data))
    with pytest.raises(SdftError, match=message) as refusal:
        make(tmp_path / "run", [*settings_of_run, change])
    assert "\n" not in str(refusal.value) and not (tmp_path / "run").exists()


def test_arms_with_texts_of_their_own_write_them_with_the_model_of_the_stage(settings_of_run, tmp_path, monkeypatch):
    monkeypatch.setattr("sdft.experiment.base_text.TURN_TOKENS", 8)
    given = [option for option in settings_of_run if not option.startswith("--then")]
    arms = ("low-lr", "low-rank", "dft", "stm", "flow", "replay", "self-output")
    measures = make(tmp_path / "run", [*given, "--then=dolly", f"--arms={','.join(arms)}", "--stm_threshold=1e-9"])
    assert all(measures["arms"][arm]["then"]["1"]["training"]["steps"] >= 2 for arm in arms)
    for arm, journal in (("replay", "base-turns"), ("self-output", "self-output/answers")):
        llama, _ = load(given[0].partition("=")[2], "float32")
        load_adapter(llama, tmp_path / "run" / arm)
        made_with = json.loads((tmp_path / "run/then/1-dolly" / f"{journal}.settings.json").read_text())
        assert made_with["model"] == fingerprint(llama)


# ------------------------------------------------------------------------------------------- adapters, options, report
def test_only_an_adapter_of_the_settings_is_continued(model):
    llama, _ = load(model, "float32")
    with pytest.raises(SdftError, match="got no adapter"):
        trained_weights(llama, TrainSettings(), continued=True)
    trained_weights(llama, TrainSettings(lora_rank=2))
    with pytest.raises(SdftError, match="expected the adapter to continue to have the lora_rank"):
        trained_weights(llama, TrainSettings(), continued=True)
    assert trained_weights(llama, TrainSettings(lora_rank=2), continued=True).parameters


def test_a_setting_of_several_names_may_be_given_name_by_name():
    parser = argparse.ArgumentParser()
    add_settings(parser, {section: () for section in SECTIONS})
    found = []
    for given in (["--then=gsm8k", "--then=openfunctions", "--arms=sft", "--arms.arms=sdft,kl"],
                  ["--then=gsm8k,openfunctions", "--arms=sft,sdft,kl"]):
        found.append(settings(parser.parse_args(given)))
    assert found[0] == found[1] and found[0][0].arms.then == ("gsm8k", "openfunctions")
    assert found[0][0].arms.arms == ("sft", "sdft", "kl")
    assert settings(parser.parse_args([]))[0].arms.then == ()


def made_up_run() -> Run:
    def suite(mean):
        return {"metric": "accuracy", "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 40}

    base, now = {"passages": suite(0.1), "gsm8k": suite(0.2), "elaborate": suite(0.5)}, {
        "passages": suite(0.4), "gsm8k": suite(0.3), "elaborate": suite(0.45)}
    then = {"1": {"task": "gsm8k", "suites": now, "transfer": {"passages": ends_at(4, 28, 16)}}}
    arms = {"base": {"suites": {name: base[name] for name in ("passages", "elaborate")}, "general": {},
                     "then": {"1": {"task": "gsm8k", "suites": base, "transfer": {}}}},
            "sft": {"suites": {"passages": suite(0.7), "elaborate": suite(0.4)}, "general": {},
                    "training": {"steps": 2}, "then": then}}
    return Run(**{**{field.name: {} for field in fields(Run)}, "measures": {"arms": arms}})


def test_the_table_has_a_line_for_every_arm_and_stage():
    table = sequence_table(made_up_run())
    assert table.head[:4] == ["arm, after", "passages, %", "gsm8k, %", "elaborate, %"]
    assert [row[0] for row in table.rows] == ["base", "sft, passages", "sft, gsm8k"]
    assert [row[1] for row in table.rows] == ["10.0 (0–20)", "70.0 (60–80)", "40.0 (30–50)"]
    assert table.rows[1][2] == "–" and table.rows[1][4:] == ["–"] * 3 == table.rows[0][4:]
    change, retained, flips = table.rows[2][4:]
    assert change.startswith("-30.0 (") and retained.startswith("50 (") and flips == "42.9 / 0.0"
    assert all(len(row) == len(table.head) for row in table.rows)
    (sentence,) = sequence_findings(made_up_run())
    assert sentence.startswith("On passages, sft scored 70.0 % after its stage (base model 10.0 %) and 40.0 % after "
                               "gsm8k: it lost 12 of 28 solved items, and gained 0. It retained 50 (")


def test_a_run_of_one_task_has_no_such_table():
    one = made_up_run()
    for arm in one.results.values():
        arm.pop("then")
    assert sequence_table(one).rows == [] and sequence_findings(one) == []
