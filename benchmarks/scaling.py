"""How speed and memory scale: with rows, context, the length of a record, and the number of records.

    python benchmarks/scaling.py --data FOLDER --figure scaling.svg       # FOLDER holds gsm8k_train.json and its test files
    python benchmarks/scaling.py --only decode prefill                     # some of them

    decode     tokens/s of one step over n rows that each look back on 256 tokens, and of 8 rows over a context of n;
               where a row's prompt begins does not matter, so the cache is taken as it is made
    prefill    tokens/s of one prompt of n tokens, and the share of the machine's peak of matrix products, measured
               before and behind it, that its operations (as `sdft plan` counts them) make of it
    training   tokens/s of an optimiser step on records of n tokens, 4096 tokens a step, half of them learned
    memory     peak of a process that makes two steps on 8 records of n tokens, with the fused head and without
    records    seconds to rewrite n gsm8k records, at most 256 new tokens each

A speed is the median of several repeats of one size; nothing here has a peer (see the other benchmarks).
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from memory import peak_of, synthetic
from rewriting import load_sdft, workload
from training import MODEL, PEAK_SIZE, Ours

import sdft
from sdft.experiment.plan import generation_flops, matmul_peak, shape_of
from sdft.generation.cache import DecodeAttention, KVCache, PrefillAttention
from sdft.generation.fast.prepacked import prepacked
from sdft.generation.sampling import most_probable
from sdft.train import TrainSettings

ROWS, CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128), (128, 256, 512, 1024, 2048, 4096)
LENGTHS, RECORDS = (128, 256, 512, 1024), (16, 32, 64, 128)
STEP = 4096            # tokens of a training step


def median_seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """The median time of an action, after one run that warms up."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@torch.inference_mode()
def decode(model, rows: int, context: int) -> float:
    """Tokens/s of one step of `rows` rows, each at the end of `context` slots."""
    compute, cache = prepacked(model), KVCache(model.config, [context] * rows, model.dtype, model.device)
    tokens, positions = torch.full((rows,), 100), torch.full((rows,), context - 1)
    return rows / median_seconds(lambda: most_probable(compute.head(compute.hidden(
        tokens, positions, DecodeAttention(cache, positions, [context] * rows)))))


@torch.inference_mode()
def prefill(model, tokens: int) -> tuple[float, float]:
    """Tokens/s of a prompt of `tokens` tokens, up to the choice of the first one behind it, and the share of the peak."""
    compute, cache = prepacked(model), KVCache(model.config, [tokens], model.dtype, model.device)
    prompt, positions, last = torch.full((tokens,), 100), torch.arange(tokens), torch.tensor([tokens - 1])
    before = matmul_peak(model.dtype, size=PEAK_SIZE)
    seconds = median_seconds(lambda: compute.head(compute.hidden(
        prompt, positions, PrefillAttention(cache, [0], [tokens]), last)), 5)
    peak = (before + matmul_peak(model.dtype, size=PEAK_SIZE)) / 2
    operations = generation_flops(shape_of(model.config, TrainSettings()), tokens, 1, tokens * tokens // 2)
    return tokens / seconds, operations / seconds / peak


def training(side: Ours, length: int) -> float:
    """Tokens/s of a step of records of `length` tokens."""
    examples = synthetic(length, STEP // length)
    return STEP / median_seconds(lambda: side.step(examples), 3)


def rewriting(data: str | None, records: int) -> float:
    """Seconds to rewrite so many records."""
    job = {"task": "gsm8k", "data": data, "records": records, "max_new_tokens": 256}
    generate = load_sdft(job | workload(job))
    started = time.perf_counter()
    generate()
    return time.perf_counter() - started


def measure(only: list[str], data: str | None) -> dict[str, dict[str, dict[int, float]]]:
    """All that is asked for: panel → line → size → value."""
    model, _ = sdft.load(MODEL)
    found: dict[str, dict[str, dict[int, float]]] = {}
    if "decode" in only:
        found["decode by rows"] = {"tokens/s": {n: decode(model, n, 256) for n in ROWS}}
        found["decode by context"] = {"tokens/s": {n: decode(model, 8, n) for n in CONTEXTS}}
    if "prefill" in only:
        both = {n: prefill(model, n) for n in CONTEXTS}
        found["prefill by prompt"] = {"tokens/s": {n: speed for n, (speed, _) in both.items()}}
        found["prefill, share of peak"] = {"share": {n: share for n, (_, share) in both.items()}}
    if "training" in only:
        side = Ours(model, TrainSettings(micro_tokens=STEP))
        found["training by record"] = {"tokens/s": {n: training(side, n) for n in LENGTHS}}
        del side
    del model
    if "memory" in only:
        found["memory by record"] = {f"GB, {kind}": {n: peak_of(kind, str(n)) / 1e9 for n in LENGTHS}
                                     for kind in ("whole step", "plain head", "checkpoint")}
    if "records" in only and data:
        found["rewriting by records"] = {"seconds": {n: rewriting(data, n) for n in RECORDS}}
    return found


AXES = {"decode by rows": "rows, each of 256 tokens", "decode by context": "context of 8 rows, tokens",
        "prefill by prompt": "prompt, tokens", "prefill, share of peak": "prompt, tokens",
        "training by record": f"record, tokens ({STEP} a step)",
        "memory by record": "record, tokens (8 a step)", "rewriting by records": "gsm8k records"}


def draw(found: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    """One panel for each measure: sizes double from tick to tick, values begin at 0."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(-(-len(found) // 3), min(3, len(found)), figsize=(11, 3.4 * -(-len(found) // 3)),
                                  squeeze=False, layout="constrained")
    for panel, (name, lines) in zip(panels.flat, found.items()):
        for line, points in lines.items():
            panel.plot(list(points), list(points.values()), "o-", label=line)
        panel.set(title=name, xlabel=AXES[name], ylabel=next(iter(lines)).partition(",")[0], xscale="log")
        panel.set_xticks(list(points), [str(n) for n in points])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        if len(lines) > 1:
            panel.legend(fontsize=8)
    for panel in panels.flat[len(found):]:
        panel.set_axis_off()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("decode", "prefill", "training", "memory", "records")
    parser.add_argument("--only", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--data", help="folder with gsm8k's files; without it, records are left out")
    parser.add_argument("--figure", type=Path, help="draw what was measured to this file (.svg or .png)")
    args = parser.parse_args()
    found = measure(args.only, args.data)
    for name, lines in found.items():
        sizes = next(iter(lines.values()))
        print(f"\n{name:24}" + "".join(f"{n:>9}" for n in sizes))
        for line, points in lines.items():
            print(f"  {line:22}" + "".join(f"{value:>9.3g}" for value in points.values()))
    if args.figure:
        draw(found, args.figure)
    print(json.dumps({"benchmark": "scaling", "threads": torch.get_num_threads(), "found": found}))


if __name__ == "__main__":
    main()
