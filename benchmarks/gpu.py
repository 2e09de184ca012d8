"""Speed and memory on a GPU: decoding steps with and without CUDA graphs, rewriting, training, and the plan of memory.

    python benchmarks/gpu.py --data FOLDER            # FOLDER holds gsm8k_train.json and its test files
    python benchmarks/gpu.py --data FOLDER --parts generation --records 512 --batch-sizes 128 --uncaptured --one-by-one

Everything runs in bf16, greedily, on the embedded model. A time is taken between two synchronisations of the device,
after a warm-up. The sides of a comparison take turns, and the table shows medians over the rounds.

    decode       one step of n sequences of 400 tokens each; the host reads the chosen ids, as the engine does
    generation   the prompts of `sdft distill`, at most 256 new tokens each: sdft's engine, and `generate` of
                 transformers on batches sorted by length and padded on the left
    training     a rank-8 adapter on q_proj and v_proj, with micro-batches of the default size and of 2048 tokens;
                 transformers + peft on padded batches. Tokens are counted without padding. Peaks are of allocated
                 memory
    norm         ‖ΔW‖ of this adapter, of all layers of a shape at once and layer by layer
    repeat       ten steps of 8 records, twice, with and without deterministic kernels: the furthest factor
                 (‖A − A′‖ / ‖A‖), and the time of a step
    plan         one step on a record of 1024 tokens, with a model of Llama 2 7B's shape and random weights: its peak,
                 and what `sdft plan` predicts
"""
from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

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
from sdft.model.lora import add_lora, lora_layers, shift_norm, squared_shift
from sdft.tasks import load_task
from sdft.train import TrainSettings
from sdft.train.deterministic import deterministic
from sdft.train.settings import MICRO_TOKENS

DEVICE = "cuda"
PARTS = ["decode", "generation", "training", "norm", "repeat", "plan"]
WHOLE_STEP = 1_000_000              # micro_tokens: all tokens of a step in one micro-batch
LLAMA2_7B = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
             "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-5,
             "max_position_embeddings": 4096, "tie_word_embeddings": False}

T = TypeVar("T")


def timed(work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """The seconds of `work(*arguments)` from an idle device to an idle device, and its result."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work(*arguments)
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


def peak(work: Callable[..., object], *arguments: Any, before: int) -> int:
    """The maximum of allocated bytes during `work(*arguments)`, minus `before`."""
    torch.cuda.reset_peak_memory_stats()
    work(*arguments)
    return torch.cuda.max_memory_allocated() - before


def allocated() -> int:
    """Allocated bytes of the device."""
    gc.collect()
    return torch.cuda.memory_allocated()


def alternating(names: Mapping[str, object], round_number: int) -> list[str]:
    """The names in their order in odd rounds, and reversed in even ones."""
    return list(names)[:: 1 if round_number % 2 else -1]


def engine_for(model: Llama, tokenizer, prompts: list[list[int]], max_new_tokens: int, batch_size: int,
               captured: bool = True, one_by_one: bool = False) -> Engine:
    requests = [Request(str(index), prompt) for index, prompt in enumerate(prompts)]
    engine = Engine(model, tokenizer, requests, Sampling(max_new_tokens), batch_size)
    if not captured:
        engine.graphs = None
    if one_by_one:                                              # a prompt is prefilled as soon as a place is free
        engine.least_free = 1
    return engine


def one_step(engine: Engine, ends: list[int]) -> list[int]:
    """Take a step, and read the chosen ids."""
    return (engine.graphs.step(engine.batch, ends) if engine.graphs else engine.batch.step(ends)).tolist()


def decode(model: Llama, tokenizer, sizes: list[int], steps: int = 40, length: int = 400) -> dict:
    """Milliseconds of a step by batch size, with and without CUDA graphs."""
    results: dict[int, dict[str, float]] = {}
    generator = random.Random(1)
    for n in sizes:
        prompts = [[generator.randrange(100, 40000) for _ in range(length)] for _ in range(n)]
        results[n] = {}
        for captured in (False, True):
            engine = engine_for(model, tokenizer, prompts, 3 * steps, n, captured)
            with torch.inference_mode():
                engine.admit()
                times = [timed(one_step, engine, [length + number + 1] * n)[0] for number in range(steps)]
            results[n]["captured" if captured else "uncaptured"] = round(1000 * statistics.median(times[5:]), 3)
            del engine
        results[n]["ratio"] = round(results[n]["uncaptured"] / results[n]["captured"], 2)
        print(f"decode, {n:4} sequences: {results[n]['uncaptured']:8.3f} ms a step, captured "
              f"{results[n]['captured']:8.3f} ms: {results[n]['ratio']:.2f} times as fast", flush=True)
    return results


def generation(model: Llama, tokenizer, prompts: list[list[int]], max_new_tokens: int, batch_sizes: list[int],
               rounds: int, uncaptured: bool, one_by_one: bool, peers: bool) -> dict:
    """Seconds and tokens of every side, over all prompts."""
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=model.dtype).to(DEVICE).eval()
    peer.generation_config.max_length = None
    stop = list(tokenizer.stop_ids)

    def ours(size: int, captured: bool = True, one_by_one: bool = False) -> int:
        engine = engine_for(model, tokenizer, prompts, max_new_tokens, size, captured, one_by_one)
        for _ in engine.run():
            pass
        return engine.report.written

    sides: dict[str, Callable[[], int]] = {}
    for size in batch_sizes:
        sides[f"sdft, {size} sequences"] = lambda size=size: ours(size)
        if uncaptured:
            sides[f"sdft, {size} sequences, uncaptured"] = lambda size=size: ours(size, captured=False)
        if one_by_one:
            sides[f"sdft, {size} sequences, prompts one by one"] = lambda size=size: ours(size, one_by_one=True)
        if peers:
            sides[f"transformers, batches of {size}"] = lambda size=size: answer_in_batches(peer, prompts, stop,
                                                                                            max_new_tokens, size)
    ours(max(batch_sizes))                                                          # warm up
    answer_in_batches(peer, prompts[:64], stop, 8, 32)
    times: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, int] = {}
    for number in range(rounds):
        for name in alternating(sides, number):
            seconds, tokens[name] = timed(sides[name])
            times[name].append(seconds)
    results = {}
    for name in sides:
        median = statistics.median(times[name])
        results[name] = {"seconds": round(median, 3), "all": [round(x, 3) for x in times[name]],
                         "tokens": tokens[name], "tokens_per_second": round(tokens[name] / median)}
        print(f"generation, {len(prompts)} records, {name:40} {median:8.2f} s {tokens[name]:8} tokens "
              f"{tokens[name] / median:9.0f} tokens/s", flush=True)
    return results


def training(tokenizer, data: Path | None, batch_size: int, steps: int) -> dict:
    """Tokens/s and peak bytes of every side; the sides take turns step by step."""
    examples = [example for group in workload(tokenizer, "gsm8k" if data else "passages", data, batch_size * steps)
                for example in group]
    groups = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    makers: dict[str, Callable[[], Ours | Peer]] = {
        "sdft": lambda: Ours(sdft.load(MODEL, "bfloat16", DEVICE)[0], TrainSettings()),
        "sdft, 2048 tokens": lambda: Ours(sdft.load(MODEL, "bfloat16", DEVICE)[0],
                                          TrainSettings(micro_tokens=MICRO_TOKENS)),
        "transformers + peft": lambda: Peer(TrainSettings(), device=DEVICE)}
    largest = max(groups, key=lambda group: sum(len(example.tokens) for example in group))
    sides: dict[str, Ours | Peer] = {}
    peaks: dict[str, int] = {}
    for name, make in makers.items():
        before = allocated()
        sides[name] = make()
        sides[name].step(groups[0])                             # warms up, and makes the optimiser's moments
        peaks[name] = peak(sides[name].step, largest, before=before)
    times: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for number, group in enumerate(groups):
        for name in alternating(sides, number):
            seconds, loss = timed(sides[name].step, group)
            times[name].append(seconds)
            losses[name].append(loss)
    counts, results = [sum(len(example.tokens) for example in group) for group in groups], {}
    for name in sides:
        speed = statistics.median(n / s for n, s in zip(counts, times[name], strict=True))
        results[name] = {"tokens_per_second": round(speed), "peak_bytes": peaks[name],
                         "step_ms": round(1000 * statistics.median(times[name]), 2),
                         "loss": round(statistics.mean(losses[name]), 4)}
        print(f"training, {batch_size:3} records a step ({statistics.mean(counts):.0f} tokens), {name:22} "
              f"{speed:8.0f} tokens/s {results[name]['step_ms']:8.2f} ms a step, peak {peaks[name] / 1e9:6.2f} GB, "
              f"mean loss {results[name]['loss']:.4f}", flush=True)
    return results


def norm() -> dict:
    """Milliseconds of ‖ΔW‖ of an adapter of rank 8 on q_proj and v_proj, in one read, and the relative difference."""
    model = sdft.load(MODEL, "bfloat16", DEVICE)[0]
    add_lora(model)
    layers = lora_layers(model)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B, 0, 0.01)
    forms: dict[str, Callable[[], float]] = {"by shape": lambda: shift_norm(layers).item(),
                                             "by layer": lambda: squared_shift(layers).sqrt().item()}
    results: dict[str, float] = {}
    with torch.no_grad():
        for name, form in forms.items():
            results[name] = round(1000 * statistics.median(timed(form)[0] for _ in range(20)), 3)
        one, other = (form() for form in forms.values())
    results["difference"] = abs(one - other) / other
    print(f"norm, by shape {results['by shape']} ms, layer by layer {results['by layer']} ms", flush=True)
    return results


def repeat(tokenizer, data: Path | None, steps: int = 10) -> dict:
    """How far two trainings of the same steps are apart, and the median time of a step."""
    groups = workload(tokenizer, "gsm8k" if data else "passages", data, 8 * steps)
    results = {}
    for wanted in (False, True):
        found, times = [], []
        for _ in range(2):
            side = Ours(sdft.load(MODEL, "bfloat16", DEVICE)[0], TrainSettings())
            with deterministic(wanted):
                times += [timed(side.step, group)[0] for group in groups]
            found.append([weight.detach().clone() for weight in side.parameters.values()])
        apart = max(((a - b).norm() / a.norm()).item() for a, b in zip(*found, strict=True))
        name = "deterministic" if wanted else "default"
        results[name] = {"apart": apart, "step_ms": round(1000 * statistics.median(times), 2)}
        print(f"repeat, {name:14} furthest factor {apart:.1e}, {results[name]['step_ms']} ms a step", flush=True)
    return results


def random_model(config: LlamaConfig) -> Llama:
    """A bf16 model on the device with random weights."""
    with torch.device("meta"):
        model = Llama(config)
    for name, weight in list(model.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        drawn = torch.empty(weight.shape, dtype=torch.bfloat16, device=DEVICE).normal_(0, 0.02)
        setattr(model.get_submodule(parent), leaf, torch.nn.Parameter(drawn + 1 if "norm" in name else drawn))
    return model


def plan(values: dict, length: int) -> dict:
    """The peak of a training step on one record of `length` tokens, half of them targets, and the planned one."""
    config, results = LlamaConfig.from_hf(values, "the benchmark"), {}
    generator = random.Random(1)
    tokens = [generator.randrange(config.vocab_size) for _ in range(length)]
    example = Example("0", tokens, [False] * (length // 2) + [True] * (length - length // 2))
    for checkpointing in (False, True):
        settings, before = TrainSettings(micro_tokens=WHOLE_STEP, gradient_checkpointing=checkpointing), allocated()
        side = Ours(random_model(config), settings)
        side.step([example])
        measured = peak(side.step, [example], before=before)
        parts = training_memory(shape_of(config, settings), settings, 2, length, length - length // 2, length,
                                on_cpu=False)
        seconds = statistics.median(timed(side.step, [example])[0] for _ in range(3))
        results["checkpointing" if checkpointing else "plain"] = {
            "peak_bytes": measured, "planned_bytes": sum(parts.values()), "parts": parts,
            "step_ms": round(1000 * seconds, 1)}
        print(f"plan, {length} tokens{', checkpointing' if checkpointing else '':15} peak {measured / 1e9:6.2f} GB, "
              f"planned {sum(parts.values()) / 1e9:6.2f} GB, {length / seconds:.0f} tokens/s", flush=True)
        del side
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder with gsm8k's files; without it, the built-in passages.")
    parser.add_argument("--parts", nargs="+", default=PARTS,
                        choices=PARTS, help="Parts to run (default: all).")
    parser.add_argument("--records", type=int, default=128, help="Records to rewrite (default: 128).")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="Limit of a rewrite (default: 256).")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128], help="Batch sizes of generation.")
    parser.add_argument("--uncaptured", action="store_true", help="Generate without CUDA graphs, too.")
    parser.add_argument("--one-by-one", action="store_true", help="Prefill prompts one by one, too.")
    parser.add_argument("--no-peers", action="store_true", help="Generate with sdft alone.")
    parser.add_argument("--step-sizes", type=int, nargs="+", default=[1, 8, 32, 128],
                        help="Batch sizes of the decoding steps.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds of generation (default: 3).")
    parser.add_argument("--train-batches", type=int, nargs="+", default=[8, 32], help="Records per training step.")
    parser.add_argument("--train-steps", type=int, default=20, help="Training steps of each side (default: 20).")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a GPU: torch finds no CUDA device here")

    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, bf16", flush=True)
    result: dict[str, Any] = {"benchmark": "gpu", "device": device, "torch": torch.__version__}
    model, tokenizer = sdft.load(MODEL, "bfloat16", DEVICE)
    if "decode" in args.parts:
        result["decode_ms"] = decode(model, tokenizer, args.step_sizes)
    if "generation" in args.parts:
        task = load_task("gsm8k" if args.data else "passages", data=args.data, train_records=args.records)
        template = get_template(task.distill_template)
        prompts = [distill_prompt(tokenizer, record, template) for record in task.train[: args.records]]
        result["generation"] = {"records": len(prompts), "prompt_tokens": sum(map(len, prompts)),
                                **generation(model, tokenizer, prompts, args.max_new_tokens, args.batch_sizes,
                                             args.rounds, args.uncaptured, args.one_by_one, not args.no_peers)}
    del model
    if "training" in args.parts:
        result["training"] = {size: training(tokenizer, args.data, size, args.train_steps)
                              for size in args.train_batches}
    if "norm" in args.parts:
        result["norm_ms"] = norm()
    if "repeat" in args.parts:
        result["repeat"] = repeat(tokenizer, args.data)
    if "plan" in args.parts:
        result["plan"] = plan(LLAMA2_7B, 1024)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
