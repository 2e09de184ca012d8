"""Results are written whole or not at all; a journal survives a torn last line."""
import json

import pytest
import torch

from sdft.errors import SdftError, nearest
from sdft.files import Journal, read_json, read_tensors, save_tensors, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"kept": 1})
    with pytest.raises(TypeError):
        write_json(path, {"bad": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half of it \ud800")
    assert json.loads(path.read_text()) == {"kept": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SdftError, match=r"cannot write .*file/result.json: (File exists|Not a directory)"):
        write_text(tmp_path / "file" / "result.json", "x")


def test_tensors_round_trip_and_a_truncated_file_is_one_line(tmp_path):
    path = tmp_path / "t.safetensors"
    tensors = {"a": torch.arange(6).view(2, 3).T, "b": torch.randn(3, dtype=torch.bfloat16)}
    save_tensors(path, tensors)
    back = read_tensors(path)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SdftError, match="not a readable safetensors file"):
        read_tensors(path)


def test_malformed_json_names_its_line(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{\n"a": 1,\n"b" 2}')
    with pytest.raises(SdftError, match=r"x.json, line 3: malformed JSON"):
        read_json(path)


def test_a_torn_last_line_is_dropped_and_cut_before_the_next(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append({"id": "a", "text": "é\u2028"})
        journal.append({"id": "b"})
    with open(path, "ab") as file:
        file.write(b'{"id": "c", "te')
    journal = Journal(path)
    assert [line["id"] for line in journal.read()] == ["a", "b"]
    journal.append({"id": "c"})
    assert [line["id"] for line in journal.read()] == ["a", "b", "c"]
    assert path.read_bytes().count(b"\n") == 3


def test_a_damaged_middle_line_is_told_with_its_number(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text('{"id": "a"}\nnot json\n{"id": "b"}\n')
    with pytest.raises(SdftError, match="j.jsonl, line 2"):
        Journal(path).read()


def test_a_full_disk_is_one_line():
    with pytest.raises(SdftError, match="cannot write /dev/full"):
        Journal("/dev/full").append({"id": "a"})


def test_nearest_names_the_known_word():
    assert nearest("lora_rnak", ["lora_rank", "lr"]) == " (did you mean lora_rank?)"
    assert nearest("zzz", ["lr"]) == ""
