"""Running a suite: every answer is on disk, an interrupted run resumes, scores have intervals."""
from __future__ import annotations

import json

import pytest
from tiny_chat import byte_tokenizer, tiny_chat_model

import sdft.measure.abilities as module
from sdft.errors import SdftError
from sdft.generation import Sampling
from sdft.measure.abilities import against, evaluate, summarise
from sdft.tasks.base import Item, Suite

ITEMS = [Item(f"i{n}", [{"role": "user", "content": f"Say {n}."}], str(n), kind="even" if n % 2 == 0 else "odd")
         for n in range(8)]


def length_score(item: Item, output: str) -> float:
    return float(len(output) % 2)


SUITE = Suite("small", ITEMS, length_score, "accuracy", max_new_tokens=10)
SAMPLED = Sampling(max_new_tokens=999, temperature=1.0, seed=2)


def run(folder, suite=SUITE, model=None, sampling=SAMPLED, batch_size=4):
    return evaluate(model or tiny_chat_model(), byte_tokenizer(), [suite], folder, sampling, batch_size)[suite.name]


def test_a_line_holds_the_item_its_answer_and_its_score(tmp_path):
    rows = run(tmp_path / "eval")
    assert [row["id"] for row in rows] == [item.id for item in ITEMS]
    for row, item in zip(rows, ITEMS, strict=True):
        assert list(row) == ["id", "kind", "prompt", "output", "tokens", "finish", "score"]
        assert (row["kind"], row["prompt"]) == (item.kind, item.messages[-1]["content"])
        assert row["score"] == length_score(item, row["output"])
        assert row["tokens"] <= 10 and (row["finish"] == "stop" or row["tokens"] == 10)       # the suite's own limit
    on_disk = [json.loads(line) for line in (tmp_path / "eval" / "small.jsonl").read_text().splitlines()]
    assert sorted(on_disk, key=lambda row: row["id"]) == rows


def test_an_interrupted_evaluation_resumes(tmp_path, monkeypatch):
    path = tmp_path / "small.jsonl"
    whole = run(tmp_path / "whole")
    stream = module.stream

    def breaks(*arguments):
        for count, output in enumerate(stream(*arguments)):
            if count == 3:
                raise KeyboardInterrupt
            yield output

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "stream", breaks)
        run(tmp_path)
    done = path.read_bytes()
    assert done.count(b"\n") == 3
    assert run(tmp_path) == whole
    assert path.read_bytes().startswith(done) and path.read_bytes().count(b"\n") == 8


def test_suites_are_answered_in_one_stream_each_as_by_itself(tmp_path):
    """With equal item ids each suite gets its own answers, with its own limit, in its own journal."""
    other = Suite("other", [Item(item.id, [{"role": "user", "content": "Sing!"}]) for item in ITEMS[:3]], None, "", 4)
    greedy = Sampling()
    found = evaluate(tiny_chat_model(), byte_tokenizer(), [SUITE, other], tmp_path / "together", greedy, 4)
    assert found == {suite.name: run(tmp_path / "apart", suite, sampling=greedy) for suite in (SUITE, other)}
    assert max(row["tokens"] for row in found["other"]) == 4 < max(row["tokens"] for row in found["small"])
    for suite in (SUITE, other):
        for name in (f"{suite.name}.jsonl", f"{suite.name}.settings.json"):
            mixed, alone = ((tmp_path / folder / name).read_text().splitlines() for folder in ("together", "apart"))
            assert sorted(mixed) == sorted(alone)


def test_a_journal_of_other_items_or_another_model_is_refused(tmp_path):
    path = tmp_path / "small.jsonl"
    run(tmp_path)
    before = path.read_bytes()
    with pytest.raises(SdftError, match="item i4 is not in this suite"):
        run(tmp_path, Suite("small", ITEMS[:4], length_score, "accuracy", 10))
    other = [Item("i0", [{"role": "user", "content": "Sing."}]), *ITEMS[1:]]
    with pytest.raises(SdftError, match="item i0 has another prompt in this suite"):
        run(tmp_path, Suite("small", other, length_score, "accuracy", 10))
    with pytest.raises(SdftError, match="sampling.max_new_tokens was 10, is 11"):
        run(tmp_path, Suite("small", ITEMS, length_score, "accuracy", 11))
    with pytest.raises(SdftError, match="model was"):
        run(tmp_path, model=tiny_chat_model(seed=1))
    assert path.read_bytes() == before


def test_an_item_too_long_for_the_context_is_reported_and_counts_as_an_empty_answer(tmp_path, capsys):
    long = Item("long", [{"role": "user", "content": "word " * 200}])
    rows = run(tmp_path, Suite("small", [long, *ITEMS], length_score, "accuracy", 10))
    assert (rows[0]["id"], rows[0]["output"], rows[0]["tokens"], rows[0]["score"]) == ("long", "", 0, 0.0)
    assert "evaluate: skipped 1 of 9" in capsys.readouterr().err
    assert len(run(tmp_path, Suite("small", [long, *ITEMS], length_score, "accuracy", 10))) == 9
    assert capsys.readouterr().err.count("skipped") == 0


def test_a_suite_without_a_score_keeps_the_outputs(tmp_path):
    rows = run(tmp_path, Suite("small", ITEMS, None, "", 10))
    assert all(row["score"] is None for row in rows)


def test_scores_are_summarised_and_compared_by_id():
    rows = [{"id": str(i), "kind": "ab"[i % 2], "tokens": i, "score": float(i < 6)} for i in range(8)]
    found = summarise(rows)
    assert (found["mean"], found["n"], found["tokens_mean"]) == (0.75, 8, 3.5)
    assert found["low"] < 0.75 < found["high"]
    seed = [{**row, "score": 0.0} for row in reversed(rows)]
    assert against(rows, seed)["difference"] == 0.75
    assert against(rows, rows[::-1]) == {"difference": 0.0, "low": 0.0, "high": 0.0, "n": 8, "p": 1.0,
                                         "test": "McNemar"}
    with pytest.raises(SdftError, match="one side only"):
        against(rows, seed[1:])


def test_scores_of_0_and_1_are_tested_by_mcnemar_and_others_by_flipping_signs():
    def scored(*scores):
        return [{"id": str(i), "score": score} for i, score in enumerate(scores)]

    found = against(scored(1.0, 1.0, 1.0, 1.0, 0.0), scored(0.0, 0.0, 0.0, 0.0, 0.0))
    assert (found["test"], found["p"], found["n"]) == ("McNemar", 2 / 16, 5)
    found = against(scored(0.5, 0.9, 0.4), scored(0.4, 0.5, 0.2))
    assert (found["test"], found["p"]) == ("sign-flip", 2 / 8)
