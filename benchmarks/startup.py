"""How long a user waits before anything happens: help, a wrong setting, and the first answer of a fresh process.

    python benchmarks/startup.py [--repeats 9]

Every command is a process of its own. They take turns, so that what else the machine does hits all of them; a row is
the median of its seconds. `python -c pass` is the floor that no Python program goes below, `import torch` that of any
program that computes; transformers answers the same prompt from the same folder, with the same weights.
"""
from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from sdft.model.io.fetch import fetch
from sdft.model.io.loading import as_dtype

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
AIM = 0.15          # seconds of `sdft --help`


def commands() -> dict[str, list[str]]:
    """What is timed: name → command."""
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
    """Wall time of one run of a command, which must end as it should: what fails early is not fast."""
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    ended = time.perf_counter() - started
    if done.returncode != (1 if "refused" in name else 0):
        sys.exit(f"{done.stderr}\n{name}: its process ended with {done.returncode}")
    return ended


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="runs of each command (default: 9)")
    repeats = parser.parse_args().repeats

    timed = commands()
    for name, command in timed.items():
        seconds(name, command)                          # files into the page cache
    runs = [{name: seconds(name, command) for name, command in timed.items()} for _ in range(repeats)]
    medians = {name: statistics.median(run[name] for run in runs) for name in timed}
    for name, median in medians.items():
        print(f"{name:<28}{median:8.3f} s   {min(run[name] for run in runs):.3f} to {max(run[name] for run in runs):.3f}")
    ratio = statistics.median(run["transformers: first token"] / run["sdft: first token"] for run in runs)
    print(f"first token: {ratio:.2f} times as fast as transformers; help: {medians['sdft --help']:.3f} s (aim: {AIM} s)")
    print(json.dumps({"benchmark": "startup", "repeats": repeats, "seconds": medians, "first_token_ratio": ratio}))


if __name__ == "__main__":
    main()
