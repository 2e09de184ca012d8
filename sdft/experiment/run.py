"""A whole run: from settings to measures.json and summary.json.    sdft run [CONFIG.toml] [--key=value …]"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import sdft.model
from sdft.distill.resume import settings_path
from sdft.experiment.arms import check_arms
from sdft.experiment.compare import compare
from sdft.experiment.context import FORMAT, Context, Shared
from sdft.experiment.run_folder import (
    check_folder,
    data_hash,
    default_folder,
    is_finished,
    is_new,
    make_folder,
    sources,
)
from sdft.experiment.settings import Config, load_chosen, of_task, with_machine, with_task
from sdft.files import locked, write_json
from sdft.model.io.fetch import resolve


def run(config: Config, given: frozenset[str] = frozenset(), folder: Path | None = None,
        shared: Shared | None = None) -> Path:
    """Run the experiment that `config` describes, or go on with it; return its folder.

    `shared` remembers, from run to run, what was found of the seed. A finished run is left as it is; only measures of an
    older version are taken anew. Raises SdftError for bad input and for a folder that was made with other settings,
    another model or other data.
    """
    task = load_chosen(config.task)
    config = with_machine(with_task(config, given, **task.decides))
    folder = folder or default_folder(config)
    path = resolve(config.model.model)
    made_of = sources(path, data_hash(task))
    if not is_new(folder):
        check_folder(folder, config, made_of)
    if is_finished(folder):
        return folder
    if (folder / "summary.json").exists():
        print(f"{folder}: its measures are those of an older version, and are taken anew", file=sys.stderr)
    model, tokenizer = sdft.model.load(path, config.model.dtype, config.model.device)
    context = Context(config, folder, model, tokenizer, task, shared)
    check_arms(config.arms.arms, config.train)
    context.check()
    with locked(folder):
        if is_new(folder):                      # not made before: impossible settings would refuse better ones
            make_folder(folder, config, made_of)
        else:
            check_folder(folder, config, made_of)
        write_json(settings_path(folder / "distilled.jsonl"), of_task(config))
        measures = compare(context)
        write_json(folder / "measures.json", measures)
        write_json(folder / "summary.json", summary(measures) | {
            "format": FORMAT, "seconds": context.seconds(), "source": task.source, "report": str(folder / "report.html")})
    return folder


def summary(measures: dict[str, Any]) -> dict[str, Any]:
    """Arms × measures as plain numbers, for programs: shares in 0 … 1, KL in nats per token, lengths in tokens."""
    table: dict[str, dict[str, float | None]] = {}
    for arm, measured in measures["arms"].items():
        general, shift = measured["general"], measured.get("shift", {})
        table[arm] = {**{suite: row["mean"] for suite, row in measured["suites"].items()},
                      "kl": general["kl"], "top1": general["top1"], "rouge_l": general["rouge_l"],
                      "length": general["length_mean"], "shift": shift.get("total"),
                      "relative_shift": shift.get("relative")}
    return {"columns": list(table["base"]), "table": table}
