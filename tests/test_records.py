"""Readers: the published shapes, stable ids, and errors that name file and line."""
import csv
import gzip
import json

import pytest

from sdft.errors import SdftError
from sdft.text.records import read_records


def _write(path, rows):
    text = "\n".join(json.dumps(row) for row in rows) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text)
    return path


@pytest.mark.parametrize(("row", "instruction", "response"), [
    ({"instruction": "i", "input": "", "output": "o"}, "i", "o"),
    ({"instruction": "i", "input": "more", "output": "o"}, "i\nmore", "o"),
    ({"question": "q", "answer": "a"}, "q", "a"),
    ({"problem": "p", "solution": "s"}, "p", "s"),
    ({"goal": "g", "target": "t"}, "g", "t"),
    ({"prompt": "p", "completion": "c"}, "p", "c"),
    ({"Question": "q", "Answer": 42}, "q", "42"),
    ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, "u", "a"),
    ({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}, "u", "a"),
])
def test_published_shapes_are_known(tmp_path, row, instruction, response):
    for name in ("d.json", "d.jsonl"):
        (record,) = read_records(_write(tmp_path / name, [row]))
        assert (record.instruction, record.response) == (instruction, response)


def test_conversations_keep_system_and_history(tmp_path):
    turns = [("system", "s"), ("user", "u1"), ("assistant", "a1"), ("user", "u2"), ("assistant", "a2")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns], "source": "x"}
    (record,) = read_records(_write(tmp_path / "d.json", [row]))
    assert (record.system, record.history, record.instruction, record.response) == ("s", (("u1", "a1"),), "u2", "a2")
    assert record.extra == {"source": "x"}
    lima = {"instruction": "u2", "output": "a2", "history": [["u1", "a1"]]}
    (record,) = read_records(_write(tmp_path / "l.json", [lima]))
    assert record.history == (("u1", "a1"),)


def test_csv_and_gz(tmp_path):
    path = tmp_path / "d.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["goal", "target"], ["two\nlines, \"quoted\"", "t"], ["g2", "t2"]])
    assert [record.instruction for record in read_records(path)] == ['two\nlines, "quoted"', "g2"]
    packed = tmp_path / "d.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_records(packed) == read_records(path)


def test_ids_are_the_datas_own_or_a_hash_of_the_content(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(3)]
    ids = [record.id for record in read_records(_write(tmp_path / "a.json", rows))]
    backwards = [record.id for record in read_records(_write(tmp_path / "b.jsonl", rows[::-1]))]
    assert len(set(ids)) == 3 and backwards == ids[::-1]
    own = read_records(_write(tmp_path / "c.json", [{"id": 7, "question": "q", "answer": "a"}]))
    assert own[0].id == "7"
    twice = [record.id for record in read_records(_write(tmp_path / "d.json", [rows[0], rows[0]]))]
    assert twice == [ids[0], f"{ids[0]}-2"]
    with pytest.raises(SdftError, match="record 2: the id '7' occurs twice"):
        read_records(_write(tmp_path / "e.json", [{"id": 7, "question": q, "answer": "a"} for q in "xy"]))


def test_columns_are_mapped_and_unknown_ones_told(tmp_path):
    path = _write(tmp_path / "d.jsonl", [{"frage": "q", "antwort": "a", "nr": "n1"}])
    (record,) = read_records(path, {"instruction": "frage", "response": "antwort", "id": "nr"})
    assert (record.id, record.instruction, record.response) == ("n1", "q", "a")
    with pytest.raises(SdftError, match=r"d.jsonl, line 1: found the columns frage, antwort, nr, and none .* --columns"):
        read_records(path)
    with pytest.raises(SdftError, match=r"maps response to 'antwrt', which is not there \(did you mean antwort\?\)"):
        read_records(path, {"instruction": "frage", "response": "antwrt"})
    with pytest.raises(SdftError, match="'respnse' is no column of ours"):
        read_records(path, {"respnse": "antwort"})


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.jsonl", '{"question": "q", "answer": "a"}\n{"question": \n', "a.jsonl, line 2: malformed JSON"),
    ("a.json", '[\n{"question": "q", "answer": "a"},\n{"question" "q"}]', "a.json, line 3: malformed JSON"),
    ("a.json", "[]", "expected records, found none"),
    ("a.jsonl", "", "expected records, found none"),
    ("a.csv", "question,answer\n", "expected records, found none"),
    ("a.csv", "question,answer\nq,a\nonly one\n", "a.csv, line 3: expected 2 columns"),
    ("a.json", '["text"]', "record 1: expected an object with named columns, found str"),
    ("a.json", '[{"question": ["q"], "answer": "a"}]', "record 1: column 'question' is expected to hold text, found list"),
    ("a.json", '[{"question": " ", "answer": "a"}]', "record 1: the instruction is empty"),
    ("a.json", '[{"messages": [{"role": "assistant", "content": "a"}]}]', "record 1: the turns of messages are expected"),
    ("a.json", '[{"messages": [{"role": "boss", "content": "a"}]}]', "record 1: messages is expected to be a list"),
    ("a.json", '[{"instruction": "i", "output": "o", "history": ["x"]}]', "record 1: history is expected"),
    ("a.txt", "x", "expected a .json, .jsonl or .csv file"),
])
def test_bad_data_is_one_line_with_its_place(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SdftError, match=message):
        read_records(path)


def test_unreadable_files_are_one_line(tmp_path):
    with pytest.raises(SdftError, match="cannot read this file: No such file"):
        read_records(tmp_path / "none.json")
    (tmp_path / "x.jsonl").write_bytes(b'{"question": "q", "answer": "a"}\n{"question": "\xff"}')
    with pytest.raises(SdftError, match="x.jsonl, line 2: expected UTF-8 text"):
        read_records(tmp_path / "x.jsonl")
    (tmp_path / "x.json.gz").write_bytes(b"no gzip")
    with pytest.raises(SdftError, match="x.json.gz: cannot read this file"):
        read_records(tmp_path / "x.json.gz")


def test_limit_takes_the_first(tmp_path):
    path = _write(tmp_path / "d.json", [{"question": f"q{i}", "answer": "a"} for i in range(5)])
    assert [record.instruction for record in read_records(path, limit=2)] == ["q0", "q1"]
