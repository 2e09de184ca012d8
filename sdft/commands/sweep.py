"""`sdft sweep`: the runs of a study, and its page."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdft.commands import Execute
from sdft.commands.plan import GFLOPS, check_rate, rates_of
from sdft.errors import SdftError

if TYPE_CHECKING:
    from sdft.studies.specification import PlannedRun


def sweep(parser: argparse.ArgumentParser) -> Execute:
    """Print the runs and their estimated time, make those that are not finished, and write the page."""
    parser.add_argument("study", metavar="STUDY.toml", help="Study file; benchmarks/studies has examples.")
    parser.add_argument("--out", metavar="DIR", help="Folder of the study; the default is runs/STUDY.")
    parser.add_argument("--data", metavar="DIR", help="Folder with the files of the tasks that need some.")
    parser.add_argument("--gflops", type=float, metavar="X",
                        help=GFLOPS.format("the time before any run is finished"))
    parser.add_argument("--dry_run", action="store_true", help="Print the runs and their estimated time, then stop.")

    def execute(options: argparse.Namespace) -> None:
        from sdft.files import locked, write_json
        from sdft.report.drawing import require_matplotlib
        from sdft.studies.page import write_study
        from sdft.studies.predictors import predict
        from sdft.studies.runs import claim
        from sdft.studies.runs import sweep as make_runs
        from sdft.studies.specification import planned_runs, read_study

        check_rate(options.gflops)
        require_matplotlib()          # reported before the long work, not after it
        study = read_study(Path(options.study))
        folder = Path(options.out or Path("runs") / Path(options.study).stem)
        print(f"{study.name}: {study.question}\n")
        if study.reads:
            print(f"reads {', '.join(study.reads)}; trains nothing", flush=True)
            if not options.dry_run:
                content = predict(study)
                with locked(folder):
                    claim(study, folder)
                    write_json(folder / "cells.json", content)
                    print(f"report: {write_study(folder)}")
            return
        runs = planned_runs(study, options.data)
        print(_plan(runs, folder, options.gflops), flush=True)
        if options.dry_run:
            return
        with locked(folder):
            failed = make_runs(study, runs, folder)
        if len(failed) < len(runs):
            print(f"report: {write_study(folder)}")
        if failed:
            raise SdftError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; the others are in "
                            f"{folder / 'cells.json'}. Correct the settings, and run the same command again")

    return execute


def _plan(runs: Sequence[PlannedRun], folder: Path, gflops: float | None) -> str:
    """The runs, the stages that each will make, and the estimated time of all."""
    from sdft.studies.estimate import planned_seconds, remaining
    from sdft.studies.runs import to_make

    waiting = {run.name: stages for run, stages in to_make(runs, folder)}
    width = max(len(run.name) for run in runs)
    lines = [f"  {run.name:<{width}}  {', '.join(waiting[run.name]) if run.name in waiting else 'finished'}"
             for run in runs]
    if not waiting:
        about = "nothing is left to run"
    elif known := remaining(runs, folder):
        about = f"about {_minutes(known[0])}, estimated from {known[1]} finished runs"
    elif (seconds := planned_seconds(runs, folder, lambda config: rates_of(gflops, config))) is None:
        about = "the time is known when one run is finished"
    else:
        at = f"{gflops:.6g} GFLOP/s" if gflops else "the rates of this machine"
        about = f"about {_minutes(seconds)}, by sdft plan at {at}"
    return "\n".join([*lines, "", f"{len(runs)} runs, {len(waiting)} of them to do: {about}"])


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
