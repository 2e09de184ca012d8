"""What the runs of a study share, arm by arm: a setting that an arm does not read never makes it train again."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
from small_run import save_tiny_model
from test_sweep import HEAD, SMALL

from sdft.cli import main
from sdft.distill import Distilled
from sdft.experiment.arms import ARMS, arms_of
from sdft.experiment.context import Context
from sdft.experiment.forecast import planned_stages
from sdft.experiment.rates import Rates
from sdft.experiment.settings import SECTION_OF, load_chosen
from sdft.model import load
from sdft.model.batches import fingerprint
from sdft.studies.estimate import planned_seconds
from sdft.studies.runs import take_over, to_make
from sdft.studies.specification import planned_runs, read_study
from sdft.studies.stages import UNREAD, stages

FEW = SMALL.replace("test_records = 3", "test_records = 1").replace("instruction_items = 2", "instruction_items = 0")
ON_POLICY = {name for name in ARMS if name.startswith("sdft-onpolicy")}
REWRITTEN = {"sdft", "token-matched-sft"}
ANSWERED = {*REWRITTEN, "self-output"}
CHANGES = [                     # a setting, the arms whose training depends on it
    ("penalty_weight = 0.3", {"kl", "l2-sp", "ewc"}), ("stm_threshold = 0.3", {"stm"}), ("teacher_ema = 0.5", set()),
    ("replay_fraction = 0.6", {"replay"}), ("wise_ft_alpha = 0.3", set()), ("mix_ratio = 0.5", ANSWERED),
    ("max_length_ratio = 6", ANSWERED),
    ('template = "refer"', {*REWRITTEN, *ON_POLICY}),
    ("rewrite_tokens = 9", {*ANSWERED, *ON_POLICY, "replay", "ewc"}), ("temperature = 0.7", ANSWERED),
    ("sampling_seed = 1", {*ANSWERED, "replay", "ewc"}), ("general_items = 1", {"replay", "ewc"}),
    ("n_probe_texts = 3", set()), ("lr = 0.1", set(ARMS) - {"wise-ft"}),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def runs(model, tmp_path):
    """The runs of a study on the tiny model, from its grid and more settings."""
    def _runs(grid="", more="", small=FEW):
        name = more.partition(" ")[0]
        kept = "\n".join(line for line in small.splitlines() if not name or not line.startswith(f"{name} "))
        path = tmp_path / "study.toml"
        head = HEAD.replace('against = "sft"', 'against = "base"')
        path.write_text(f'{head}[settings]\nmodel = "{model}"\n{kept}\n{more}\n{grid}')
        return planned_runs(read_study(path))
    return _runs


def _own(run, arms=tuple(ARMS)):
    return stages(run.config, arms)


def _read(stage):
    """The settings that a stage reads, and those of all the stages before it."""
    return set(stage.reads).union(*map(_read, stage.after))


def test_every_setting_is_read_by_a_stage_or_declared_unread(runs):
    """A new setting that no stage names would let runs share what they must not."""
    (run,) = runs()
    read = set().union(*(_read(stage) for stage in _own(run).values()))
    assert read | set(UNREAD) == set(SECTION_OF) and not read & set(UNREAD)


def test_every_arm_says_what_its_training_reads(runs):
    (run,) = runs()
    for arm in ARMS:
        assert {f"train {arm}", f"eval {arm}", f"measure {arm}"} <= set(stages(run.config, (arm,)))


@pytest.mark.parametrize(("change", "again"), CHANGES)
def test_an_arm_is_trained_again_where_it_reads_what_differs(runs, change, again):
    (ours,), (theirs,) = map(_own, runs(small=SMALL)), map(_own, runs(more=change, small=SMALL))
    train = {stage for stage in ours if stage.startswith("train ")}
    assert train == {f"train {arm}" for arm in ARMS if arm != "wise-ft"}         # which continues from sft
    assert {stage.removeprefix("train ") for stage in train if ours[stage] != theirs[stage]} == again
    assert (ours["eval wise-ft"] == theirs["eval wise-ft"]) == (
        not change.startswith(("wise_ft_alpha", "lr", "temperature", "sampling_seed", "general_items")))


def test_what_is_trained_on_is_the_same_where_a_training_is_shared(runs, tmp_path, monkeypatch):
    """The arms themselves are asked, with every rewrite accepted: what their keys leave out, they do not depend on."""
    def accept(records, rewrites, check, limits):
        return [Distilled(r.id, r.instruction, made.text or "-", reference=r.response, source="rewrite")
                for r, made in zip(records, rewrites, strict=True)]

    monkeypatch.setattr("sdft.experiment.arms.choose", accept)
    monkeypatch.setattr("sdft.experiment.arms.FISHER_TEXTS", 3)
    monkeypatch.setattr("sdft.experiment.base_text.TURN_TOKENS", 8)

    def asked(run, folder):
        task = load_chosen(run.config.task)
        context = Context(run.config, folder, *load(run.config.model.model, "float32"), task)
        context.arms = replace(context.arms, arms=tuple(ARMS))
        rewrites = rewritten(context)
        originals = context.examples(task.train)
        return {arm.name: (arm.settings, fingerprint([*arm.targets, *arm.inputs.base_text, *arm.inputs.shown]),
                           arm.inputs.sampling) for arm in arms_of(context, originals, context.examples(rewrites))}

    def rewritten(context):
        from sdft.distill import mix, rewrite
        made = rewrite(context.base, context.tokenizer, context.task.train, context.distill_template, context.sampling,
                       context.batch_size, context.chat, context.folder / "rewrites.jsonl")
        return mix(accept(context.task.train, made, None, None), context.mix_ratio, context.settings.seed)

    (run,) = runs(small=SMALL)
    before = asked(run, tmp_path / "before")
    for number, (change, again) in enumerate(CHANGES):
        (other,) = runs(more=change, small=SMALL)
        after = asked(other, tmp_path / str(number))
        moved = {arm for arm in ARMS if before[arm] != after[arm]}
        assert moved - {"wise-ft"} <= again, change
        if change.partition(" ")[0] not in ("max_length_ratio", "general_items", "sampling_seed"):  # no effect here
            assert moved >= again - {"token-matched-sft"}, change                        # as many tokens, as many steps


def test_a_training_that_was_taken_over_is_resumed(runs, tmp_path, monkeypatch):
    """A whole sweep: a ratio and a strength differ, and every arm is trained as often as it has to be."""
    monkeypatch.setattr("sdft.experiment.arms.FISHER_TEXTS", 2)
    monkeypatch.setattr("sdft.experiment.base_text.TURN_TOKENS", 8)
    path, out = tmp_path / "study.toml", tmp_path / "out"
    arms = ("sdft", "wise-ft", "kl", "ewc", "sdft-onpolicy")
    runs('[[runs]]\nname = "a"\nmix_ratio = 0\npenalty_weight = 0.1\n'
         '[[runs]]\nname = "b"\nmix_ratio = 1\npenalty_weight = 0.1\n'
         '[[runs]]\nname = "c"\nmix_ratio = 1\npenalty_weight = 1\n', f"arms = {json.dumps(arms)}")
    assert main(["sweep", str(path), "--out", str(out)]) == 0
    content = json.loads((out / "cells.json").read_text())
    assert [list(run["arms"]) for run in content["runs"]] == [["base", *arms]] * 3 and not content["failed"]

    def made(arm):
        states = [out / f"run={name}" / arm / "state.safetensors" for name in "abc"]
        return [states[0].samefile(states[1]), states[1].samefile(states[2])]

    assert {arm: made(arm) for arm in ("sdft", "sft", "kl", "ewc", "sdft-onpolicy")} == {
        "sdft": [False, True], "sft": [True, True], "kl": [True, False], "ewc": [True, False],
        "sdft-onpolicy": [True, True]}
    assert not (out / "run=a" / "wise-ft" / "log.jsonl").exists()


def test_wise_ft_takes_over_the_training_of_a_run_that_has_sft(runs, tmp_path):
    first, second = runs('[[runs]]\nname = "a"\narms = ["sft", "sdft"]\n'
                          '[[runs]]\nname = "b"\narms = ["wise-ft", "sdft"]\n')
    assert to_make([first, second], tmp_path)[1] == (second, ["eval wise-ft", "measure wise-ft"])
    (tmp_path / first.name / "sft").mkdir(parents=True)
    (tmp_path / first.name / "sft" / "state.safetensors").write_text("trained")
    assert take_over(second, [first], tmp_path) == ["train wise-ft"]
    assert (tmp_path / second.name / "sft" / "state.safetensors").read_text() == "trained"


def test_what_the_base_model_writes_for_single_arms_is_shared_over_learning_rates(runs):
    ours, theirs = (_own(run, ("replay", "ewc", "self-output", "sft", "sdft"))
                    for run in runs("[grid]\nlr = [0.1, 0.2]\n"))
    shared = {stage for stage in ours if ours[stage] == theirs[stage]}
    assert shared == {"rewrite", "gap", "eval base", "eval base again", "base text", "answer self-output"}


def test_the_noise_floor_is_measured_where_forgetting_is_an_end_point_of_a_suite_that_is_asked(runs):
    for more, measured in (("", True), ('primary = ["task"]', False), ("elaborate_items = 0", False),
                           ('primary = ["instructions.forgetting"]', False), ('primary = ["task.forgetting"]', True)):
        (run,) = runs(more=more)                                            # FEW leaves the suite instructions out
        assert ("eval base again" in stages(run.config)) == measured, more


def test_text_of_the_base_model_is_shared_where_as_much_of_it_is_needed(runs):
    def key(run, *arms):
        return stages(run.config, arms)["base text"].key

    low, high = runs("[grid]\nreplay_fraction = [0.1, 0.5]\n")
    assert key(low, "ewc") == key(high, "ewc") != key(low, "replay") != key(high, "replay")
    assert key(low, "ewc", "replay") not in (key(low, "ewc"), key(low, "replay"))


def test_the_estimate_is_the_timetable_of_the_stages_that_are_still_to_make(runs, tmp_path, capsys):
    first, second, wrong = runs('[[runs]]\nname = "a"\narms = ["sft", "wise-ft"]\n'
                                '[[runs]]\nname = "b"\narms = ["sft", "sdft-onpolicy"]\nrecovery = true\n'
                                '[[runs]]\nname = "c"\nlora_targets = ["q_projj"]\n', 'elaborate_items = 4')
    rates, new = Rates(1e9, 1e9, 1e9), tmp_path / "new"
    own = [{stage.name: stage.seconds for stage in planned_stages(run.config, load_chosen(run.config.task), rates)}
           for run in (first, second)]
    shared = {"rewrite", "gap", "eval base", "eval base again", "train sft", "eval sft"}
    expected = sum(own[0].values()) + sum(value for name, value in own[1].items() if name not in shared)
    assert planned_seconds([first, second], new, lambda config: rates) == pytest.approx(expected)
    assert "recovery sft" in own[1] and own[0]["train wise-ft"] == 0 and capsys.readouterr().err == ""
    assert planned_seconds([first, second, wrong], new, lambda config: rates) == pytest.approx(expected)
    assert capsys.readouterr().err.startswith("run run=c is not in the estimate: ")
    assert planned_seconds([first], new, lambda config: None) is None


def test_the_estimate_reads_the_files_that_the_run_reads(runs, tmp_path):
    """passages reads no files: the folder is that of the later task."""
    rows = [{"instruction": f"What is {n} and {n}?", "context": "", "response": f"{2 * n}"} for n in range(12)]
    (tmp_path / "dolly_train.json").write_text(json.dumps(rows))
    (alone,), (run,) = runs(), runs(more=f'then = ["dolly"]\ndata = "{tmp_path}"')
    both = [planned_seconds([each], tmp_path / "new", lambda config: Rates(1e9, 1e9, 1e9)) for each in (alone, run)]
    assert both[1] > both[0] > 0
