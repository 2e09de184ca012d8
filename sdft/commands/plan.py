"""`sdft plan`: the memory, operations and time of a run, before it starts, and its timetable."""
from __future__ import annotations

import argparse
import json
from functools import cache
from typing import TYPE_CHECKING

from sdft.commands import Execute, add_quick, add_settings, settings
from sdft.errors import SdftError
from sdft.experiment.settings import SECTIONS, Config, load_later, resolve_settings
from sdft.progress import duration

if TYPE_CHECKING:
    from sdft.experiment.plan import Plan
    from sdft.tasks import Task

GFLOPS = "Rate of the machine's matrix products in GFLOP/s, for {}; the default is measured here."


def plan(parser: argparse.ArgumentParser) -> Execute:
    """Print memory by group of tensors, tokens, operations, and the time of every stage."""
    parser.add_argument("--gflops", type=float, metavar="X", help=GFLOPS.format("the time"))
    parser.add_argument("--memory", type=float, metavar="GB", help="Memory of the machine or its GPU: print what fits.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="File of settings, as for `sdft run`.")
    add_quick(parser)
    add_settings(parser, dict.fromkeys(SECTIONS, ()))

    def execute(options: argparse.Namespace) -> None:
        if options.memory is not None and options.memory <= 0:
            raise SdftError(f"--memory: expected a positive number of gigabytes, got {options.memory:g}")
        check_rate(options.gflops)
        config, task = resolve_settings(*settings(options, options.config))
        from sdft.experiment.plan import needs

        plan = needs(config, task, rate(options.gflops, config), options.memory)
        if plan["gflops"]:
            plan["timetable"] = timetable(config, task, options.gflops)
        print(json.dumps(plan) if options.json else as_text(plan))

    return execute


def check_rate(gflops: float | None) -> None:
    """Refuse an impossible rate (SdftError)."""
    if gflops is not None and not 0 < gflops < float("inf"):
        raise SdftError(f"--gflops: expected a positive number, got {gflops:g}")


def rate(gflops: float | None, config: Config) -> float | None:
    """Return `gflops`, or measure the run's device in the run's dtype; None if it does not exist or is full."""
    return gflops or _measured(config.model.dtype, config.model.device)


def timetable(config: Config, task: Task, gflops: float | None) -> dict[str, float]:
    """Stage → its estimated seconds: all operations at `gflops`, or each kind of them at the rate that it has here."""
    from sdft.experiment.forecast import stages_of
    from sdft.experiment.plan import read_config
    from sdft.experiment.rates import Rates, measure_rates
    from sdft.model import tokenizer_at
    from sdft.model.io.checkpoints import as_device, as_dtype
    from sdft.model.io.fetch import resolve

    path = resolve(config.model.model)
    model, tokenizer, device = read_config(path), tokenizer_at(path), config.model.device
    rates = Rates(*[gflops * 1e9] * 3) if gflops else measure_rates(
        model, tokenizer, config.train, as_dtype(config.model.dtype, device), as_device(device),
        config.generate.generation_batch_size)
    later = load_later(config, task)
    return {stage.name: round(stage.seconds, 1) for stage in stages_of(config, task, later, model, tokenizer, rates)}


@cache
def _measured(dtype: str, device: str) -> float | None:
    import torch

    from sdft.experiment.plan import matmul_peak
    from sdft.model.io.checkpoints import as_dtype

    try:
        return matmul_peak(as_dtype(dtype, device), device) / 1e9
    except (SdftError, torch.OutOfMemoryError):         # no such device, or one that is full
        return None


def as_text(plan: Plan) -> str:
    """The plan as text for a terminal."""
    lines = [f"{plan['parameters']:,} parameters, {plan['trained']:,} trained; {plan['records']} records, "
             f"{plan['epochs']} epochs, {plan['steps']} steps per arm", "", "tokens"]
    lines += [f"  {name:<28}{count:>14,}" for name, count in plan["tokens"].items()]
    lines += ["", f"products, at {plan['gflops']:.6g} GFLOP/s" if plan["gflops"] else "products (time: --gflops X)"]
    lines += [f"  {name:<28}{count:>10,.1f} TFLOP" + (f"{plan['seconds'][name]:>10,.0f} s" if plan["seconds"] else "")
              for name, count in plan["tflops"].items()]
    if times := plan.get("timetable"):
        lines += ["", f"timetable, about {duration(sum(times.values()))}"]
        lines += [f"  {stage:<28}{seconds:>10,.0f} s" for stage, seconds in times.items()]
    for stage, groups in plan["bytes"].items():
        about = (f", micro-batches of up to {plan['largest_micro_batch']} tokens" if stage == "train" else
                 f", {plan['sequences']} sequences at a time")
        lines += ["", f"memory, {stage}{about}"]
        lines += [f"  {name:<28}{count / 1e9:>10.2f} GB"
                  for name, count in (groups | {"sum": sum(groups.values())}).items()]
    if "fits" in plan:
        lines += ["", f"in {plan['fits']['memory_gb']:g} GB fit"]
        lines += [f"  {name:<28}{plan['fits'][name]:>14,}"
                  for name in ("sequences at the same time", "tokens in a micro-batch")]
        if plan["fits"]["tokens in a micro-batch"] < plan["fits"]["tokens of the longest record"]:
            lines.append("  less than the longest record needs: try --gradient_checkpointing, --max_length, or a "
                         "smaller model")
    lines += ["", "A process needs more than its tensors: about 0.3 GB for its imports, and memory that the allocator",
              "does not return while it rewrites."]
    return "\n".join(lines)
