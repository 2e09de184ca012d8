"""Every kind of bad input ends in one line on stderr and exit status 1: no traceback, nothing lost."""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import options, save_tiny_model
from tiny import tiny_llama

from sdft.cli import main
from sdft.model.io.adapters import save_adapter
from sdft.model.lora import add_lora


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def broken(model, tmp_path):
    """A copy of the model folder, to be broken."""
    return shutil.copytree(model, tmp_path / "broken")


@pytest.fixture
def fails(capsys):
    """Run a command that has to fail in one line; return the line."""
    def run(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("sdft: ")]
        assert len(lines) == 1 and "Traceback" not in error
        return lines[0]
    return run


def test_data(fails, model, tmp_path):
    train = ("train", "--model", model, "--out", tmp_path / "out", "--data")
    assert "none.jsonl: cannot read this file: No such file" in fails(*train, tmp_path / "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "q", "answer": "a"}\n{"question": "q2", "answer"\n')
    assert "bad.jsonl, line 2: malformed JSON" in fails(*train, bad)
    bad.write_text('{"x": "q", "y": "a"}\n')
    error = fails(*train, bad)
    assert "found the columns x, y" in error and "--columns instruction=NAME,response=NAME" in error
    bad.write_text("")
    assert "expected records, found none" in fails(*train, bad)
    assert not (tmp_path / "out").exists()


def test_records_that_do_not_fit_are_told_and_left_out(fails, model, tmp_path, capsys):
    data = tmp_path / "long.jsonl"
    rows = [{"question": "q", "answer": "a" * 3000}, {"question": "q", "answer": "short"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = ["train", "--model", str(model), "--data", str(data), "--epochs=1", "--out"]
    assert main([*train, str(tmp_path / "out")]) == 0
    streams = capsys.readouterr()
    assert "skipped 1 of 2 records" in streams.err and json.loads(streams.out)["records"] == 1
    data.write_text(json.dumps(rows[0]) + "\n")
    assert "no record to train on" in fails(*train, tmp_path / "other")


def test_model_folders(fails, broken, tmp_path):
    generate = ("generate", "hi", "--model", broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors: not a readable safetensors file" in fails(*generate)
    (broken / "model.safetensors").unlink()
    assert "expected model.safetensors or" in fails(*generate)
    (broken / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "gpt2 is not supported" in fails(*generate)
    (broken / "config.json").unlink()
    assert "expected a model folder with config.json" in fails(*generate)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "it is truncated or corrupt" in fails("generate", "hi", "--model", gguf)


def test_tokenizers(fails, broken):
    (broken / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    assert "Unigram" in fails("generate", "hi", "--model", broken)
    (broken / "tokenizer.json").unlink()
    assert "expected tokenizer.json or tokenizer.model" in fails("generate", "hi", "--model", broken)


def test_settings(fails, model, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("[train]\nlerning_rate = 1e-3\n")
    assert "c.toml: unknown setting 'train.lerning_rate'" in fails("run", config)
    assert "did you mean --epochs?" in fails("run", "--epoch=1")
    assert "lr: expected a positive number" in fails("run", "--lr=0")
    assert "unknown task 'pasages' (did you mean passages?)" in fails("run", "--task=pasages")
    assert "template: expected one of" in fails("run", *options(model), "--template=usin", "--out", tmp_path / "run")
    assert "device" in fails("generate", "hi", "--model", model, "--device=cdua")


@pytest.mark.parametrize(("setting", "message"), [
    ("--temperature=-1", "temperature = -1.0: expected 0"), ("--chat=chatmll", "chat format: expected one of"),
    ("--lora_targets=k_prj", "names no linear layer (did you mean k_proj?)"),
    ("--dtype=int8", "dtype: expected auto or one of"),
    ("--objective=kll", "objective: expected one of"), ("--train_template=refer", "shows the reference answer"),
    ("--max_length=20", "expected records of at most 20 tokens to train on, but all 4 are longer"),
    ("--test_records=0", "test_records = 0"),
])
def test_what_cannot_be_run_is_refused_before_a_folder_is_made(fails, model, tmp_path, setting, message):
    assert message in fails("run", *options(model), setting, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensors_that_do_not_fit_the_configuration(fails, broken):
    path, generate = broken / "model.safetensors", ("generate", "hi", "--model", broken)
    whole = load_file(path)
    for change, message in (
        ({"model.norm.weight": None}, "1 tensors that config.json asks for are missing, first model.norm.weight"),
        ({"model.extra.weight": torch.zeros(2)}, "1 tensors have no place in the model of config.json"),
        ({"model.norm.weight": torch.zeros(2)}, "model.norm.weight has shape (2,), config.json asks for (32,)"),
    ):
        save_file({name: weight for name, weight in (whole | change).items() if weight is not None}, path)
        assert message in fails(*generate)


def test_an_adapter_for_another_model(fails, model, tmp_path):
    other = tiny_llama("smollm2", hidden_size=64)
    add_lora(other)
    save_adapter(other, tmp_path / "adapter")
    error = fails("generate", "hi", "--model", model, "--adapter", tmp_path / "adapter")
    assert "the adapter is for another model" in error


def test_task_files(fails, tmp_path):
    error = fails("run", "--task=gsm8k", "--data", tmp_path)
    assert "gsm8k_train.json" in error and "--data" in error
    assert "pass --data FOLDER" in fails("run", "--task=dolly")


def test_folders(fails, model, tmp_path):
    (tmp_path / "file").write_text("kept")
    error = fails("run", *options(model), "--out", tmp_path / "file")
    assert "cannot write" in error or "expected" in error
    assert (tmp_path / "file").read_text() == "kept"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("kept")
    assert "it holds other files and no config.toml" in fails("run", *options(model), "--out", other)
    assert "expected a finished run with measures.json" in fails("report", other)


def test_a_full_disk_is_one_line(fails, model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "general.jsonl").symlink_to("/dev/full")
    error = fails("eval", "--model", model, "--suite=general", "--out", out)
    assert "cannot write" in error and "No space left" in error


def test_a_task_of_the_users_own_without_answers_or_items_is_refused_before_rewriting(model, tmp_path):
    from dataclasses import replace

    from sdft.errors import SdftError
    from sdft.experiment.context import Context
    from sdft.experiment.settings import make_config, with_task
    from sdft.model import load
    from sdft.tasks import load_task

    config, given = make_config(None, {"dtype": "float32", "max_length": "2048"})
    config, task = with_task(config, given, 1, "using", "plain", 8), load_task("passages", max_records=2)
    seed, tokenizer = load(model, "float32")
    Context(config, tmp_path, seed, tokenizer, task).check()
    for change, message in (
        ({"train": [replace(task.train[0], response=" "), task.train[1]]}, "answer in every record, but 1 of 2 have"),
        ({"suites": [replace(task.suites[0], items=[])]}, "suite passages: expected test items, got none"),
    ):
        with pytest.raises(SdftError, match=message):
            Context(config, tmp_path, seed, tokenizer, replace(task, **change)).check()
