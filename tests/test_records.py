"""Readers: the published shapes, stable ids, and errors that name file and line."""
import csv
import gzip
import json

import pytest

from sdft.data.records import read_records
from sdft.errors import SdftError


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
    ({"task_id": "T/0", "prompt": "p", "canonical_solution": "c", "test": "t"}, "p", "c"),
    ({"key": 1, "prompt": "p", "instruction_id_list": ["a"], "kwargs": [{}]}, "p", ""),
    ({"input": "i", "output": "o"}, "i", "o"),
    ({"instruction": "i", "context": "more", "response": "o"}, "i\nmore", "o"),
    ({"Instruction": "i", "Input": "more", "Output": "o"}, "i\nmore", "o"),
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


def test_a_conversation_of_plain_texts_alternates_as_limas_own_release(tmp_path):
    path = tmp_path / "lima.jsonl"
    path.write_text('{"conversations": ["Why?", "Because."], "source": "x"}\n'
                    '{"conversations": ["Why?", "Because.", "Really?", "Yes."]}\n')
    first, second = read_records(path)
    assert (first.instruction, first.response, first.history) == ("Why?", "Because.", ())
    assert (second.instruction, second.response, second.history) == ("Really?", "Yes.", (("Why?", "Because."),))


def test_a_conversations_system_text_may_be_in_a_column_and_its_answer_be_missing(tmp_path):
    talk = [{"from": "human", "value": "u"}]
    (record,) = read_records(_write(tmp_path / "d.json", [{"conversations": talk, "system": "s", "id": "c1"}]))
    assert (record.id, record.system, record.instruction, record.response) == ("c1", "s", "u", "")
    (record,) = read_records(_write(tmp_path / "m.json", [{"conversations": talk, "rules": "s"}]), {"system": "rules"})
    assert (record.system, record.extra) == ("s", {})


def test_json_may_be_one_object_or_one_a_line(tmp_path):
    row = {"question": "q", "answer": "a"}
    (tmp_path / "one.json").write_text(json.dumps(row, indent=1))
    (tmp_path / "lines.json").write_text(f"\n{json.dumps(row)}\r\n{json.dumps(row | {'answer': 'b'})}\n")
    assert [record.response for record in read_records(tmp_path / "one.json")] == ["a"]
    assert [record.response for record in read_records(tmp_path / "lines.json")] == ["a", "b"]


def test_csv_and_gz(tmp_path):
    path = tmp_path / "d.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["goal", "target"], ["two\nlines, \"quoted\"", "t"], ["g2", "t2"]])
    assert [record.instruction for record in read_records(path)] == ['two\nlines, "quoted"', "g2"]
    zipped = tmp_path / "d.csv.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read_records(zipped) == read_records(path)


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


def test_an_id_depends_on_everything_that_is_trained_on_and_on_nothing_else(tmp_path):
    row = {"instruction": "i", "output": "o", "system": "s", "history": [["u", "a"]]}
    changed = [row | change for change in ({"instruction": "j"}, {"output": "p"}, {"system": "t"}, {"history": []})]
    ids = [record.id for record in read_records(_write(tmp_path / "d.json", [row, *changed]))]
    assert len(set(ids)) == 5 and not any("-" in id for id in ids)      # -2 would mark a copy
    (record,) = read_records(_write(tmp_path / "e.json", [row | {"source": "elsewhere"}]))
    assert record.id == ids[0]


def test_columns_are_mapped_and_unknown_ones_reported(tmp_path):
    path = _write(tmp_path / "d.jsonl", [{"frage": "q", "antwort": "a", "nr": "n1"}])
    (record,) = read_records(path, {"instruction": "frage", "response": "antwort", "id": "nr"})
    assert (record.id, record.instruction, record.response) == ("n1", "q", "a")
    with pytest.raises(SdftError, match="d.jsonl, line 1: found the columns frage, antwort, nr; expected for "
                       "instruction one of instruction, question, .*; for response one of .* --columns "
                       "instruction=NAME,response=NAME"):
        read_records(path)
    with pytest.raises(SdftError, match=r"maps response to 'antwrt', which is not there \(did you mean antwort\?\)"):
        read_records(path, {"instruction": "frage", "response": "antwrt"})
    with pytest.raises(SdftError, match="'respnse' is not a column name here"):
        read_records(path, {"respnse": "antwort"})


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.jsonl", '{"question": "q", "answer": "a"}\n{"question": \n', "a.jsonl, line 2: malformed JSON"),
    ("a.json", '[\n{"question": "q", "answer": "a"},\n{"question" "q"}]', "a.json, line 3: malformed JSON"),
    ("a.json", "[]", "expected records, found none"),
    ("a.jsonl", "", "expected records, found none"),
    ("a.csv", "question,answer\n", "expected records, found none"),
    ("a.csv", "question,answer\nq,a\nonly one\n", "a.csv, line 3: expected 2 columns"),
    ("a.json", '["text"]', "record 1: expected an object with named columns, found str"),
    ("a.json", '[{"question": ["q"], "answer": "a"}]', "column 'question' is expected to hold text, found list"),
    ("a.json", '[{"question": " ", "answer": "a"}]', "record 1: the instruction is empty"),
    ("a.json", '[{"messages": [{"role": "assistant", "content": "a"}]}]', "messages is expected to alternate"),
    ("a.json", '[{"messages": [{"role": "boss", "content": "a"}]}]', "record 1: messages is expected to be a list"),
    ("a.json", '[{"instruction": "i", "output": "o", "history": ["x"]}]', "record 1: history is expected"),
    ("a.json", '[{"messages": "text"}]', "record 1: messages is expected to be a list .* found text"),
    ("a.json", '[{"question": "q", "reply": "a"}]', "found the columns question, reply; expected for response one of"),
    ("a.json", '[{"question": "q", "answer": null}]', "'answer' is expected to hold text, found NoneType"),
    ("a.jsonl", '\n{"question": "\\ud83d", "answer": "a"}', "a.jsonl, line 2: .* is half a character"),
    ("a.json", '[{"n": ' + 5000 * "1" + "}]", "a.json, line 1: malformed JSON"),
    ("a.json", 100000 * "[", "a.json, line 1: malformed JSON"),
    ("a.csv", "answer,answer\na,b\n", "a.csv, line 1: the column 'answer' occurs twice"),
    ("a.csv", 'question,answer\nq,a\n"q"x,a\n', "a.csv, line 3: malformed CSV"),
    ("a.csv", 'question,answer\n"two\nlines",a\n\nq,"open\nq,a\n', "a.csv, line 5: malformed CSV"),
    ("a.csv", 'question,answer\n"two\nlines",a\n\n\nq\n', "a.csv, line 6: expected 2 columns as in the header, found"),
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
    packed = bytearray(gzip.compress(b'{"question": "q", "answer": "a"}' * 50))
    packed[13] ^= 0x55
    (tmp_path / "y.jsonl.gz").write_bytes(packed)
    with pytest.raises(SdftError, match="y.jsonl.gz: cannot read this file: "):
        read_records(tmp_path / "y.jsonl.gz")


def test_max_records_takes_the_first(tmp_path):
    path = _write(tmp_path / "d.json", [{"question": f"q{i}", "answer": "a"} for i in range(5)])
    assert [record.instruction for record in read_records(path, max_records=2)] == ["q0", "q1"]
    with pytest.raises(SdftError, match="max_records: expected at least 1, got 0"):
        read_records(path, max_records=0)
