"""Peak memory of a training process, compared with transformers + peft: by record length, and without the fused head.

    python benchmarks/memory.py                                # 8 passages; 8 records of 128, 256 and 512 tokens
    python benchmarks/memory.py --task gsm8k --data FOLDER     # the largest step of 128 gsm8k records; the same

Each value is the largest resident set (VmHWM) of a separate process, which loads the model and takes two optimiser
steps; it includes the imports and the weights. Half of the tokens of the synthetic records are targets.
"""
from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from rewriting import family_peak
from training import BATCH, MODEL, Ours, Peer, workload

import sdft
from sdft.data.chat import Example
from sdft.kernels.linear_cross_entropy import linear_cross_entropy_plain
from sdft.model.io.checkpoints import as_dtype
from sdft.model.io.fetch import resolve, tokenizer_at
from sdft.train import TrainSettings
from sdft.train.settings import MICRO_TOKENS

KINDS = {"sdft": "micro-batches of at most 2048 tokens", "whole step": "all tokens of a step in one micro-batch",
         "plain head": "whole step, without the fused head", "checkpointing": "whole step, with checkpointing",
         "transformers + peft": "padded batch"}
WHOLE_STEP = 1_000_000              # micro_tokens: all tokens of a step in one micro-batch


def plain_head(batch, hidden):
    """Cross-entropy from the logits of all targets at once."""
    return linear_cross_entropy_plain(hidden.trained, hidden.head, hidden.labels)


def synthetic(length: int, records: int = BATCH) -> list[Example]:
    """A step of records of `length` tokens, half of them targets; no two begin alike."""
    generator = random.Random(length)
    half = length // 2
    return [Example(str(number), [generator.randrange(1000, 40000) for _ in range(length)],
                    [False] * half + [True] * (length - half)) for number in range(records)]


def child(kind: str, step: str, task: str, data: Path | None) -> None:
    """Take two steps and print the peak in bytes."""
    examples = synthetic(int(step)) if step.isdigit() else max(
        workload(tokenizer_at(resolve(MODEL)), task, data, 128), key=lambda e: sum(len(x.tokens) for x in e))
    if kind == "transformers + peft":
        side = Peer(TrainSettings())
    else:
        settings = TrainSettings(micro_tokens=MICRO_TOKENS if kind == "sdft" else WHOLE_STEP,
                                 gradient_checkpointing=kind == "checkpointing")
        side = Ours(sdft.load(MODEL)[0], settings, *([plain_head] if kind == "plain head" else []))
    for _ in range(2):
        side.step(examples)
    print(family_peak())


def peak_of(kind: str, step: str, task: str = "passages", data: Path | None = None) -> int:
    """The peak in bytes of a separate process. step: a task's name, or the length of synthetic records."""
    command = [sys.executable, __file__, "--child", kind, step, "--task", task]
    command += ["--data", str(data)] if data else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="passages", help="Task of the first column (default: passages).")
    parser.add_argument("--data", type=Path, help="Folder with the task's files.")
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 256, 512],
                        help="Lengths of the synthetic records (default: 128 256 512).")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.task, args.data)
        return

    steps = [args.task, *map(str, args.lengths)]
    peaks: dict[str, dict[str, int]] = {}
    print(f"peak GB of a process, {BATCH} records a step\n{'':22}" + "".join(f"{step:>12}" for step in steps))
    for kind in KINDS:
        peaks[kind] = {}
        for step in steps:
            peaks[kind][step] = peak_of(kind, step, args.task, args.data)
        print(f"{kind:22}" + "".join(f"{peaks[kind][step] / 1e9:>12.2f}" for step in steps) + f"   {KINDS[kind]}")
    ratios = {step: round(peaks["transformers + peft"][step] / peaks["sdft"][step], 2) for step in steps}
    print(f"{'ratio':22}" + "".join(f"{ratios[step]:>12.2f}" for step in steps))
    print(json.dumps({"benchmark": "memory", "threads": torch.get_num_threads(), "dtype": str(as_dtype("auto")),
                      "peak_bytes": peaks, "ratios": ratios}))


if __name__ == "__main__":
    main()
