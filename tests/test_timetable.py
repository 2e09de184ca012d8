"""A run's timetable: the arithmetic with made-up rates, what an interrupted run has done, and what is printed."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from small_run import options, save_tiny_model
from tiny_chat import byte_tokenizer

from sdft.cli import main
from sdft.experiment import rates
from sdft.experiment.forecast import ALL, SENTENCE, stages_of
from sdft.experiment.rates import Rates, measure_rates, seconds, slice_of
from sdft.experiment.settings import QUICK, make_config, resolve_settings
from sdft.experiment.timetable import Stage, Timetable
from sdft.model.config import LlamaConfig
from sdft.model.io.checkpoints import load_config
from sdft.progress import duration
from sdft.train import TrainSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


EQUAL = Rates(1e9, 1e9, 1e9)


def stages(model, at=EQUAL, **settings):
    """Stage → its estimated seconds, of a run on the tiny model."""
    given = dict(option[2:].split("=", 1) for option in options(model)) | {"measure": "main"} | settings
    config, task = resolve_settings(*make_config(None, given))
    return {stage.name: stage.seconds
            for stage in stages_of(config, task, [], load_config(model), byte_tokenizer(), at)}


def test_every_second_of_a_rate_is_in_the_stages_that_use_it(model):
    once, slow = stages(model), {kind: stages(model, Rates(**{"read": 1e9, "write": 1e9, "train": 1e9, kind: 1e8}))
                                 for kind in ("read", "write", "train")}
    longer = {kind: {name for name in once if times[name] > once[name]} for kind, times in slow.items()}
    assert longer["read"] == once.keys() - {"train sft", "train sdft"}
    assert longer["write"] == {"rewrite", "eval base", "eval base again", "eval sft", "eval sdft"}
    assert longer["train"] <= {"train sft", "train sdft"} and "train sdft" in longer["train"]
    assert slow["train"]["train sdft"] == pytest.approx(10 * once["train sdft"])


def test_the_time_of_a_gap_done_by_hand(model):
    config, task = resolve_settings(*make_config(None, dict(option[2:].split("=", 1) for option in options(model))))
    tokenizer, shape = byte_tokenizer(), load_config(model)
    from sdft.data.chat import training_example
    from sdft.data.templates import get_template
    examples = [training_example(tokenizer, record, get_template("plain"), None) for record in task.train]
    read, added = sum(len(example.tokens) for example in examples), SENTENCE * 4
    targets = sum(sum(example.mask[1:]) for example in examples)
    D, F, KC = shape.hidden_size, shape.intermediate_size, shape.num_key_value_heads * shape.head_dim
    layer = 2 * D * D + 2 * D * KC + 3 * D * F + 2 * D                                 # one layer, with its two norms
    operations = 2 * (layer * (read + added) + shape.vocab_size * D * (2 * targets + added))
    assert stages(model, Rates(1e6, 1, 1))["gap"] == pytest.approx(operations / 1e6)


def test_more_measures_and_more_items_take_longer(model):
    few = stages(model)
    assert stages(model, measure="all")["measure sdft"] == pytest.approx(ALL * few["measure sdft"])
    assert stages(model, elaborate_items="4")["eval sft"] > few["eval sft"]
    assert stages(model, eval_every="1")["train sft"] > few["train sft"]
    assert "eval base again" not in stages(model, primary="task")


def test_all_floors_are_one_stage_and_recovery_is_one_of_each_arm(model):
    both, first, second = (stages(model, elaborate_items="8", primary=primary)["eval base again"] for primary in (
        "task.forgetting,elaborate.forgetting", "task.forgetting", "elaborate.forgetting"))
    # Prompts share more of their beginning within a suite, and that is read once.
    assert max(first, second) < both == pytest.approx(first + second, rel=0.1)
    assert "eval base again" not in stages(model, generation_batch_size="1")
    assert "eval base again" in stages(model, generation_batch_size="1", temperature="1")
    recovery = stages(model, recovery="true", arms="sft,sdft", elaborate_items="8", general_items="3")
    assert recovery.keys() - stages(model).keys() == {"recovery sft", "recovery sdft"}
    assert recovery["recovery sft"] > 9 * stages(model, elaborate_items="8", primary="elaborate.forgetting")[
        "eval base again"]                                      # before, and after 1, 2, 4 and 8 steps of k = 1 and 3


@pytest.mark.parametrize("arms, added", [
    ("sft,wise-ft", {"train wise-ft", "eval wise-ft", "measure wise-ft"}),
    ("sft,self-output", {"answer self-output", "train self-output", "eval self-output", "measure self-output"}),
    ("sft,replay,ewc", {"base text", *(f"{what} {arm}" for what in ("train", "eval", "measure")
                                       for arm in ("replay", "ewc"))})])
def test_the_stages_are_those_of_the_arms(model, arms, added):
    found = stages(model, arms=arms)
    assert found.keys() - stages(model, arms="sft").keys() == added
    assert found.get("train wise-ft", 0) == 0                                           # it is the training of sft


def test_an_arm_that_writes_during_its_training_takes_longer(model):
    times = stages(model, arms="sft,kl,sdft-onpolicy")
    assert times["train sft"] <= times["train kl"] < times["train sdft-onpolicy"]


def table(folder, *given):
    return Timetable([Stage(name, seconds, pattern, lines) for name, seconds, pattern, lines in given], folder)


def test_what_an_interrupted_run_has_done_does_not_count(tmp_path):
    (tmp_path / "eval" / "base").mkdir(parents=True)
    (tmp_path / "gap.json").write_text("{}")                                            # no line end: still a line
    for suite, lines in (("a", 3), ("b", 2)):
        (tmp_path / "eval" / "base" / f"{suite}.jsonl").write_text("{}\n" * lines)
    times = table(tmp_path, ("rewrite", 10.0, "rewrites.jsonl", 4), ("gap", 5.0, "gap.json", 1),
                  ("eval base", 100.0, "eval/base/*.jsonl", 20))
    assert times.to_do == {"rewrite": 10.0, "eval base": 75.0} and times.count == 2 and times.left() == 85


def test_a_finished_stage_corrects_the_later_ones_of_its_kind(tmp_path, capsys):
    times = table(tmp_path, ("eval base", 60.0, "no", 1), ("train sft", 300.0, "no", 1), ("eval sft", 60.0, "no", 1),
                  ("then 1-gsm8k: eval sft", 20.0, "no", 1))
    times.announce()
    times.begin("eval base")
    times.end("eval base", 90.0)                                                        # half as long again
    assert times.left() == 300 + 1.5 * 60 + 1.5 * 20
    times.begin("a stage of a nested run")
    times.begin("train sft")
    times.end("train sft", 150.0)                                                       # no other training is to come
    assert times.left() == 1.5 * 80
    assert capsys.readouterr().err.splitlines() == [
        "4 stages, about 7 min: eval base 60 s, train sft 5 min, eval sft 60 s, then 1-gsm8k: eval sft 20 s",
        "stage 1 of 4: eval base, about 7 min left", "stage 2 of 4: train sft, about 7 min left"]


def test_the_rest_of_an_interrupted_stage_corrects_no_other(tmp_path):
    (tmp_path / "base.jsonl").write_text("{}\n" * 99)
    times = table(tmp_path, ("eval base", 600.0, "base.jsonl", 100), ("eval sft", 600.0, "no", 1),
                  ("eval sdft", 600.0, "no", 1))
    times.end("eval base", 30.0)                                # 6 s of answers, and the time to begin
    assert times.left() == 1200 and list(times.to_do) == ["eval sft", "eval sdft"]
    times.end("eval sft", 900.0)
    assert times.left() == 900


def test_a_stage_that_was_not_needed_leaves_the_table_when_a_later_one_begins(tmp_path, capsys):
    times = table(tmp_path, ("eval base", 60.0, "no", 1), ("eval base again", 30.0, "no", 1),
                  ("train sft", 20.0, "no", 1))
    times.end("eval base", 60.0)
    times.begin("train sft")                                    # the base model solved nothing that could be lost
    assert times.left() == 20 and capsys.readouterr().err == "stage 3 of 3: train sft, about 20 s left\n"


@pytest.mark.parametrize("taken, text", [
    (0, "1 s"), (9.4, "9 s"), (44, "40 s"), (94, "90 s"), (95, "2 min"), (500, "8 min"), (5640, "94 min"),
    (7700, "2 h 10 min"), (10800, "3 h")])
def test_durations_are_said_as_people_say_them(taken, text):
    assert duration(taken) == text


def test_a_slice_has_fewer_layers_and_as_large_a_part_of_the_vocabulary():
    small = LlamaConfig(49152, 576, 1536, 30, 9, 3, 64)                                 # 3.5 million weights a layer
    large = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128)                            # Llama 2 7B
    assert (slice_of(small).num_hidden_layers, slice_of(small).vocab_size) == (2, 3276)
    assert (slice_of(large).num_hidden_layers, slice_of(large).vocab_size) == (2, 2000)


def test_rates_are_measured_without_changing_random_numbers(model):
    state = torch.get_rng_state()
    found = measure_rates(load_config(model), byte_tokenizer(), TrainSettings(), torch.float32, torch.device("cpu"), 4)
    assert min(vars(found).values()) > 1e6                      # FLOP/s: a thousandth of what the slowest machine does
    assert torch.equal(torch.get_rng_state(), state)


def test_rates_are_measured_once_in_a_process_after_a_line_and_not_where_nothing_is_left(model, tmp_path, monkeypatch,
                                                                                         capsys):
    asked = []
    for part in ("_reading", "_writing", "_training"):
        monkeypatch.setattr(rates, part, lambda *given: asked.append(capsys.readouterr().err) or 1e9)
    monkeypatch.setattr(rates, "_measured", {})
    given = [f"{option}" for option in options(model) if "elaborate" not in option]
    command = ["run", *given, "--elaborate_items=0", "--primary=task", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert len(asked) == 3 and "measuring how fast this machine reads, writes and trains\n" in asked[0]
    assert main([*command[:-1], str(tmp_path / "again")]) == 0 and len(asked) == 3
    rates._measured.clear()
    (tmp_path / "run" / "summary.json").unlink()
    assert main(command) == 0 and len(asked) == 3                               # all stages are finished
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "measured" / "sdft.json").unlink()
    assert main(command) == 0 and len(asked) == 6


def test_the_fastest_of_several_calls_counts():
    ticks = iter([0, 9, 10, 12, 20, 25])
    assert seconds(lambda: torch.zeros(1), 3, lambda: next(ticks)) == 2


def test_a_run_says_which_stages_come_and_each_one_when_it_begins(model, tmp_path, capsys):
    assert main(["run", *options(model), "--primary=task", "--out", str(tmp_path / "run")]) == 0
    lines = [line for line in re.split(r"[\r\n]+", capsys.readouterr().err) if re.match(r"stage |\d+ stages", line)]
    names = [json.loads(line)["stage"] for line in (tmp_path / "run" / "seconds.jsonl").read_text().splitlines()]
    assert lines[0].startswith(f"{len(lines) - 1} stages, about ")
    assert [re.fullmatch(r"stage (\d+) of \d+: (.+), about .+ left", line).groups() for line in lines[1:]] == [
        (str(number), name) for number, name in enumerate(names, start=1)]


def test_a_quick_run_is_a_preset_that_files_and_options_override(model, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("sdft.experiment.run.run", lambda config, given, folder: asked.update(
        config=config, given=given, folder=folder) or folder)
    monkeypatch.setattr("sdft.commands.run._show", lambda folder: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text("general_items = 7\nelaborate_items = 8\n")
    assert main(["run", "own.toml", "--quick", "--elaborate_items=9", f"--model={model}"]) == 0
    config = asked["config"]
    assert config.task.max_records == QUICK["max_records"] and config.train.batch_size == QUICK["batch_size"]
    assert (config.eval.general_items, config.eval.elaborate_items) == (7, 9)
    assert QUICK.keys() <= asked["given"] and asked["folder"] == Path("runs/passages-tiny-quick")
    assert main(["run", f"--model={model}"]) == 0
    assert asked["config"].task.max_records is None and asked["folder"] == Path("runs/passages-tiny")
    assert main(["run", f"--model={model}", "--quick", "--out=mine"]) == 0
    assert asked["folder"] == Path("mine")


def test_a_number_of_records_wins_over_a_quick_run_and_a_quick_run_of_nothing_is_said(tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text("[task]\ntrain_records = 300\n")
    for given in ((None, {"train_records": "300"}), (path, {})):
        config, names = make_config(*given, quick=True)
        _, task = resolve_settings(config, names)
        assert len(task.train) == 300 and config.task.max_records is None and config.train.lr == QUICK["lr"]
    assert make_config(None, {"task.test_records": "7"}, quick=True)[0].task.max_records is None
    assert make_config(None, {"train_records": "7", "max_records": "5"}, quick=True)[0].task.max_records == 5
    assert capsys.readouterr().err == ""
    given = {name: str(value) for name, value in QUICK.items() if name != "max_records"} | {"test_records": "7"}
    assert make_config(None, given, quick=True) == make_config(None, given)
    assert capsys.readouterr().err.startswith("--quick changes nothing: ")


def test_a_plan_takes_what_a_run_takes(model, tmp_path, capsys):
    rows = [{"instruction": f"What is {n} and {n}?", "context": "", "response": f"{2 * n}"} for n in range(12)]
    (tmp_path / "dolly_train.json").write_text(json.dumps(rows))
    given = [*options(model), "--gflops=1", "--json"]
    assert main(["plan", *given, f"--data={tmp_path}", "--then=dolly"]) == 0
    assert "then 1-dolly: eval sdft" in json.loads(capsys.readouterr().out)["timetable"]
    assert main(["plan", *[option for option in given if "_records" not in option], "--quick"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == QUICK["max_records"]


def test_the_help_promises_its_minutes_for_the_built_in_run_alone(capsys):
    for command in ("run", "plan"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "the built-in run then takes some 5 minutes" in " ".join(capsys.readouterr().out.split())


def test_a_plan_prints_the_same_timetable(model, capsys):
    assert main(["plan", *options(model), "--gflops=0.001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["timetable"] == {
        name: pytest.approx(seconds, abs=0.06)
        for name, seconds in stages(model, Rates(1e6, 1e6, 1e6), measure="all").items()}
    assert main(["plan", *options(model), "--gflops=0.001"]) == 0
    assert re.search(r"timetable, about .+\n  rewrite +\d", capsys.readouterr().out)
