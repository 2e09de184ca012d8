"""Start-up times: of the help, of a refused setting, and of the first token of a new process.

    python benchmarks/startup.py [--repeats 9]

Every command is a separate process. The commands take turns, so that a slower minute of the machine affects all of
them; the table shows medians. `python -c pass` is the lower limit of every Python program, `import torch` that of every
program which computes. transformers answers the same prompt with the same weights.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from sdft.model.io.checkpoints import as_dtype
from sdft.model.io.fetch import fetch

MODEL = "smollm2-135m"
PROMPT = "Why is the sky blue?"
PEER = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, dtype = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
text = f"<|im_start|>user\\n{prompt}<|im_end|>\\n<|im_start|>assistant\\n"
tokens = tokenizer(text, return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=1, do_sample=False)[0, -1]))
"""
GOAL = 0.15          # seconds of `sdft --help`


def commands() -> dict[str, list[str]]:
    """The timed commands, by name."""
    dtype = str(as_dtype("auto")).removeprefix("torch.")
    python, sdft = [sys.executable], [sys.executable, "-m", "sdft"]
    return {
        "python -c pass": [*python, "-c", "pass"],
        "sdft --help": [*sdft, "--help"],
        "sdft run --help": [*sdft, "run", "--help"],
        "sdft run --lrr=1 (refused)": [*sdft, "run", "--lrr=1"],
        "import torch": [*python, "-c", "import torch"],
        "sdft: first token": [*sdft, "generate", PROMPT, "--max_new_tokens=1"],
        "transformers: first token": [*python, "-c", PEER, str(fetch(MODEL)), PROMPT, dtype],
    }


def seconds(name: str, command: list[str]) -> float:
    """Wall time of one run of a command. An unexpected exit status ends the benchmark: an early failure is not fast."""
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ended = time.perf_counter() - started
    if done.returncode != (1 if "refused" in name else 0):
        sys.exit(f"{done.stderr}\n{name}: its process ended with {done.returncode}")
    return ended


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="Runs of each command (default: 9).")
    repeats = parser.parse_args().repeats

    timed = commands()
    for name, command in timed.items():
        seconds(name, command)                          # warm up: read all files into the page cache
    runs = [{name: seconds(name, command) for name, command in timed.items()} for _ in range(repeats)]
    medians = {name: statistics.median(run[name] for run in runs) for name in timed}
    for name, median in medians.items():
        times = [run[name] for run in runs]
        print(f"{name:<28}{median:8.3f} s   {min(times):.3f} to {max(times):.3f}")
    ratio = statistics.median(run["transformers: first token"] / run["sdft: first token"] for run in runs)
    print(f"first token: {ratio:.2f} times as fast as transformers; help: {medians['sdft --help']:.3f} s "
          f"(goal: {GOAL} s)")
    print(json.dumps({"benchmark": "startup", "repeats": repeats, "seconds": medians, "first_token_ratio": ratio}))


if __name__ == "__main__":
    main()
