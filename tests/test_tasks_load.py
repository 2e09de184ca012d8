"""Loading tasks from a folder of tiny files with the columns of the real ones."""
import csv
import json

import pytest

from sdft.errors import SdftError
from sdft.tasks import TASKS, load_task

CALL = "Construct a function call.\n\nQuestion: Enable number {i}."


@pytest.fixture
def folder(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text(json.dumps(rows), encoding="utf-8")

    def solved(i):
        return {"question": f"What is {i} + 1?", "answer": f"{i} + 1 = {i + 1}\nThe answer is {i + 1}."}

    write("gsm8k_train.json", [solved(i) for i in range(200)])
    write("gsm8k_test.json", [solved(i) for i in range(200, 260)])
    write("multiarith_test.json", [{"instruction": f"{i} less 1?", "output": f"The answer is {i - 1}"}
                                   for i in range(40)])
    write("openfunction_train.json", [{"instruction": CALL.format(i=i), "output": f"log.enable(n={i}, on='x')"}
                                      for i in range(90)])
    write("openfunction_test.json", [{"instruction": CALL.format(i=i), "output": f"log.enable(n={i})"}
                                     for i in range(90, 130)])
    free = [{"instruction": f"Say something about {i}.", "input": "Be kind." if i % 2 else "", "output": f"It is {i}."}
            for i in range(400)]
    write("alpaca_train.json", free)
    write("dolly_train.json", free[:100])
    return tmp_path


def test_gsm8k(folder):
    task = load_task("gsm8k", folder)
    assert (task.distill_template, task.train_template, task.epochs) == ("gsm8k_distill", "gsm8k", 5)
    assert [(s.name, len(s.items), s.metric) for s in task.suites] == [("gsm8k", 60, "accuracy"),
                                                                      ("multiarith", 40, "accuracy")]
    assert len(task.train) == 200 and task.train[3].instruction == "What is 3 + 1?"
    for suite in task.suites:                                    # both are asked in the evaluation template
        system, user = suite.items[0].messages
        assert system["role"] == "system" and "formatted as: The answer is {answer}." in system["content"]
        assert user["content"] in ("What is 200 + 1?", "0 less 1?")
        assert suite.score(suite.items[0], f"So it is {suite.items[0].reference}") == 1.0
        assert suite.score(suite.items[0], "The answer is 9999.") == suite.score(suite.items[0], "") == 0.0
    assert task.check(task.train[3], "Great! 3 + 1 = 4") is None
    assert task.check(task.train[3], "It is 5.") == "wrong answer"
    assert task.check(task.train[3], "It is four.") == "no integer at the end"


def test_openfunctions(folder):
    task = load_task("openfunctions", folder)
    assert (task.distill_template, task.train_template, task.epochs) == ("refer", "alpaca", 5)
    suite = task.suites[0]
    assert (len(task.train), len(suite.items)) == (90, 40)
    assert "### Instruction:\nConstruct a function call." in suite.items[0].messages[-1]["content"]
    assert suite.score(suite.items[0], "Sure: `log.enable( n=90)`") == 0.0
    assert suite.score(suite.items[0], "Sure: `log.enable(n=90)`.") == 1.0
    assert task.check(task.train[1], 'Use log.enable(n=1,on="x").') is None
    assert task.check(task.train[1], "log.enable(n=1)") == "the reference call does not occur"


def test_free_text_tasks_hold_a_part_out(folder):
    task = load_task("alpaca", folder)
    assert (task.distill_template, task.train_template, task.epochs) == ("using", "alpaca", 2)
    suite = task.suites[0]
    assert (len(task.train), len(suite.items), suite.metric) == (360, 40, "rouge-l")
    assert not {r.id for r in task.train} & {i.id for i in suite.items}
    assert suite.score(suite.items[0], suite.items[0].reference) == 1.0
    assert 0.0 < suite.score(suite.items[0], "It was.") < 1.0 and suite.score(suite.items[0], "") == 0.0
    assert task.check(task.train[0], "anything") is None
    assert len(load_task("dolly", folder).suites[0].items) == 10


def test_the_held_out_part_depends_on_the_seed_alone(folder):
    whole, small = load_task("alpaca", folder), load_task("alpaca", folder, max_records=64)
    assert small.train == whole.train[:64] and small.suites[0].items == whole.suites[0].items[:32]
    assert {i.id for i in load_task("alpaca", folder, seed=1).suites[0].items} != {i.id for i in whole.suites[0].items}
    rows = json.loads((folder / "alpaca_train.json").read_text())
    (folder / "alpaca_train.json").write_text(json.dumps(rows[::-1]))
    held_out = {item.messages[-1]["content"] for item in whole.suites[0].items}
    assert {item.messages[-1]["content"] for item in load_task("alpaca", folder).suites[0].items} == held_out


def test_the_same_question_is_never_on_both_sides(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Question {i % 20}?", "output": f"Answer {i}."}) + "\n"
                            for i in range(100)))
    task = load_task("custom", path, test_records=5)
    asked = {record.instruction for record in task.train}
    assert len(task.suites[0].items) >= 5
    assert not asked & {item.messages[-1]["content"] for item in task.suites[0].items}


@pytest.mark.parametrize("max_records, train, test", [(64, 64, 32), (100, 100, 50), (5, 5, 32), (10_000, 200, 60)])
def test_max_records_takes_the_first_records_and_shrinks_the_test(folder, max_records, train, test):
    whole, task = load_task("gsm8k", folder), load_task("gsm8k", folder, max_records=max_records)
    assert task.train == whole.train[:train] and task.suites[0].items == whole.suites[0].items[:test]


def test_sizes_can_be_set(folder):
    task = load_task("gsm8k", folder, train_records=20, test_records=3)
    assert (len(task.train), [len(s.items) for s in task.suites]) == (20, [3, 3])


def test_the_users_own_file_with_columns(tmp_path):
    path = tmp_path / "mine.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ask", "reply"])
        writer.writerows([f"Question {i}", f"Reply, {i}"] for i in range(30))
    columns = {"instruction": "ask", "response": "reply"}
    task = load_task("custom", path, columns)
    assert (task.distill_template, task.train_template, len(task.train), len(task.suites[0].items)) == (
        "using", "plain", 27, 3)
    assert task.suites[0].items[0].messages == [
        {"role": "user", "content": task.suites[0].items[0].reference.replace("Reply,", "Question")}]
    assert load_task(str(path), columns=columns).train == task.train         # the path alone names the task


@pytest.mark.parametrize("arguments, message", [
    (("gsm9k",), r"unknown task 'gsm9k' \(did you mean gsm8k\?\); known tasks: passages, gsm8k"),
    (("gsm8k",), "task gsm8k reads gsm8k_train.json from your folder: pass --data FOLDER"),
    (("dolly", "nowhere"), "task dolly expects nowhere.dolly_train.json, but nowhere is not a folder; pass --data"),
    (("custom",), r"task custom reads your own file: pass --data FILE"),
    (("custom", "nowhere.csv"), "nowhere.csv does not exist; pass --data FILE"),
    (("passages", None, None, 0), "max_records = 0: expected a whole number of at least 1"),
])
def test_a_missing_task_or_file_is_reported_in_one_line(arguments, message):
    with pytest.raises(SdftError, match=message) as caught:
        load_task(*arguments)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_too_few_records(folder, tmp_path):
    with pytest.raises(SdftError, match="train_records = 900, but task gsm8k has only 200"):
        load_task("gsm8k", folder, train_records=900)
    with pytest.raises(SdftError, match="test_records = 400 leaves nothing to train on"):
        load_task("alpaca", folder, test_records=400)
    (folder / "multiarith_test.json").unlink()
    with pytest.raises(SdftError, match="task gsm8k expects .*multiarith_test.json, which does not exist; pass --data"):
        load_task("gsm8k", folder)
    with pytest.raises(SdftError, match="is a file, not a folder"):
        load_task("gsm8k", folder / "gsm8k_test.json")
    with pytest.raises(SdftError, match="is a folder; pass --data FILE"):
        load_task("custom", folder)
    (folder / "one.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    with pytest.raises(SdftError, match="at least 2 different records"):
        load_task("custom", folder / "one.jsonl")


def test_records_without_an_answer_are_reported_and_left_out_before_the_split(folder, capsys):
    path = folder / "mine.jsonl"
    rows = [{"instruction": f"Question {i}?", "output": "" if i % 2 else " It is. "} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task("custom", path)
    assert len(task.train) == 18 and len(task.suites[0].items) == 2 and all(record.response for record in task.train)
    assert capsys.readouterr().err == f"task custom: skipped 20 of 40 records of {path}, which have no answer\n"
    rows = json.loads((folder / "gsm8k_train.json").read_text())
    (folder / "gsm8k_train.json").write_text(json.dumps([*rows, {"question": "?", "answer": " \n"}]))
    assert len(load_task("gsm8k", folder).train) == 200
    assert "skipped 1 of 201 records of" in capsys.readouterr().err
    path.write_text("".join(json.dumps({"instruction": f"Question {i}?"}) + "\n" for i in range(9)))
    with pytest.raises(SdftError, match="mine.jsonl: expected records with an answer, but none of the 9 has one; fill"):
        load_task("custom", path)


def test_rewrites_may_be_as_long_as_the_paper_has_it(folder):
    assert {name: load_task(name, folder).rewrite_tokens for name in ("gsm8k", "openfunctions", "alpaca", "dolly")} == {
        "gsm8k": 512, "openfunctions": 512, "alpaca": 512, "dolly": 512}
    assert load_task("passages", max_records=1).rewrite_tokens == 256


def test_columns_of_a_task_without_a_file_are_refused():
    with pytest.raises(SdftError, match="--columns: task passages is generated and has no columns; leave it"):
        load_task("passages", columns={"instruction": "q"})


def test_every_task_is_known_by_name():
    assert list(TASKS) == ["passages", "gsm8k", "openfunctions", "alpaca", "dolly", "custom"]
