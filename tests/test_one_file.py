"""The lesson in one file computes what the package computes: same model, records, settings and seeds, all in fp32.

Two implementations are compared: one record at a time with a growing cache and batched decoding with drafts, padded
batches and packed micro-batches with shared prefixes, plain autograd and kernels with their own backward.
"""
from dataclasses import replace
from pathlib import Path

import pytest

import sdft
from sdft.data.chat import training_example
from sdft.data.templates import get_template
from sdft.distill.rewriting import Rewrite
from sdft.files import Journal
from sdft.generation import Sampling
from sdft.lessons import sdft_in_one_file as lesson
from sdft.tasks.passages import check
from sdft.train import TrainSettings, train

RECORDS = lesson.RECORDS[1:6]                   # the rewrite of one of them is rejected
SETTINGS = replace(lesson.Settings(), batch_size=3, max_new_tokens=40)          # 4 steps, of 3, 2, 3 and 2 records
# Both sides round fp32 sums in different orders. Measured relative differences: 1e-5 in NLL and KL, 1e-6 in ‖ΔW‖. A
# weight decay of 0.01 changes ‖ΔW‖ by 3e-5 and must fail.
CLOSE, CLOSE_NORM = 1e-4, 2e-5


def package_records(records, responses=None):
    responses = responses or [record.response for record in records]
    return [sdft.Record(f"record-{index}", record.instruction, response)
            for index, (record, response) in enumerate(zip(records, responses, strict=True))]


def test_the_lesson_computes_what_the_package_computes(smollm2_fp32, tmp_path):
    model, tokenizer = smollm2_fp32
    base, _ = lesson.load(SETTINGS.model)
    records = package_records(RECORDS)

    # 1. Rewrite: the same text, token for token.
    ours = [lesson.rewrite(base, tokenizer, record, SETTINGS) for record in RECORDS]
    theirs = sdft.rewrite(model, tokenizer, records, "using", Sampling(max_new_tokens=SETTINGS.max_new_tokens))
    assert [(*answer[:2], "stop" if answer.finished else "length") for answer in ours] == [
        (rewrite.text, rewrite.tokens, rewrite.finish) for rewrite in theirs]

    # 2. Choose: the same responses, of which some are rewrites and some are not.
    chosen = [lesson.choose(*pair) for pair in zip(RECORDS, ours, strict=True)]
    distilled = sdft.choose(records, theirs, check)
    assert chosen == [row.response for row in distilled]
    assert {row.source for row in distilled} == {"rewrite", "original"}

    # The gap, before training: the same tokens are targets.
    examples = [lesson.training_example(tokenizer, *pair) for pair in zip(RECORDS, chosen, strict=True)]
    gap = sdft.measure_gap(model, tokenizer, distilled)
    assert gap["tokens"] == sum(len(example.target) for example in examples)
    assert lesson.gap(base, examples) == pytest.approx(gap["nll"], rel=CLOSE)

    # 3. Train: the same loss in every step, and the same ‖ΔW‖ at the end.
    tuned, losses = lesson.train(base, examples, SETTINGS)
    settings = TrainSettings(**{name: getattr(SETTINGS, name) for name in (
        "lora_rank", "lora_alpha", "lora_targets", "lr", "epochs", "batch_size", "max_grad_norm", "seed")})
    plain = get_template("plain")
    train(model, [training_example(tokenizer, record, plain) for record in distilled], settings, tmp_path)
    assert len(losses) == 4
    assert losses == pytest.approx([line["loss"] for line in Journal(tmp_path / "log.jsonl").read()], rel=CLOSE)
    assert lesson.shift(tuned) == pytest.approx(sdft.measure_shift(model)["total"], rel=CLOSE_NORM)

    # The drift, on the base model's answers; an adapter is on `model`.
    prompts = lesson.GENERAL_PROMPTS[:2]
    answers = [lesson.own_answer(base, tokenizer, text, SETTINGS) for text in prompts]
    drift = sdft.measure_drift(model, tokenizer, prompts, max_new_tokens=SETTINGS.max_new_tokens)
    assert drift["tokens"] == sum(len(example.target) for example in answers)
    assert lesson.drift(base, tuned, answers) == pytest.approx(drift["kl"], rel=CLOSE)


@pytest.mark.parametrize("text, finished, accepted", [
    ("It left from Oban.", True, True), (" \n", True, False), ("It left from Oban", False, False),
    ("As the Reference Answer says, Oban.", True, False), ("Your turn: Oban.", True, False),
    ("It left from Obanville.", True, False), ("oban!", True, True)])
def test_the_lesson_chooses_what_the_package_chooses(text, finished, accepted):
    record = lesson.Record("Where did it leave?", "Oban")
    rewrite = Rewrite("record-0", text, [], "stop" if finished else "length", 0)
    (row,) = sdft.choose(package_records([record]), [rewrite], check)
    assert lesson.choose(record, lesson.Answer(text, [], finished)) == row.response
    assert (row.source == "rewrite") == accepted


def test_the_lesson_stays_within_400_lines():
    assert len(Path(lesson.__file__).read_text(encoding="utf-8").splitlines()) <= 400
