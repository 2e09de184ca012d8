"""A run killed by SIGKILL twice resumes, and ends bit for bit where an undisturbed run ends."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sdft.files import read_tensors

TOTAL = 14          # steps: 28 records, batches of 4, 2 epochs
CHILD = """
import sys
import time
from pathlib import Path
import torch
torch.set_num_threads(1)
from training_parts import examples, tiny_model
from sdft.train import TrainSettings, train
from sdft.objectives import OBJECTIVES, cross_entropy

def slow(batch, hidden):
    time.sleep(float(sys.argv[3]))
    return cross_entropy(batch, hidden)

OBJECTIVES["slow"] = slow
settings = TrainSettings(objective="slow", method=sys.argv[1], lr=1e-2, batch_size=4, micro_tokens=40, lora_rank=2,
                         lora_dropout=0.2, save_every=4)
train(tiny_model(torch.bfloat16), examples(28), settings, Path(sys.argv[2]), validation=examples(3, seed=5))
"""


def start(method: str, folder: Path, pause: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CHILD, method, str(folder), str(pause)], stderr=subprocess.PIPE,
                            cwd=Path(__file__).parent, env={**os.environ, "OMP_NUM_THREADS": "1"})


def steps(folder: Path) -> list[int]:
    path = folder / "log.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] \
        if path.exists() else []


def kill_at(step: int, child: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while step not in steps(folder):
        assert time.monotonic() < deadline and child.poll() is None, child.stderr.read().decode()
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def finish(child: subprocess.Popen) -> None:
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors.decode()


@pytest.mark.parametrize("method, result, kills", [
    ("lora", "adapter_model.safetensors", (2, 10)),         # before any state; two steps after one, in the second epoch
    ("full", "model.safetensors", (9,))])
def test_a_killed_run_ends_where_an_undisturbed_one_ends(tmp_path, method, result, kills):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = start(method, whole, 0)
    for step in kills:
        kill_at(step, start(method, broken, 0.04), broken)
    finish(start(method, broken, 0))
    finish(undisturbed)
    assert (broken / result).read_bytes() == (whole / result).read_bytes()
    ours, theirs = (read_tensors(folder / "state.safetensors") for folder in (broken, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert steps(broken) == steps(whole) == list(range(1, TOTAL + 1))

    def outcome(folder):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if "second" not in key} for line in lines]

    assert outcome(broken) == outcome(whole)
