"""How speed and memory scale with batch size, context, length of a record, and number of records.

    python benchmarks/scaling.py --data FOLDER --figure scaling.svg     # FOLDER holds gsm8k_train.json and test files
    python benchmarks/scaling.py --only decode prefill                  # two of the measures

    decode     tokens/s of a step of n sequences with a context of 256 tokens, and of 8 sequences with one of n; the
               content of the cache does not matter, so it stays as it is allocated
    prefill    tokens/s of one prompt of n tokens, and its share of the machine's peak of matrix products: operations as
               `sdft plan` counts them, peak measured before and after
    training   tokens/s of an optimiser step on records of n tokens, 4096 tokens a step, half of them targets
    memory     peak of a process that takes two steps on 8 records of n tokens, with and without the fused head
    records    seconds to rewrite n gsm8k records, at most 256 new tokens each

A speed is the median of several repeats. The other benchmarks compare with peers; this one does not.
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

BATCH_SIZES, CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128), (128, 256, 512, 1024, 2048, 4096)
LENGTHS, RECORDS = (128, 256, 512, 1024), (16, 32, 64, 128)
STEP = 4096            # tokens of a training step


def median_seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """The median time of an action, after one run as a warm-up."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@torch.inference_mode()
def decode(model, batch_size: int, context: int) -> float:
    """Tokens/s of a step of `batch_size` sequences, each at the end of `context` slots."""
    compute, cache = prepacked(model), KVCache(model.config, [context] * batch_size, model.dtype, model.device)
    tokens, positions = torch.full((batch_size,), 100), torch.full((batch_size,), context - 1)
    return batch_size / median_seconds(lambda: most_probable(compute.head(compute.hidden(
        tokens, positions, DecodeAttention(cache, positions, [context] * batch_size)))))


@torch.inference_mode()
def prefill(model, tokens: int) -> tuple[float, float]:
    """Tokens/s of a prompt of `tokens` tokens up to the logits of the next one, and the share of the peak."""
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
    """Seconds to rewrite `records` gsm8k records."""
    job = {"task": "gsm8k", "data": data, "records": records, "max_new_tokens": 256}
    generate = load_sdft(job | workload(job))
    started = time.perf_counter()
    generate()
    return time.perf_counter() - started


def measure(only: list[str], data: str | None) -> dict[str, dict[str, dict[int, float]]]:
    """The measures named in `only`: panel → line → size → value."""
    model, _ = sdft.load(MODEL)
    measures: dict[str, dict[str, dict[int, float]]] = {}
    if "decode" in only:
        measures["decode by batch size"] = {"tokens/s": {n: decode(model, n, 256) for n in BATCH_SIZES}}
        measures["decode by context"] = {"tokens/s": {n: decode(model, 8, n) for n in CONTEXTS}}
    if "prefill" in only:
        both = {n: prefill(model, n) for n in CONTEXTS}
        measures["prefill by prompt"] = {"tokens/s": {n: speed for n, (speed, _) in both.items()}}
        measures["prefill, share of peak"] = {"share": {n: share for n, (_, share) in both.items()}}
    if "training" in only:
        side = Ours(model, TrainSettings(micro_tokens=STEP))
        measures["training by record"] = {"tokens/s": {n: training(side, n) for n in LENGTHS}}
        del side
    del model
    if "memory" in only:
        measures["memory by record"] = {f"GB, {kind}": {n: peak_of(kind, str(n)) / 1e9 for n in LENGTHS}
                                        for kind in ("whole step", "plain head", "checkpointing")}
    if "records" in only and data:
        measures["rewriting by records"] = {"seconds": {n: rewriting(data, n) for n in RECORDS}}
    return measures


AXES = {"decode by batch size": "sequences, each of 256 tokens", "decode by context": "context of 8 sequences, tokens",
        "prefill by prompt": "prompt, tokens", "prefill, share of peak": "prompt, tokens",
        "training by record": f"record, tokens ({STEP} a step)",
        "memory by record": "record, tokens (8 a step)", "rewriting by records": "gsm8k records"}


def draw(measures: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    """Draw one panel for each measure; sizes double from tick to tick, values begin at 0."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    lines_of_panels = -(-len(measures) // 3)
    figure, panels = plt.subplots(lines_of_panels, min(3, len(measures)), figsize=(11, 3.4 * lines_of_panels),
                                  squeeze=False, layout="constrained")
    for panel, (name, lines) in zip(panels.flat, measures.items(), strict=False):
        for line, points in lines.items():
            panel.plot(list(points), list(points.values()), "o-", label=line)
        panel.set(title=name, xlabel=AXES[name], ylabel=next(iter(lines)).partition(",")[0], xscale="log")
        panel.set_xticks(list(points), [str(n) for n in points])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        if len(lines) > 1:
            panel.legend(fontsize=8)
    for panel in panels.flat[len(measures):]:
        panel.set_axis_off()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("decode", "prefill", "training", "memory", "records")
    parser.add_argument("--only", nargs="*", choices=kinds, default=kinds, help="Measures to take (default: all).")
    parser.add_argument("--data", help="Folder with gsm8k's files; without it, `records` is skipped.")
    parser.add_argument("--figure", type=Path, help="Draw the measures to this file (.svg or .png).")
    args = parser.parse_args()
    measures = measure(args.only, args.data)
    for name, lines in measures.items():
        sizes = next(iter(lines.values()))
        print(f"\n{name:24}" + "".join(f"{n:>9}" for n in sizes))
        for line, points in lines.items():
            print(f"  {line:22}" + "".join(f"{value:>9.3g}" for value in points.values()))
    if args.figure:
        draw(measures, args.figure)
    print(json.dumps({"benchmark": "scaling", "threads": torch.get_num_threads(), "measures": measures}))


if __name__ == "__main__":
    main()
