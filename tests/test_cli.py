"""The commands as a user types them: help, results on stdout, exit status, and one line for a failure."""
import json
import os
import shutil
import subprocess
import sys

import pytest
from small_run import save_tiny_model
from tiny_chat import byte_tokenizer

from sdft.cli import COMMANDS, main
from sdft.distill import mix, read_distilled
from sdft.model.io.adapters import save_adapter
from sdft.model.lora import add_lora, lora_layers
from sdft.tasks import Item, Suite

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}     # as a user's shell is


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    from sdft.model.io.checkpoints import load_model

    folder, tuned = tmp_path_factory.mktemp("adapter"), load_model(model, "float32")
    add_lora(tuned, rank=2)
    for layer in lora_layers(tuned).values():
        layer.lora_B.data.fill_(0.05)
    save_adapter(tuned, folder, "tiny")
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {i}.", "completion": f"{i} it is"}) + "\n" for i in range(6)))
    return path


def _sdft(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "sdft", *arguments], capture_output=True, text=True, **options)


def test_help_needs_no_torch_and_lists_every_command():
    code = "import sys, sdft.cli; sdft.cli.main(['--help']); sdft.cli.main(['run', '--help'])"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() in ("torch", "numpy", "tqdm")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "example:  sdft " + name in out and "-h, --help" in out


def test_wrong_usage_exits_2_and_a_failure_1_in_one_line(capsys):
    assert main(["trian"]) == 2 and "did you mean train?" in capsys.readouterr().err
    assert main([]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["merge"])
    assert stop.value.code == 2
    capsys.readouterr()
    assert main(["run", "--learning-rate=1"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sdft: unknown setting --learning_rate") and error.count("\n") == 1


def test_generate_answers_in_order_from_arguments_and_stdin(model):
    arguments = ("generate", "--model", str(model), "--dtype=float32", "--max-new-tokens=5", "--json")
    done = _sdft(*arguments, "one", "two, which is longer")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [row["id"] for row in rows] == ["0", "1"]
    assert all(len(row["tokens"]) <= 5 for row in rows)
    piped = _sdft(*arguments, input="one\ntwo, which is longer\n")
    assert piped.stdout == done.stdout
    assert _sdft(*arguments, input="").stderr.count("\n") == 1


def test_the_stages_alone(model, adapter, data, tmp_path, capsys):
    """distill, train on what it wrote, eval, measure, merge: each reads files and writes files."""
    common = ["--model", str(model), "--dtype=float32"]
    columns = ["--columns", "instruction=prompt,response=completion"]

    def result(*arguments):
        assert main(list(arguments)) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    out = tmp_path / "out"
    counts = result("distill", *common, "--data", str(data), *columns, "--rewrite_tokens=4", "--out", str(out))
    assert counts["records"] == counts["accepted"] + counts["rejected"] > 0
    trained = result("train", *common, "--data", str(out / "distilled.jsonl"), "--epochs=1", "--out", str(out / "sdft"))
    assert trained["steps"] == 1 and (out / "sdft" / "adapter_model.safetensors").is_file()
    scores = result("eval", *common, "--adapter", str(out / "sdft"), "--data", str(data), *columns,
                    "--out", str(out / "eval"))
    assert scores["metric"] == "rouge-l" and (out / "eval" / "custom.jsonl").is_file()
    shift = result("measure", "shift", *common, "--adapter", str(adapter), "--spectra=v_proj")
    assert shift["total"] > 0 and {"intruders" in row for row in shift["modules"] if row["kind"] == "v_proj"} == {True}
    gap = result("measure", "gap", *common, "--data", str(data), *columns)
    assert len(gap["records"]) == 6 and gap["nll"] > 0
    drift = result("measure", "drift", *common, "--adapter", str(adapter), "--general_items=1",
                   "--out", str(out / "drift"))
    assert drift["kl"] > 0 and drift["n"] == 1
    states = result("measure", "activations", *common, "--adapter", str(adapter), "--general_items=1",
                    "--out", str(out / "drift"))
    assert states["n"] == 1 and states["tokens"] == drift["tokens"] and states["layers"][-1]["relative"] > 0
    along = result("measure", "interpolation", *common, "--adapter", str(adapter), "--data", str(data), *columns)
    assert along[0] == {"t": 0, "nll": pytest.approx(gap["nll"]), "tokens": gap["tokens"], "n": len(gap["records"])}
    assert along[4]["nll"] != along[0]["nll"]
    same = result("measure", "adapters", str(adapter), str(adapter))
    assert same["cosine"] == pytest.approx(1) and same["norms"] == [pytest.approx(shift["total"])] * 2
    merged = result("merge", str(adapter), *common, "--out", str(tmp_path / "merged"))
    assert merged["relative"] < 1e-6 and (tmp_path / "merged" / "tokenizer.json").is_file()
    moved = result("measure", "weights", str(model), str(tmp_path / "merged"), "--spectra=v_proj")
    assert moved["total"] == pytest.approx(merged["delta_norm"], rel=1e-4)      # fp32 weights subtracted
    assert main(["generate", "--model", str(tmp_path / "merged"), "--max_new_tokens=2", "x"]) == 0


def _told(capsys, *arguments, status=0):
    """Run a command; return its last line on stdout read as JSON (None for a failure), and stderr."""
    assert main([str(argument) for argument in arguments]) == status
    streams = capsys.readouterr()
    return (None if status else json.loads(streams.out.splitlines()[-1])), streams.err


def test_distill_tells_what_is_held_out_and_train_takes_the_task_s_template(model, tmp_path, capsys, monkeypatch):
    """A distilled file is trained as its task has it, whatever the default is; options go over that."""
    rows = [{"instruction": f"Call {i}.", "output": f"f(a={i})"} for i in range(4)]
    for part in ("train", "test"):
        (tmp_path / f"openfunction_{part}.json").write_text(json.dumps(rows))
    common = ["--model", model, "--dtype=float32"]
    task = ["--task=openfunctions", "--data", tmp_path]
    _, told = _told(capsys, "distill", *common, *task, "--rewrite_tokens=2", "--out", tmp_path / "out")
    assert "distill: 4 records (openfunction_train.json" in told
    asked = []

    def train(model, examples, settings, folder, base_name, tokenizer):
        asked.append((byte_tokenizer().decode(examples[0].tokens, skip_special=False), settings.epochs))
        return {}

    monkeypatch.setattr("sdft.train.train", train)
    file = ["--data", tmp_path / "out" / "distilled.jsonl"]
    for data in (task, file, [*file, "--train_template=plain", "--epochs=3"]):
        _told(capsys, "train", *common, *data, "--out", tmp_path / "x")
    (alpaca, epochs), from_file, (plain, three) = asked
    assert "Below is an instruction" in alpaca and epochs == 5 and from_file == (alpaca, 5)
    assert "Below is an instruction" not in plain and three == 3
    gaps = [_told(capsys, "measure", "gap", *common, *data)[0]["nll"]
            for data in (task, [*task, "--train_template=alpaca"], [*task, "--train_template=plain"])]
    assert gaps[0] == gaps[1] != gaps[2]
    (tmp_path / "out" / "distilled.settings.json").write_text((tmp_path / "out" / "distilled.settings.json").read_text()
                                                              .replace('"epochs": 5', '"epochs": "5"'))
    assert "distilled.settings.json: expected numbers for epochs" in _told(
        capsys, "train", *common, *file, "--out", tmp_path / "x", status=1)[1]


def test_the_standalone_file_holds_the_mix_of_the_run_s_seed(model, data, tmp_path, capsys, monkeypatch):
    """Every rewrite accepted: a half of them is taken, by train.seed, and the rest say why not."""
    monkeypatch.setattr(sys.modules["sdft.distill.filters"], "reason_against", lambda *_: "")

    def distill(*more):
        found, told = _told(capsys, "distill", "--model", model, "--dtype=float32", "--data", data, "--columns",
                            "instruction=prompt,response=completion", "--rewrite_tokens=2", "--out", tmp_path / "out",
                            *more)
        assert f"distill: 5 records ({data}, 1 of 6 records held out for the test)" in told
        return found, read_distilled(tmp_path / "out" / "distilled.jsonl")

    everything = distill()[1]
    assert all(row.source == "rewrite" for row in everything)
    for seed in (0, 1, 2):
        found, rows = distill("--mix_ratio=0.4", f"--seed={seed}")
        assert rows == mix(everything, 0.4, seed)
        assert found["accepted"] == 2 and found["reasons"] == {"not in the mix": 3}
        assert found["effective_share"] == sum(row.response != row.reference for row in rows) / 5


def test_measure_is_told_what_it_takes(adapter, capsys):
    for arguments, message in ((["shift"], "measure shift needs an adapter"),
                               (["interpolation"], "measure interpolation needs an adapter"),
                               (["adapters", adapter], "measure adapters needs 2 folders; got 1"),
                               (["weights", adapter, adapter], "expected model.safetensors or"),
                               (["adapters", adapter, "nowhere"], "nowhere: expected an adapter folder"),
                               (["gap", adapter], "measure gap takes options only, no folder")):
        error = _told(capsys, "measure", *arguments, status=1)[1]
        assert error.startswith("sdft: ") and message in error and error.count("\n") == 1


def test_answers_of_seed_and_adapter_stand_apart_and_fewer_prompts_follow_more(model, adapter, tmp_path, capsys,
                                                                               monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--model", model, "--dtype=float32"]
    drift = ["measure", "drift", *common, "--adapter", adapter]
    two, one = (_told(capsys, *drift, f"--general_items={count}")[0] for count in (2, 1))
    assert (two["n"], one["n"]) == (2, 1) and two["tokens"] > one["tokens"]
    assert _told(capsys, *drift, "--general_items=1", "--out=new")[0] == one
    item = Item("a", [{"role": "user", "content": "Hello"}])
    monkeypatch.setattr("sdft.tasks.general_suite", lambda: Suite("general", [item], None, "", 4))
    for more, folder in ((["--adapter", adapter], adapter.name), ([], "base")):
        shutil.rmtree("eval", ignore_errors=True)
        assert _told(capsys, "eval", *common, *more, "--suite=general")[0]["answers"] == f"eval/{folder}/general.jsonl"
    message = _told(capsys, "eval", *common, "--adapter", adapter, "--suite=general", "--out=eval/base", status=1)[1]
    assert "was made with other settings: another model or adapter" in message


def test_prompt_shows_a_record_of_a_file(model, data, capsys):
    assert main(["prompt", "--model", str(model), "--data", str(data), "--template=alpaca"]) == 0
    out = capsys.readouterr().out
    assert "⟦" in out and "tokens" in out
    assert main(["prompt", "--model", str(model), "--data", str(data), "--id=none"]) == 1
    assert "no record is called 'none'" in capsys.readouterr().err
    for both in (["--data", str(data)], ["--id=a"]):
        assert main(["prompt", "--model", str(model), "Why?", *both]) == 1
        assert "expected TEXT or a record of --data or --id, got both" in capsys.readouterr().err


def test_chat_keeps_the_conversation(model):
    done = _sdft("chat", "--model", str(model), "--dtype=float32", "--max_new_tokens=3",
                 input="hello\nagain\n/new\nhello\n")
    lines = done.stdout.split("\n")
    assert done.returncode == 0 and len(lines) >= 3


def test_a_reader_that_goes_away_is_no_failure(model):
    for command in (["generate", "--model", str(model), "--max_new_tokens=2", "a", "b"], ["--help"], ["run", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([sys.executable, "-m", "sdft", *command], stdout=writer, stderr=subprocess.PIPE,
                              env=BUFFERED)
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b""), command


def test_an_output_that_cannot_be_written_is_one_line(model):
    for command in (["generate", "--model", str(model), "--max_new_tokens=2", "a"], ["--help"], ["train", "--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-m", "sdft", *command], stdout=full, stderr=subprocess.PIPE,
                                  text=True, env=BUFFERED)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, command
        assert "No space left on device" in done.stderr


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")])
def test_too_little_memory_is_one_line(model, monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("sdft.model.load", fail)
    assert main(["generate", "--model", str(model), "a"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("sdft: out of memory") and told.count("\n") == 1


def test_a_defect_is_not_hidden(model, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("sdft.model.load", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        main(["generate", "--model", str(model), "a"])


def test_ctrl_c_is_one_line_and_130(model, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sdft.model.load", interrupt)
    assert main(["generate", "--model", str(model), "a"]) == 130
    assert capsys.readouterr().err.startswith("\nsdft: interrupted")


def test_help_shows_a_setting_once_with_what_it_holds(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert out.count("--lr ") == 1 and "--lr X " in out and "--lora_targets A,B,…" in out
    assert "[-h] --out DIR [--KEY VALUE]" in out.splitlines()[0]
