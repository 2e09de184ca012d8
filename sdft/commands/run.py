"""`sdft run` and `sdft report`."""
from __future__ import annotations

import argparse
from pathlib import Path

from sdft.commands import Execute, add_quick, add_settings, existing, settings
from sdft.experiment.settings import SECTIONS, with_machine


def run(parser: argparse.ArgumentParser) -> Execute:
    """Run the whole experiment; print its table and the path of its report."""
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="File of settings; options override it.")
    parser.add_argument("--out", metavar="DIR", help="Run folder (default: runs/TASK-MODEL, with --quick "
                        "runs/TASK-MODEL-quick).")
    add_quick(parser)
    add_settings(parser, {section: () for section in SECTIONS})

    def execute(options: argparse.Namespace) -> None:
        from sdft.report.drawing import require_matplotlib

        require_matplotlib()          # before the long work, not after it
        config, given = settings(options, options.config)
        from sdft.experiment.run import run as run_experiment
        from sdft.experiment.run_folder import default_folder

        folder = Path(options.out) if options.out else default_folder(with_machine(config))
        if options.quick and not options.out:
            folder = folder.with_name(f"{folder.name}-quick")
        _show(run_experiment(config, given, folder))

    return execute


def report(parser: argparse.ArgumentParser) -> Execute:
    """Write the report of a finished run, or of a study, again."""
    parser.add_argument("folder", metavar="DIR", help="Run folder, or folder of a study with cells.json.")

    def execute(options: argparse.Namespace) -> None:
        folder = existing(options.folder, "a run folder")
        if (folder / "cells.json").is_file():
            # Imported here: it imports torch, which the report of a run does without.
            from sdft.studies.page import write_study

            print(f"report: {write_study(folder)}")
        else:
            _show(folder)

    return execute


def _show(folder: Path) -> None:
    """Write the report; print the table and the path of the page."""
    from sdft.report import write_report
    from sdft.report.run import read_run
    from sdft.report.tables import as_text, result_table

    page = write_report(folder)
    print(as_text(result_table(read_run(folder))))
    print(f"\nreport: {page}")
