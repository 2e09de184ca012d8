"""Settings: a file, options over it, and everything that can be wrong with either."""
from dataclasses import fields

import pytest

from sdft.errors import SdftError
from sdft.experiment.run_folder import default_folder
from sdft.experiment.settings import SECTIONS, Config, make_config, of_task, to_toml, with_machine, with_task


def test_every_leaf_has_a_name_of_its_own_and_a_help():
    names = [knob.name for kind in SECTIONS.values() for knob in fields(kind)]
    assert len(names) == len(set(names)) and not set(names) & set(SECTIONS) - {"model", "task", "arms"}
    assert all(knob.metadata["help"] for kind in SECTIONS.values() for knob in fields(kind))


def test_the_same_setting_in_three_ways(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[train]\nlr = 1e-3\n")
    for config, given in (make_config(path), make_config(None, {"lr": "1e-3"}),
                          make_config(None, {"train.lr": "0.001"})):
        assert config.train.lr == 1e-3 and given == {"lr"}


def test_options_go_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('max_records = 8\n[train]\nlr = 1\nlora_rank = 4\nlora_targets = ["o_proj"]\n'
                    '[task]\ncolumns = {instruction = "q"}\n')
    config, given = make_config(path, {"lora_rank": "2", "rslora": "true", "lora_targets": "q_proj, k_proj"})
    train = config.train
    assert (train.lr, train.lora_rank, train.lora_alpha, train.rslora) == (1.0, 2, 16.0, True)
    assert config.train.lora_targets == ("q_proj", "k_proj") and config.task.max_records == 8
    assert config.task.columns == {"instruction": "q"}
    assert given == {"lr", "lora_rank", "rslora", "lora_targets", "max_records", "columns"}


def test_resolved_settings_read_back_the_same(tmp_path):
    config, _ = make_config(None, {"columns": "instruction=q,response=a", "model": 'odd "name"', "lr": "3e-5",
                                   "max_records": "2"})
    (tmp_path / "c.toml").write_text(to_toml(config))
    assert make_config(tmp_path / "c.toml")[0] == config
    (tmp_path / "d.toml").write_text(to_toml(Config()))
    assert make_config(tmp_path / "d.toml")[0] == Config()


def test_the_task_decides_what_nobody_set():
    config, given = make_config(None, {"epochs": "3"})
    resolved = with_task(config, given, 5, "refer", "alpaca", 512)
    assert (resolved.train.epochs, resolved.distill.template, resolved.eval.train_template) == (3, "refer", "alpaca")
    assert resolved.distill.rewrite_tokens == 512
    config, given = make_config(None, {"template": "using", "rewrite_tokens": "30"})
    resolved = with_task(config, given, 5, "refer", "alpaca", 512)
    assert (resolved.train.epochs, resolved.distill.template, resolved.distill.rewrite_tokens) == (5, "using", 30)
    assert of_task(resolved) == {"epochs": 5, "distill_template": "using", "train_template": "alpaca",
                                 "rewrite_tokens": 30}


def test_paths_hold_from_any_working_directory(tmp_path, monkeypatch):
    (tmp_path / "Qwen2.5-0.5B").mkdir()
    (tmp_path / "mine.csv").touch()
    monkeypatch.chdir(tmp_path)
    config, _ = make_config(None, {"model": "Qwen2.5-0.5B", "task": "custom", "data": "mine.csv"})
    config = with_machine(config)
    assert config.model.model == str(tmp_path / "Qwen2.5-0.5B") and config.task.data == str(tmp_path / "mine.csv")
    assert str(default_folder(config)) == "runs/mine-Qwen2.5-0.5B"
    assert with_machine(make_config()[0]).model.model == "smollm2-135m"      # a name stays one


def test_a_run_is_written_down_with_the_dtype_that_it_computes_in(monkeypatch):
    monkeypatch.setattr("sdft.model.io.checkpoints.multiplies_bfloat16", lambda: False)
    assert with_machine(make_config()[0]).model.dtype == "float32"
    assert with_machine(make_config(None, {"dtype": "bfloat16"})[0]).model.dtype == "bfloat16"


@pytest.mark.parametrize(("options", "message"), [
    ({"lrr": "1"}, r"unknown setting 'lrr' \(did you mean lr\?\)"),
    ({"model.lr": "1"}, r"unknown setting 'model.lr' \(did you mean"),
    ({"lr": "fast"}, "train.lr: expected a number, got 'fast'"),
    ({"epochs": "1.5"}, "train.epochs: expected a whole number, got '1.5'"),
    ({"rslora": "maybe"}, "train.rslora: expected true or false"),
    ({"epochs": "0"}, "epochs: expected at least 1, got 0"),
    ({"lr": "nan"}, "lr: expected a positive number"),
    ({"method": "prefix"}, "method: expected one of lora, full"),
    ({"mix_ratio": "1.5"}, "distill.mix_ratio: expected a share from 0 to 1, got 1.5"),
    ({"generation_batch_size": "0"}, "generate.generation_batch_size: expected at least 1"),
    ({"instruction_items": "-1"}, "eval.instruction_items: expected 0 .none. or more"),
    ({"general_items": "0"}, "eval.general_items: expected at least 1"),
    ({"n_probe_texts": "0"}, "eval.n_probe_texts: expected at least 1"),
    ({"seed": "-1"}, "seed: expected a whole number from 0 to 4294967295"),
    ({"columns": "question"}, "task.columns: expected OURS=THEIRS"),
    ({"model": ""}, "model.model: expected a text"),
])
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(SdftError, match=message):
        make_config(None, options)


@pytest.mark.parametrize(("text", "message"), [
    ("[train\n", "malformed TOML"), ("[trian]\nlr = 1\n", r"unknown section \[trian\] \(did you mean train\?\)"),
    ("[train]\nlearning_rate = 1\n", "c.toml: unknown setting 'train.learning_rate'"),
    ("[train]\nlora_rank = true\n", "c.toml: train.lora_rank: expected a whole number, got True"),
    ('[train]\nlora_rank = "8.5"\n', "train.lora_rank: expected a whole number"),
])
def test_wrong_files_are_one_line(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(SdftError, match=message):
        make_config(path)
