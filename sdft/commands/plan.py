"""`sdft plan`: what a run will need, before it starts."""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sdft.commands import add_settings, settings, task_of
from sdft.errors import SdftError
from sdft.experiment.settings import SECTIONS, Config, with_task

GFLOPS = "matrix products of the machine, in 10⁹ operations a second, for {} (default: measured here)"


def plan(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Print memory by group of tensors, tokens, operations and time; with --json for programs."""
    parser.add_argument("--gflops", type=float, metavar="X", help=GFLOPS.format("the time"))
    parser.add_argument("--memory", type=float, metavar="GB", help="of the machine or its GPU: say what fits")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings, as `sdft run` takes them")
    add_settings(parser, dict.fromkeys(SECTIONS, ()))

    def execute(options: argparse.Namespace) -> None:
        if options.memory is not None and options.memory <= 0:
            raise SdftError(f"--memory: expected a positive number of gigabytes, got {options.memory:g}")
        check_rate(options.gflops)
        config, given = settings(options, options.config)
        task = task_of(config)
        found = needs(with_task(config, given, **task.default_settings), task, rate(options.gflops, config), options.memory)
        print(json.dumps(found) if options.json else as_text(found))

    return execute


def check_rate(told: float | None) -> None:
    """Raise SdftError for what no machine multiplies."""
    if told is not None and not 0 < told < float("inf"):
        raise SdftError(f"--gflops: expected a positive number, got {told:g}")


def rate(told: float | None, config: Config) -> float | None:
    """GFLOP/s of matrix products: as told, else those of the run's device in its dtype; None where that is not here."""
    return told or _measured(config.model.dtype, config.model.device)


@cache
def _measured(dtype: str, device: str) -> float | None:
    import torch

    from sdft.experiment.plan import matmul_peak
    from sdft.model.io.loading import as_dtype

    try:
        return matmul_peak(as_dtype(dtype, device), device) / 1e9
    except (SdftError, torch.OutOfMemoryError):         # no such device, or one that is full
        return None


def needs(config: Config, task: Any, gflops: float | None, memory: float | None) -> dict[str, Any]:
    """The plan of a run's two heavy stages, rewriting and training on the original answers.

    No seconds without `gflops`.
    """
    from sdft.data.examples import training_example
    from sdft.data.templates import get_template
    from sdft.distill.rewriting import distill_prompt
    from sdft.experiment import plan as p
    from sdft.model.batches import may_share, trainable
    from sdft.model.io.loading import as_dtype
    from sdft.train.order import step_batches, steps_per_epoch

    model_config, tokenizer = _model(config)
    train, size = config.train, as_dtype(config.model.dtype, config.model.device).itemsize
    shape = p.shape_of(model_config, train)
    context = min(train.max_length, model_config.context_length)
    template = get_template(config.eval.train_template)
    examples, _ = trainable([training_example(tokenizer, record, template, config.model.chat)
                             for record in task.train], context)
    share = may_share(config.model.device, train.lora_dropout)
    steps = steps_per_epoch(examples, train.batch_size)
    batches = [batch for step in range(steps)
               for batch in step_batches(examples, step, train.batch_size, train.micro_tokens, train.seed, share)]
    largest = max(batches, key=lambda batch: len(batch.tokens))
    longest = max(len(example.tokens) for example in examples)
    total = train.steps or train.epochs * steps
    tokens, targets = sum(len(batch.tokens) for batch in batches), sum(batch.targets for batch in batches)
    pairs = sum(int(batch.positions.sum()) + len(batch.tokens) for batch in batches)

    distill_template = get_template(config.distill.template)
    prompts = [len(distill_prompt(tokenizer, record, distill_template, config.model.chat)) for record in task.train]
    limit = config.distill.rewrite_tokens
    lengths = [prompt + limit for prompt in prompts]

    def training(n: int) -> dict[str, int]:
        return p.training_memory(shape, train, size, n, max(1, n * largest.targets // len(largest.tokens)),
                                 min(n, longest), config.model.device == "cpu")

    def generation(rows: int) -> dict[str, int]:
        return p.generation_memory(model_config, shape.weights, size, lengths, rows, config.model.device == "cpu")

    flops = {"rewrite, at most": p.generation_flops(shape, sum(prompts), limit * len(prompts),
                                                    sum(length**2 // 2 for length in lengths)),
             "train, each arm": total / steps * p.training_flops(shape, tokens, targets, pairs, train.method == "full")}
    plan = {"parameters": shape.weights, "trained": shape.weights if train.method == "full" else shape.adapter,
            "records": len(task.train), "epochs": train.epochs, "steps": total,
            "tokens": {"prompts to rewrite": sum(prompts), "rewrites, at most": limit * len(prompts),
                       "training, an epoch": sum(len(example.tokens) for example in examples),
                       "computed, an epoch": tokens, "learned, an epoch": targets},
            "tflops": {name: round(value / 1e12, 1) for name, value in flops.items()},
            "seconds": {name: round(value / 1e9 / gflops, 1) for name, value in flops.items() if gflops},
            "gflops": gflops,
            "bytes": {"rewrite": generation(config.generate.generation_batch_size), "train": training(len(largest.tokens))},
            "largest_pack": len(largest.tokens)}
    if memory is not None:
        room = memory * 1e9
        plan["fits"] = {"memory_gb": memory, "rows at a time": p.largest_fit(generation, len(prompts), room),
                        "tokens in a pack": p.largest_fit(training, 1 << 20, room),
                        "tokens of the longest record": longest}
    return plan


def _model(config: Config) -> tuple[Any, Any]:
    """The configuration and the tokenizer of a model whose weights need not be there."""
    from sdft.model import tokenizer_at
    from sdft.model.io.fetch import resolve
    from sdft.model.io.gguf import GGUF, gguf_config
    from sdft.model.io.loading import load_config

    path = resolve(config.model.model)
    return (load_config(path) if Path(path).is_dir() else gguf_config(GGUF(path))), tokenizer_at(path)


def as_text(plan: dict[str, Any]) -> str:
    """The plan as a page for a terminal."""
    lines = [f"{plan['parameters']:,} parameters, {plan['trained']:,} of them or beside them trained; "
             f"{plan['records']} records, {plan['epochs']} epochs, {plan['steps']} steps an arm", "", "tokens"]
    lines += [f"  {name:<28}{count:>14,}" for name, count in plan["tokens"].items()]
    lines += ["", f"products, at {plan['gflops']:.6g} GFLOP/s" if plan["gflops"] else "products (time: --gflops X)"]
    lines += [f"  {name:<28}{count:>10,.1f} TFLOP" + (f"{plan['seconds'][name]:>10,.0f} s" if plan["seconds"] else "")
              for name, count in plan["tflops"].items()]
    for stage, groups in plan["bytes"].items():
        about = f", packs of up to {plan['largest_pack']} tokens" if stage == "train" else ""
        lines += ["", f"memory, {stage}{about}"]
        lines += [f"  {name:<28}{count / 1e9:>10.2f} GB"
                  for name, count in (groups | {"sum": sum(groups.values())}).items()]
    if "fits" in plan:
        lines += ["", f"in {plan['fits']['memory_gb']:g} GB fit"]
        lines += [f"  {name:<28}{plan['fits'][name]:>14,}" for name in ("rows at a time", "tokens in a pack")]
        if plan["fits"]["tokens in a pack"] < plan["fits"]["tokens of the longest record"]:
            lines.append("  less than the longest record needs: try --gradient_checkpointing, --max_length, or a smaller model")
    lines += ["", "A process needs more than its tensors: about 0.3 GB for its imports, and while it rewrites what the",
              "allocator does not give back."]
    return "\n".join(lines)
