"""`sdft plan`: the memory, operations and time of a run, before it starts, and its timetable."""
from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from sdft.commands import Execute, add_quick, add_settings, settings
from sdft.errors import SdftError
from sdft.experiment.settings import SECTIONS, Config, resolve_settings
from sdft.progress import duration

if TYPE_CHECKING:
    from sdft.experiment.plan import Plan
    from sdft.experiment.rates import Rates

GFLOPS = "Rate of the machine in GFLOP/s, for {}; by default the rates of this machine are measured."


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
        from sdft.experiment.forecast import planned_stages
        from sdft.experiment.plan import needs
        from sdft.generation.memory import free_memory

        plan = needs(config, task, options.memory, free_memory(config.model.device))
        if rates := rates_of(options.gflops, config):
            plan["timetable"] = {stage.name: round(stage.seconds, 1) for stage in planned_stages(config, task, rates)}
        print(json.dumps(plan) if options.json else as_text(plan))

    return execute


def check_rate(gflops: float | None) -> None:
    """Refuse an impossible rate (SdftError)."""
    if gflops is not None and not 0 < gflops < float("inf"):
        raise SdftError(f"--gflops: expected a positive number, got {gflops:g}")


def rates_of(gflops: float | None, config: Config) -> Rates | None:
    """`gflops` for all operations, or the rates of the run's device; None where it does not exist or is full."""
    import torch

    from sdft.experiment.plan import read_config
    from sdft.experiment.rates import Rates, measure_rates
    from sdft.model import tokenizer_at
    from sdft.model.io.checkpoints import as_device, as_dtype
    from sdft.model.io.fetch import resolve

    if gflops:
        return Rates(*[gflops * 1e9] * 3)
    path, device = resolve(config.model.model), config.model.device
    model, tokenizer = read_config(path), tokenizer_at(path)
    try:
        return measure_rates(model, tokenizer, config.train, as_dtype(config.model.dtype, device), as_device(device),
                             config.generate.generation_batch_size)
    except (SdftError, torch.OutOfMemoryError):
        return None


def as_text(plan: Plan) -> str:
    """The plan as text for a terminal."""
    lines = [f"{plan['parameters']:,} parameters, {plan['trained']:,} trained; {plan['records']} records, "
             f"{plan['epochs']} epochs, {plan['steps']} steps per arm", "", "tokens"]
    lines += [f"  {name:<28}{count:>14,}" for name, count in plan["tokens"].items()]
    lines += ["", "products", *(f"  {name:<28}{count:>10,.1f} TFLOP" for name, count in plan["tflops"].items())]
    times = plan.get("timetable", {})
    lines += ["", f"timetable, about {duration(sum(times.values()))}" if times else "timetable (time: --gflops X)"]
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
