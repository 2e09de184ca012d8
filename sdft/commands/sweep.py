"""`sdft sweep`: every run of a study, and its page."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdft.commands.plan import GFLOPS, check_rate, needs, rate
from sdft.errors import SdftError

if TYPE_CHECKING:
    from sdft.studies.specification import Cell, Study


def sweep(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], None]:
    """Tell the cells and how long they will take; run those that are not finished; write the page."""
    parser.add_argument("study", metavar="STUDY.toml", help="the study: see benchmarks/studies")
    parser.add_argument("--out", metavar="DIR", help="folder of the study (default: runs/STUDY)")
    parser.add_argument("--data", metavar="DIR", help="folder with the files of the tasks that read some")
    parser.add_argument("--gflops", type=float, metavar="X",
                        help=GFLOPS.format("the time before any cell is finished"))
    parser.add_argument("--dry_run", action="store_true", help="tell what would be run and how long it takes, and stop")

    def execute(options: argparse.Namespace) -> None:
        from sdft.report.drawing import require_matplotlib
        from sdft.studies.specification import cells_of, read_study

        check_rate(options.gflops)
        require_matplotlib()          # told before the long work, not after it
        study = read_study(Path(options.study))
        folder = Path(options.out or Path("runs") / Path(options.study).stem)
        print(f"{study.name}: {study.question}\n")
        if study.reads:
            print(f"reads {', '.join(study.reads)}; trains nothing", flush=True)
            if not options.dry_run:
                _read(study, folder)
            return
        cells = cells_of(study, options.data)
        print(_plan(cells, folder, options.gflops), flush=True)
        if not options.dry_run:
            _run(study, cells, folder)

    return execute


def _run(study: Study, cells: Sequence[Cell], folder: Path) -> None:
    from sdft.files import locked
    from sdft.studies.page import write_study
    from sdft.studies.runs import sweep as run_cells

    with locked(folder):
        failed = run_cells(study, cells, folder)
    if len(failed) < len(cells):
        print(f"report: {write_study(folder)}")
    if failed:
        raise SdftError(f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}; the others are in "
                        f"{folder / 'cells.json'}. Mend the settings, and run the same command again")


def _read(study: Study, folder: Path) -> None:
    """The study of what other studies have found."""
    from sdft.files import locked, write_json
    from sdft.studies.page import write_study
    from sdft.studies.predictors import predict
    from sdft.studies.runs import claim

    content = predict(study)
    with locked(folder):
        claim(study, folder)
        write_json(folder / "cells.json", content)
        print(f"report: {write_study(folder)}")


def _plan(cells: Sequence[Cell], folder: Path, gflops: float | None) -> str:
    """The cells, what each will make that none before it has, and the time of all."""
    from sdft.studies.runs import remaining, to_make

    waiting = {cell.name: stages for cell, stages in to_make(cells, folder)}
    width = max(len(cell.name) for cell in cells)
    lines = [f"  {cell.name:<{width}}  {', '.join(waiting[cell.name]) if cell.name in waiting else 'finished'}"
             for cell in cells]
    known = remaining(cells, folder)
    if not waiting:
        about = "nothing is left to run"
    elif known:
        about = f"about {_minutes(known[0])}, by the seconds of {known[1]} finished cells"
    else:
        rates = sorted({rate(gflops, cell.config) or 0 for cell in cells})
        at = " and ".join(f"{each:.6g}" for each in rates)
        about = (f"about {_minutes(_planned(cells, folder, gflops))} of rewriting and training, by sdft plan at {at} "
                 "GFLOP/s; evaluation comes to it, and is known when one cell is finished" if all(rates)
                 else "their time is known when one cell is finished")
    return "\n".join([*lines, "", f"{len(cells)} cells, {len(waiting)} of them to run: {about}"])


def _planned(cells: Sequence[Cell], folder: Path, gflops: float | None) -> float:
    """Seconds of rewriting and training that `sdft plan` gives for the pieces that are not shared."""
    from sdft.experiment.settings import load_chosen
    from sdft.studies.runs import to_make

    total = 0.0
    plans: dict[str, dict[str, Any] | None] = {}
    for cell, stages in to_make(cells, folder):
        key = repr((cell.config.task, cell.config.distill, replace(cell.config.train, seed=0), cell.config.model))
        if key not in plans:
            try:
                plans[key] = needs(cell.config, load_chosen(cell.config.task), rate(gflops, cell.config), None)
            except SdftError:                       # told when the cell is run; it stops none of the others
                plans[key] = None
        if plan := plans[key]:
            total += plan["seconds"]["rewrite, at most"] * len({"rewrite", "answer self-output"} & set(stages))
            total += sum(_training(plan, cell, stage.removeprefix("train "))
                         for stage in stages if stage.startswith("train "))
    return total


def _training(plan: dict[str, Any], cell: Cell, arm: str) -> float:
    """Seconds of an arm's training: half as many products again where another forward pass is made at every step, and
    on-policy all answers written anew at every pass over the records."""
    from sdft.experiment.arms import settings_of

    seconds, settings = plan["seconds"], settings_of(arm, cell.config.train)
    onpolicy = settings.objective.startswith("onpolicy")
    passes = plan["steps"] * min(1, settings.batch_size / plan["records"])
    return (seconds["train, each arm"] * (1.5 if onpolicy or settings.objective == "kl" else 1)
            + seconds["rewrite, at most"] * passes * onpolicy)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
