"""On a GPU: decode steps with and without a captured graph, rewriting and training beside transformers and peft, memory.

    python benchmarks/gpu.py --data FOLDER                        # FOLDER holds gsm8k_train.json and its test files
    python benchmarks/gpu.py --data FOLDER --parts generation --records 512 --batches 128 --uncaptured

All in bf16, greedy, on the embedded model. Every time is taken from one wait for the device to another, after a warm-up;
sides that are compared take turns, and what is reported are medians over the rounds.

    decode       one step of so many rows that hold 400 tokens each, the chosen ids read by the host, as the engine reads them
    generation   the prompts of `sdft distill`, at most 256 new tokens each: `sdft.generation.stream`'s engine, and
                 transformers' `generate` on batches sorted by length and padded on the left
    training     a rank-8 adapter on q_proj and v_proj, all records of a step in one pack, and in packs of the default size;
                 transformers + peft on padded batches. Tokens are the records' own. Peaks are of allocated memory
    plan         one step on a record of 1024 tokens of a model of Llama 2 7B's shape, random weights: its peak, and what
                 `sdft plan` says
"""
from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rewriting import answer_in_batches
from training import MODEL, Ours, Peer, workload

import sdft
from sdft.data.chat import Example
from sdft.data.templates import get_template
from sdft.distill.rewriting import distill_prompt
from sdft.experiment.plan import shape_of, training_memory
from sdft.generation import Request, Sampling
from sdft.generation.engine import Engine
from sdft.model.config import LlamaConfig
from sdft.model.io.fetch import resolve
from sdft.model.llama import Llama
from sdft.tasks import load_task
from sdft.train import TrainSettings

DEVICE = "cuda"
WHOLE = 1_000_000                   # all tokens of a step in one pack
LLAMA2_7B = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
             "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-5,
             "max_position_embeddings": 4096, "tie_word_embeddings": False}


def seconds(work: Callable) -> float:
    """How long `work` takes, from an idle device to an idle device."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def peak(work: Callable, before: int) -> int:
    """The most bytes allocated during `work`, less `before`."""
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def allocated() -> int:
    gc.collect()
    return torch.cuda.memory_allocated()


def engine_for(model, tokenizer, prompts: list[list[int]], new: int, rows: int, graphs: bool) -> Engine:
    requests = [Request(str(index), prompt) for index, prompt in enumerate(prompts)]
    engine = Engine(model, tokenizer, requests, Sampling(new), rows)
    if not graphs:
        engine.graphs = None
    return engine


def decode(model, tokenizer, rows: list[int], steps: int = 40, length: int = 400) -> dict:
    """Milliseconds of a step, by rows, with and without graphs."""
    found, generator = {}, random.Random(1)
    for n in rows:
        prompts = [[generator.randrange(100, 40000) for _ in range(length)] for _ in range(n)]
        found[n] = {}
        for graphs in (False, True):
            engine, times = engine_for(model, tokenizer, prompts, 3 * steps, n, graphs), []
            with torch.inference_mode():
                engine.admit()
                for number in range(steps):
                    ends = [length + number + 1] * n
                    times.append(seconds(lambda: (engine.graphs.step(engine.batch, ends) if engine.graphs
                                                  else engine.batch.step(ends)).tolist()))
            found[n]["graph" if graphs else "no graph"] = round(1000 * statistics.median(times[5:]), 3)
            del engine
        found[n]["ratio"] = round(found[n]["no graph"] / found[n]["graph"], 2)
        print(f"decode, {n:4} rows: {found[n]['no graph']:8.3f} ms a step, captured {found[n]['graph']:8.3f} ms: "
              f"{found[n]['ratio']:.2f} times", flush=True)
    return found


def generation(model, tokenizer, prompts: list[list[int]], new: int, batches: list[int], rounds: int,
               uncaptured: bool) -> dict:
    """Seconds and tokens of every side, over all prompts."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=model.dtype).to(DEVICE).eval()
    hf.generation_config.max_length = None
    stop = list(tokenizer.stop_ids)

    def ours(rows: int, graphs: bool) -> int:
        engine = engine_for(model, tokenizer, prompts, new, rows, graphs)
        for _ in engine.run():
            pass
        return engine.report.written

    sides: dict[str, Callable[[], int]] = {}
    for rows in batches:
        sides[f"sdft, {rows} rows"] = lambda rows=rows: ours(rows, True)
        if uncaptured:
            sides[f"sdft, {rows} rows, no graph"] = lambda rows=rows: ours(rows, False)
        sides[f"transformers, batches of {rows}"] = lambda rows=rows: answer_in_batches(hf, prompts, stop, new, rows)
    ours(max(batches), True)                                                        # warm up
    answer_in_batches(hf, prompts[:64], stop, 8, 32)
    times: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, int] = {}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(lambda: tokens.__setitem__(name, sides[name]())))
    found = {}
    for name in sides:
        middle = statistics.median(times[name])
        found[name] = {"seconds": round(middle, 3), "all": [round(x, 3) for x in times[name]], "tokens": tokens[name],
                       "tokens_per_second": round(tokens[name] / middle)}
        print(f"generation, {len(prompts)} records, {name:34} {middle:8.2f} s {tokens[name]:8} tokens "
              f"{tokens[name] / middle:9.0f} tokens/s", flush=True)
    return found


def training(tokenizer, data: Path | None, batch_size: int, steps: int) -> dict:
    """Tokens a second and peak bytes of every side, the sides taking turns step by step."""
    groups = workload(tokenizer, "gsm8k" if data else "passages", data, batch_size * steps)
    examples = [example for group in groups for example in group]
    groups = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    kinds = {"sdft": lambda: Ours(sdft.load(MODEL, "bfloat16", DEVICE)[0], TrainSettings(micro_tokens=WHOLE)),
             "sdft, packs of 2048": lambda: Ours(sdft.load(MODEL, "bfloat16", DEVICE)[0], TrainSettings()),
             "transformers + peft": lambda: Peer(TrainSettings(), device=DEVICE)}
    largest = max(groups, key=lambda group: sum(len(example.tokens) for example in group))
    sides, peaks = {}, {}
    for name, make in kinds.items():
        before = allocated()
        sides[name] = make()
        sides[name].step(groups[0])                                                 # warms up, and makes the moments
        peaks[name] = peak(lambda: sides[name].step(largest), before)
    times: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for number, group in enumerate(groups):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(lambda: losses[name].append(sides[name].step(group))))
    counts, found = [sum(len(example.tokens) for example in group) for group in groups], {}
    for name in sides:
        speed = statistics.median(n / s for n, s in zip(counts, times[name], strict=True))
        found[name] = {"tokens_per_second": round(speed), "peak_bytes": peaks[name],
                       "step_ms": round(1000 * statistics.median(times[name]), 2),
                       "loss": round(statistics.mean(losses[name]), 4)}
        print(f"training, {batch_size:3} records a step ({statistics.mean(counts):.0f} tokens), {name:22} {speed:8.0f} tokens/s "
              f"{found[name]['step_ms']:8.2f} ms a step, peak {peaks[name] / 1e9:6.2f} GB, mean loss "
              f"{found[name]['loss']:.4f}", flush=True)
    return found


def plan(values: dict, length: int) -> dict:
    """The peak of a training step on one record of `length` tokens, half of them learned, beside what is planned."""
    config, found = LlamaConfig.from_hf(values, "the benchmark"), {}
    for checkpoint in (False, True):
        settings, before = TrainSettings(micro_tokens=WHOLE, gradient_checkpointing=checkpoint), allocated()
        with torch.device("meta"):
            model = Llama(config)
        for name, weight in list(model.named_parameters()):
            parent, _, leaf = name.rpartition(".")
            drawn = torch.empty(weight.shape, dtype=torch.bfloat16, device=DEVICE).normal_(0, 0.02)
            setattr(model.get_submodule(parent), leaf, torch.nn.Parameter(drawn + 1 if "norm" in name else drawn))
        generator = random.Random(1)
        tokens = [generator.randrange(config.vocab_size) for _ in range(length)]
        example = Example("0", tokens, [False] * (length // 2) + [True] * (length - length // 2))
        side = Ours(model, settings)
        side.step([example])
        measured = peak(lambda: side.step([example]), before)
        parts = training_memory(shape_of(config, settings), settings, 2, length, length - length // 2, length, on_cpu=False)
        took = statistics.median(seconds(lambda: side.step([example])) for _ in range(3))
        found["checkpoint" if checkpoint else "plain"] = {"peak_bytes": measured, "planned_bytes": sum(parts.values()),
                                                          "parts": parts, "step_ms": round(1000 * took, 1)}
        print(f"plan, {length} tokens{', checkpointing' if checkpoint else '':15} peak {measured / 1e9:6.2f} GB, planned "
              f"{sum(parts.values()) / 1e9:6.2f} GB, {length / took:.0f} tokens/s", flush=True)
        del model, side
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with gsm8k's files; without it the built-in passages")
    parser.add_argument("--parts", nargs="+", default=["decode", "generation", "training", "plan"])
    parser.add_argument("--records", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128], help="rows and batch sizes of generation")
    parser.add_argument("--uncaptured", action="store_true", help="generate without graphs, too")
    parser.add_argument("--generation_batch_size", type=int, nargs="+", default=[1, 8, 32, 128], help="of the decode steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--train-steps", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU: torch sees no CUDA device here")

    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, bf16", flush=True)
    result = {"benchmark": "gpu", "device": name, "torch": torch.__version__}
    model, tokenizer = sdft.load(MODEL, "bfloat16", DEVICE)
    if "decode" in args.parts:
        result["decode_ms"] = decode(model, tokenizer, args.rows)
    if "generation" in args.parts:
        task = load_task("gsm8k" if args.data else "passages", data=args.data, train_records=args.records)
        template = get_template(task.distill_template)
        prompts = [distill_prompt(tokenizer, record, template) for record in task.train[: args.records]]
        result["generation"] = {"records": len(prompts), "prompt_tokens": sum(map(len, prompts)),
                                **generation(model, tokenizer, prompts, args.max_new_tokens, args.batches, args.rounds,
                                              args.uncaptured)}
    del model
    if "training" in args.parts:
        result["training"] = {size: training(tokenizer, args.data, size, args.train_steps) for size in args.train_batches}
    if "plan" in args.parts:
        result["plan"] = plan(LLAMA2_7B, 1024)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
