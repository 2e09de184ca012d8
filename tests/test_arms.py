"""Every arm end to end on a tiny model, what makes it differ from plain fine-tuning, and the seed's own text."""
from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from small_run import options, save_tiny_model
from tiny_chat import byte_tokenizer
from training_parts import examples, tiny_model

from sdft.cli import main
from sdft.distill import Distilled
from sdft.distill.rewriting import Rewrite
from sdft.errors import SdftError
from sdft.experiment.arms import ARMS, FISHER_TEXTS, READ_BY, _steps_to, arms_of, interpolate, settings_of
from sdft.experiment.base_text import base_dialogues, user_header, user_text
from sdft.experiment.context import Context
from sdft.experiment.settings import make_config, with_task
from sdft.files import Journal
from sdft.generation import Request, Sampling, stream
from sdft.model import load
from sdft.model.lora import add_lora, lora_layers
from sdft.tasks import load_task
from sdft.train import TrainSettings, train

SOME = ("sft", "wise-ft", "replay", "ewc")
FEW = ["--test_records=1", "--instruction_items=0", "--general_items=1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run of arms that need more than other settings."""
    folder = tmp_path_factory.mktemp("runs") / "some"
    assert main(["run", *options(model), *FEW, f"--arms={','.join(SOME)}", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def context(model, tmp_path):
    """A lab of four records with nothing done yet."""
    config, given = make_config(None, {"model": str(model), "dtype": "float32", "max_length": "2048",
                                       "rewrite_tokens": "8", "batch_size": "2", "general_items": "2"})
    task = load_task("passages", train_records=4, test_records=1)
    return Context(with_task(config, given, **task.default_settings), tmp_path, *load(model, "float32"), task)


def adapter(folder, arm):
    return load_file(str(folder / arm / "adapter_model.safetensors"))


def arm_of(context, name):
    context.arms = replace(context.arms, arms=(name,))
    originals = context.examples(context.task.train)
    distilled = context.examples([replace(record, response="My words.") for record in context.task.train])
    (arm,) = arms_of(context, originals, distilled)
    return arm, originals


def test_the_arms_of_a_run_are_trained_measured_and_shown(finished):
    measures = json.loads((finished / "measures.json").read_text())
    assert list(measures["arms"]) == ["base", *SOME]
    for arm in SOME:
        measured = measures["arms"][arm]
        assert measured["shift"]["total"] > 0 and measured["general"]["kl"] > 0 and measured["training"]["steps"] > 0
        assert (finished / arm / "adapter_config.json").is_file()
        assert (finished / "eval" / arm / "general.jsonl").is_file()
        assert arm in (finished / "report.md").read_text()
    assert (finished / "ewc" / "fisher.safetensors").is_file()
    assert measures["arms"]["replay"]["training"]["records"] == 5        # one dialogue beside four is nearest to 0.1


def test_every_arm_trains_and_none_is_another(context):
    context.settings = replace(context.settings, epochs=1, stm_threshold=0.01, penalty_weight=0.1)
    context.arms = replace(context.arms, arms=tuple(ARMS))
    originals = context.examples(context.task.train)
    rewritten = context.examples([replace(record, response="My own words, more of them.")
                                  for record in context.task.train])
    moved = {}
    for arm in arms_of(context, originals, rewritten):
        model = context.model_to_train()
        train(model, arm.targets, arm.settings, context.folder / arm.folder, inputs=arm.inputs)
        arm.finish(context, model)
        moved[arm.name] = tuple(layer.delta().norm().item() for layer in lora_layers(model).values())
        context.remove_adapter(model)
    assert list(moved) == list(ARMS) and all(sum(norms) > 0 for norms in moved.values())
    assert moved.pop("self-output") == moved["sft"]                      # no answer of this model is ever accepted
    assert len(set(moved.values())) == len(moved)


def test_sft_is_what_the_loop_makes_of_the_originals_alone(finished, context, tmp_path):
    train(context.base, context.examples(context.task.train), replace(context.settings, epochs=1), tmp_path / "sft")
    ours, theirs = adapter(finished, "sft"), adapter(tmp_path, "sft")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_wise_ft_keeps_half_of_what_sft_changed_and_trains_nothing_anew(finished):
    sft, wise = adapter(finished, "sft"), adapter(finished, "wise-ft")
    for name in sft:
        assert torch.equal(wise[name], sft[name] * (0.5 if "lora_B" in name else 1))
    arms = json.loads((finished / "measures.json").read_text())["arms"]
    assert arms["wise-ft"]["shift"]["total"] == pytest.approx(arms["sft"]["shift"]["total"] / 2)
    assert not (finished / "wise-ft" / "log.jsonl").exists()


def test_going_on_with_all_arms_trained_changes_nothing(finished, model):
    before = json.loads((finished / "measures.json").read_text())
    (finished / "summary.json").unlink()
    assert main(["run", str(finished / "config.toml"), "--out", str(finished)]) == 0
    assert json.loads((finished / "measures.json").read_text()) == before


def test_the_trivial_controls(context):
    arm, originals = arm_of(context, "low-lr")
    assert arm.settings == replace(context.settings, lr=context.settings.lr / 10) and arm.targets == originals
    arm, _ = arm_of(context, "low-rank")
    assert (arm.settings.lora_rank, arm.settings.lora_alpha) == (1, 2.0)           # 16 / 8
    context.settings = replace(context.settings, rslora=True, lora_rank=4)
    assert arm_of(context, "low-rank")[0].settings.lora_alpha == 8.0              # 16 / √4
    for name in ("kl", "l2-sp", "ewc", "dft", "stm", "flow"):
        arm, originals = arm_of(context, name)
        assert arm.settings == replace(context.settings, objective=name) and arm.targets == originals
        assert (arm.name, arm.folder, len(arm.inputs.base_text)) == (name, name, FISHER_TEXTS * (name == "ewc"))


def test_settings_that_an_arm_does_not_read_are_not_stored_with_it(context, tmp_path):
    given = TrainSettings(penalty_weight=0.3, stm_threshold=0.2, teacher_ema=0.5, max_length=2048, batch_size=2,
                          epochs=1)
    read = {name: {setting for setting in READ_BY
                   if getattr(settings_of(name, given), setting) != getattr(TrainSettings, setting)} for name in ARMS}
    averaged = {name: {"teacher_ema"} for name in ARMS if name.endswith("-ema")}
    assert {name: settings for name, settings in read.items() if settings} == {
        **dict.fromkeys(("kl", "l2-sp", "ewc"), {"penalty_weight"}), "stm": {"stm_threshold"}, **averaged}
    own = settings_of("sft", replace(given, objective="stm", lr=0.1))      # as the run says
    assert own == replace(given, objective="stm", lr=0.1, penalty_weight=None, teacher_ema=0.0)
    context.settings = given
    arm, _ = arm_of(context, "sft")
    train(context.base, arm.targets, arm.settings, tmp_path / "sft", inputs=arm.inputs)
    with safe_open(tmp_path / "sft" / "state.safetensors", "pt") as file:
        assert file.metadata()["penalty_weight"] == "null" and file.metadata()["stm_threshold"] == "0.4"


def test_on_policy_the_model_answers_anew_at_every_step_and_the_teacher_sees_the_reference(context, monkeypatch):
    arm, originals = arm_of(context, "sdft-onpolicy-reverse-ema")
    assert arm.targets == originals
    assert arm.settings == replace(context.settings, objective="onpolicy-reverse", teacher_ema=0.99)
    for record, prompt in zip(context.task.train, arm.inputs.shown, strict=True):
        text = context.tokenizer.decode(prompt.tokens, skip_special=False)
        assert record.response in text.partition("Reference Answer:")[2] and text.endswith("<|im_start|>assistant\n")
        assert not any(prompt.mask) and prompt.id == record.id
    first, again, later = (arm.inputs.sample(context.base, originals[:2], step) for step in (0, 0, 1))
    assert first == again and [e.id for e in first] == [e.id for e in originals[:2]]
    for original, drawn, other in zip(originals, first, later, strict=False):
        prompt = original.tokens[: original.mask.index(True)]
        assert drawn.tokens[: len(prompt)] == prompt and drawn.mask == [False] * len(prompt) + [True] * 8
        assert drawn.tokens[len(prompt):] != other.tokens[len(prompt):]      # another step, another draw
    sampling = Sampling(max_new_tokens=8, temperature=1.0, seed=context.settings.seed)
    request = Request(f"0 {first[0].id}", first[0].tokens[:-8])
    (alone,) = stream(context.base, context.tokenizer, [request], sampling)
    assert alone.tokens == first[0].tokens[-8:]
    limit = len(arm.inputs.shown[0].tokens) + 3
    monkeypatch.setattr(type(context.base.config), "context_length", limit)
    arm, _ = arm_of(context, "sdft-onpolicy")
    kept = {prompt.id for prompt in arm.inputs.shown}
    assert {e.id for e in arm.targets} == kept and all(len(p.tokens) < limit for p in arm.inputs.shown)
    (drawn,) = arm.inputs.sample(context.base, [e for e in arm.targets if e.id == originals[0].id], 0)
    assert sum(drawn.mask) == 3                                              # the room behind the teacher's prompt


def test_self_output_takes_the_seeds_own_answer_where_the_check_accepts_it(context, monkeypatch):
    def accept(records, answers, check, limits):
        assert [answer.id for answer in answers] == [record.id for record in records] and check is context.task.check
        return [Distilled(r.id, r.instruction, "My own words.", reference=r.response, source="rewrite")
                for r in records[:2]] + [
            Distilled(r.id, r.instruction, r.response, reference=r.response, source="original", reason="no")
            for r in records[2:]]

    monkeypatch.setattr("sdft.experiment.arms.choose", accept)
    arm, originals = arm_of(context, "self-output")
    assert arm.targets[2:] == originals[2:]
    assert arm.targets[:2] == context.examples([replace(r, response="My own words.") for r in context.task.train[:2]])
    asked = json.loads((context.folder / "self-output" / "answers.settings.json").read_text())
    assert asked["template"]["name"] == "plain"                          # no reference shown


def test_token_matched_learns_as_many_tokens_as_sdft():
    records = examples(7)
    counts = [sum(e.mask[1:]) for e in records]
    one = TrainSettings(batch_size=7)
    assert [_steps_to(n * sum(counts), records, one) for n in (1, 2, 5)] == [1, 2, 5]
    assert _steps_to(int(2.4 * sum(counts)), records, one) == 2 and _steps_to(int(2.6 * sum(counts)), records, one) == 3
    assert _steps_to(0, records, one) == 1
    single = TrainSettings(batch_size=1)                                 # steps in the order of training
    assert _steps_to(sum(counts), records, single) == 7 and _steps_to(3 * sum(counts), records, single) == 21


def test_token_matched_counts_what_is_left_for_training(context, tmp_path):
    arm, originals = arm_of(context, "token-matched-sft")
    summary = train(context.base, originals, arm.settings, tmp_path / "matched")
    sdft_tokens = context.settings.epochs * 4 * len("My words.<")            # a byte a token, and the end
    longest = 2 * max(sum(e.mask) for e in originals)                    # the most that a step learns
    assert summary["steps"] == arm.settings.steps and abs(summary["target_tokens"] - sdft_tokens) <= longest / 2
    assert Journal(tmp_path / "matched" / "log.jsonl").read()[-1]["lr"] < context.settings.lr
    context.settings = replace(context.settings, steps=5)
    same = next(arms_of(context, originals, originals))                      # sdft on the same targets: as many steps
    assert same.name == "token-matched-sft" and same.settings.steps == 5


def test_replay_mixes_in_dialogues_that_the_seed_wrote(context):
    context.arms = replace(context.arms, replay_fraction=0.5)
    arm, originals = arm_of(context, "replay")
    dialogues = arm.targets[4:]
    assert arm.targets[:4] == originals and len(dialogues) == 4
    turns = {line["id"]: line for line in Journal(context.folder / "base-turns.jsonl").read()}
    answers = {line["id"]: line for line in Journal(context.folder / "base-answers.jsonl").read()}
    header = user_header(context.tokenizer, None)
    assert context.tokenizer.decode(header, skip_special=False) == "<|im_start|>user\n"
    for dialogue in dialogues:
        learned = [token for token, target in zip(dialogue.tokens, dialogue.mask, strict=True) if target]
        assert learned == answers[dialogue.id]["tokens"] and answers[dialogue.id]["finish"] == "length"
        assert dialogue.tokens[: len(header)] == header and dialogue.mask == sorted(dialogue.mask)
        turn = Rewrite(**{name: turns[dialogue.id][name] for name in Rewrite.__dataclass_fields__})
        asked = context.tokenizer.encode(user_text(context.tokenizer, turn, None))
        assert asked == dialogue.tokens[len(header) :][: len(asked)]
    assert len({tuple(dialogue.tokens) for dialogue in dialogues}) == 4  # sampled, not one greedy answer
    stamp = (context.folder / "base-answers.jsonl").stat().st_mtime_ns
    assert base_dialogues(context, 4) == dialogues
    assert (context.folder / "base-answers.jsonl").stat().st_mtime_ns == stamp


def test_a_general_prompt_is_never_replayed(context, monkeypatch):
    general = context.general.items[0].messages[-1]["content"]
    texts = iter(["", general, "Mine.", "Mine.", "Another."] + ["More."] * 20)
    monkeypatch.setattr("sdft.experiment.base_text.user_text", lambda *_: next(texts))
    dialogues = [context.tokenizer.decode(dialogue.tokens, skip_special=False)
                 for dialogue in base_dialogues(context, 3)]
    asked = [text.partition("user\n")[2].partition("<|im_end|>")[0] for text in dialogues]
    assert asked == ["Mine.", "Another.", "More."]
    monkeypatch.setattr("sdft.experiment.base_text.user_text", lambda *_: "")
    with pytest.raises(SdftError, match="the base model wrote no usable user's turn in 11 samples"):
        base_dialogues(context, 3)


def test_a_turn_ends_where_its_chat_format_ends_it():
    tokenizer = byte_tokenizer()

    def turn(text):
        return Rewrite("a", text, tokenizer.encode(text, special=True), "length", 0)

    assert user_text(tokenizer, turn(" Why?\n<|im_end|>\n<|im_start|>assistant"), "chatml") == "Why?"
    assert user_text(tokenizer, turn("Why? [/INST] Because."), "llama2") == "Why?"
    assert user_text(tokenizer, turn("Why?"), "raw") == "Why?"


def test_interpolation_between_seed_and_tuned():
    model = tiny_model()
    add_lora(model, rank=2)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)
    deltas = [layer.delta() for layer in lora_layers(model).values()]
    interpolate(model, None, 0.25)
    for layer, delta in zip(lora_layers(model).values(), deltas, strict=True):
        torch.testing.assert_close(layer.delta(), delta / 4)
    seed, tuned = tiny_model(seed=0), tiny_model(seed=1)
    mixed = copy.deepcopy(tuned)
    interpolate(mixed, seed, 0.25)
    for a, b, c in zip(seed.parameters(), tuned.parameters(), mixed.parameters(), strict=True):
        torch.testing.assert_close(c, 0.75 * a + 0.25 * b)


def test_full_fine_tuning_has_the_rivals_that_need_no_adapter(model, tmp_path):
    folder = tmp_path / "full"
    assert main(["run", *options(model), *FEW, "--method=full", "--arms=dft,wise-ft,flow", "--out", str(folder)]) == 0
    shifts = {arm: row["shift"] for arm, row in json.loads((folder / "measures.json").read_text())["arms"].items()
              if arm != "base"}
    assert list(shifts) == ["dft", "wise-ft", "flow"] and (folder / "wise-ft" / "model.safetensors").is_file()
    log = Journal(folder / "sft" / "log.jsonl").read()                   # trained for wise-ft, and no arm of its own
    assert shifts["wise-ft"]["total"] == pytest.approx(log[-1]["delta_norm"] / 2, rel=1e-4)


@pytest.mark.parametrize(("wrong", "message"), [
    (["--arms=sft,sdfft"], "arms: expected names out of sft, sdft, .*, got 'sdfft' (did you mean sdft?)"),
    (["--arms=sft,kl", "--method=full"], "objective kl compares with the base model"),
    (["--arms=low-rank", "--method=full"], "low-rank has an adapter of rank 1"),
    (["--replay_fraction=1"], "arms.replay_fraction: expected a share above 0 and below 1"),
    (["--wise_ft_alpha=1.5"], "arms.wise_ft_alpha: expected a share from 0"),
    (["--arms="], "arms.arms: expected names")])
def test_arms_that_cannot_be_are_told_before_any_work(wrong, message, model, tmp_path, capsys):
    assert main(["run", *options(model), *wrong, "--out", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert all(part in error for part in message.split(".*")) and error.count("\n") <= 2
    assert not (tmp_path / "none" / "rewrites.jsonl").exists()


def test_what_was_found_of_the_seed_is_kept_for_the_same_weights_and_texts(context):
    texts, made = context.examples(context.task.train), []
    for given in (texts, texts, texts[:2]):
        context.of_base("length", given, lambda given=given: made.append(len(given)))
    with torch.no_grad():
        context.base.model.norm.weight.add_(1)
    context.of_base("length", texts[:2], lambda: made.append("other weights"))
    assert made == [4, 2, "other weights"]
