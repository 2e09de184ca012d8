"""Who may begin or go on in a run folder."""
from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from sdft.errors import SdftError
from sdft.experiment.folder import is_new
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
