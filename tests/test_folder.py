"""Who may begin or go on in a run folder."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sdft.errors import SdftError
from sdft.experiment.run_folder import check_folder, is_new, make_folder
from sdft.experiment.settings import make_config, with_machine
from sdft.files import locked


def test_a_folder_in_which_making_it_was_killed_is_as_good_as_empty(tmp_path):
    assert is_new(tmp_path) and is_new(tmp_path / "absent")
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / ".config.toml.x1.tmp").write_text("[mod")
    assert is_new(tmp_path)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(SdftError, match="holds other files and no config.toml"):
        is_new(tmp_path)
    with pytest.raises(SdftError, match="is a file"):
        is_new(tmp_path / "thesis.doc")


def test_a_setting_that_is_newer_than_the_folder_was_at_its_default(tmp_path):
    config, _ = make_config(None, {"lr": "0.1"})
    made_of = {"model_sha256": "a" * 64, "data_sha256": "b" * 64}
    make_folder(tmp_path, config, made_of)
    path = tmp_path / "config.toml"
    path.write_text("\n".join(line for line in path.read_text().splitlines() if not line.startswith("warmup ")) + "\n")
    check_folder(tmp_path, config, made_of)
    other, _ = make_config(None, {"lr": "0.1", "warmup": "3"})
    with pytest.raises(SdftError, match="train.warmup was 0, is 3"):
        check_folder(tmp_path, other, made_of)


def test_other_data_are_told_unless_the_settings_tell_it(tmp_path):
    config, _ = make_config(None, {})
    made_of = {"model_sha256": "a" * 64, "data_sha256": "b" * 64}
    make_folder(tmp_path, config, made_of)
    with pytest.raises(SdftError, match="other settings: the data's SHA-256 was bbbbbbbbbbbb…, is cccccccccccc…. Use"):
        check_folder(tmp_path, config, made_of | {"data_sha256": "c" * 64})
    fewer, _ = make_config(None, {"train_records": "3"})
    with pytest.raises(SdftError, match="other settings: task.train_records was absent, is 3. Use"):
        check_folder(tmp_path, fewer, made_of | {"data_sha256": "c" * 64})


def test_with_dropout_the_packs_are_part_of_the_run(tmp_path):
    made_of = {"model_sha256": "a" * 64, "data_sha256": "b" * 64}
    for dropout in ("0", "0.1"):
        folder = tmp_path / dropout
        config, other = (with_machine(make_config(None, {"lora_dropout": dropout, **more})[0])
                         for more in ({}, {"micro_tokens": "64", "save_every": "3"}))
        make_folder(folder, config, made_of)
        if dropout == "0":
            check_folder(folder, other, made_of)
        else:
            with pytest.raises(SdftError, match="other settings: train.micro_tokens was 2048, is 64. Use"):
                check_folder(folder, other, made_of)


def test_a_folder_is_held_by_one_process_until_that_one_dies(tmp_path):
    code = ("import sys, time; from pathlib import Path; from sdft.files import locked\n"
            "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(SdftError, match="another run is at work in this folder"):
        with locked(tmp_path):
            pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert os.listdir(tmp_path) == []
