"""`sdft fetch` and `sdft merge`."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sdft.commands import Execute, add_settings, load_with_adapter, settings


def fetch(parser: argparse.ArgumentParser) -> Execute:
    """Print the folder of the fetched model."""
    parser.add_argument("name", metavar="NAME", help="Model: smollm2-135m, or org/name of the hub.")

    def execute(options: argparse.Namespace) -> None:
        from sdft.model.io.fetch import fetch as fetch_model

        print(fetch_model(options.name))

    return execute


def merge(parser: argparse.ArgumentParser) -> Execute:
    """Save the model with the adapter added to its weights; print the error of rounding them as JSON."""
    parser.add_argument("adapter", metavar="ADAPTER", help="Folder of the adapter.")
    parser.add_argument("--out", required=True, metavar="DIR", help="Folder for the checkpoint.")
    add_settings(parser, {"model": ("model", "dtype")})

    def execute(options: argparse.Namespace) -> None:
        config, _ = settings(options)
        from sdft.model.io.checkpoints import save_checkpoint
        from sdft.model.lora import merge as merge_adapter

        model, tokenizer = load_with_adapter(config, options.adapter)
        report, dtype = merge_adapter(model), str(model.dtype).removeprefix("torch.")
        save_checkpoint(model, tokenizer, Path(options.out))
        if report["relative"] > 0.1:
            print(f"merge: rounding to {dtype} lost {report['relative']:.0%} of the norm of the weight change; "
                  "--dtype=float32 keeps it", file=sys.stderr)
        print(json.dumps(report | {"dtype": dtype, "checkpoint": options.out}))

    return execute
