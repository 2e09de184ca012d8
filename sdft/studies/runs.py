"""The sweep of a study: its runs one after the other, a folder each; what two runs have in common is made once.

    runs/<study>/  study.toml   mix_ratio=0,seed=42/ …a run folder…   mix_ratio=0.5,seed=42/ …   cells.json   report.md

Before a run begins, it takes over the files of every stage that a finished run has made under the same key (stages.py),
and resumes after them. Those files say how they were made, and a run refuses or replaces foreign ones, so a wrong key
could not make a wrong result. A study can move to another machine without its run folders: a run whose result is in
cells.json, with the same settings, data and model, is finished.

    sdft sweep benchmarks/studies/2-mix-ratio.toml
"""
from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from sdft.errors import Interrupted, SdftError, nearest
from sdft.experiment.context import SharedMeasures
from sdft.experiment.run import run as run_experiment
from sdft.experiment.run_folder import hashes, is_finished, is_new, make_folder
from sdft.files import is_temporary, read_json, read_text, write_bytes, write_json, write_text
from sdft.model.io.fetch import model_hash, resolve
from sdft.studies.collect import collect, identity, results_in, run_key, run_result
from sdft.studies.columns import FORGETTING, items_of, value
from sdft.studies.results import RunResult
from sdft.studies.specification import PlannedRun, Study, read_study
from sdft.studies.stages import stages


def sweep(study: Study, runs: Sequence[PlannedRun], folder: Path) -> dict[str, str]:
    """Make every run that is not finished, in `folder`; return run → reason for those that failed.

    cells.json is written again after every run. Raises SdftError where `folder` holds another study, and Interrupted
    when the user stops it.
    """
    claim(study, folder)
    before, results = results_in(folder), carried(runs, folder)
    now = {(run.name, run_key(run)) for run in runs}
    if names := [result["name"] for result in before if identity(result)[:2] not in now]:
        more = f", … ({len(names)} in all)" if len(names) > 4 else ""
        print("cells.json: kept under \"earlier\", since no run has their settings, data and measures: "
              f"{', '.join(names[:4])}{more}", file=sys.stderr)
    done: list[PlannedRun] = []
    failed: dict[str, str] = {}
    shared: SharedMeasures = {}

    def write() -> None:
        finished = [results[run.name] for run in runs if run.name in results]
        write_json(folder / "cells.json", collect(study, finished, failed, before))

    in_turn = sorted((run for run in runs if run.name not in results),
                     key=lambda run: not is_finished(folder / run.name))            # the others may take from these
    if not in_turn:
        write()
    for number, run in enumerate(in_turn, start=len(results) + 1):
        print(f"run {number} of {len(runs)}: {run.name}", file=sys.stderr)
        try:
            _make(run, done, folder, shared)
            done.append(run)
            results[run.name] = run_result(run, folder / run.name)
        except Interrupted:
            raise
        except SdftError as error:
            failed[run.name] = str(error)
            print(f"run {run.name} failed: {error}", file=sys.stderr)
        write()
        arm, column = study.primary["arm"], study.primary["column"]
        if (result := results.get(run.name)) and arm in result["arms"] and value(result, arm, column) is None:
            if column.endswith(FORGETTING) and items_of(result, column) == 0:
                raise SdftError(f"{study.path}: primary.column: expected items that the base model solves, but it "
                                f"solves none of {column.removesuffix(FORGETTING)}, so none can be lost; name another "
                                "end point, or another model")
            known = [*result["arms"][arm], *result["measures"]]         # the other runs would lack the column too
            raise SdftError(f"{study.path}: primary.column: {arm} has no {column!r}{nearest(column, known)}; "
                            "cells.json lists its columns")
    return failed


def carried(runs: Sequence[PlannedRun], folder: Path) -> dict[str, RunResult]:
    """The results in cells.json of runs that are not finished in a folder, by name: same settings, data and model. A
    folder in which such a run has begun is left as it is."""
    results = {identity(result): result for result in results_in(folder)}
    known = {(name, key) for name, key, _ in results}
    model = cache(lambda name: model_hash(resolve(name)))
    return {run.name: result for run in runs if (run.name, key := run_key(run)) in known
            and not is_finished(folder / run.name)
            and (result := results.get((run.name, key, model(run.config.model.model))))}


def to_make(runs: Sequence[PlannedRun], folder: Path) -> list[tuple[PlannedRun, list[str]]]:
    """Every run still to make, with the stages that it must make itself: no finished or earlier run makes them."""
    known = {stage.key for run in runs if is_finished(folder / run.name) for stage in stages(run.config).values()}
    unfinished, elsewhere = [], carried(runs, folder)
    for run in runs:
        if run.name not in elsewhere and not is_finished(folder / run.name):
            keys = {name: stage.key for name, stage in stages(run.config).items()}
            unfinished.append((run, sorted(name for name, key in keys.items() if key not in known)))
            known |= set(keys.values())
    return unfinished


def _make(run: PlannedRun, done: Sequence[PlannedRun], folder: Path, shared: SharedMeasures) -> None:
    """Make one run with the files of those before it. Where it fails before any work, leave no folder."""
    target = folder / run.name
    new = is_new(target)
    if new:
        make_folder(target, run.config, hashes(resolve(run.config.model.model), run.data_sha256))
    if not is_finished(target):
        take_over(run, done, folder)
    try:
        run_experiment(run.config, run.explicit, target, shared)
    except SdftError:
        if new and not (target / "seconds.jsonl").exists():        # impossible settings: better ones may follow
            shutil.rmtree(target)
        raise


def take_over(run: PlannedRun, done: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Give `run` the files of the stages that a finished run has made under the same key; return the stages' names. A
    stage of which the run has any file is left as it is: the run was at work on it, or was stopped just here."""
    made = {stage.key: folder / other.name for other in reversed(done) for stage in stages(other.config).values()}
    target, taken = folder / run.name, []
    for name, stage in stages(run.config).items():
        source = made.get(stage.key)
        if source is None or any((target / path).exists() for path in stage.paths):
            continue
        files = [file for path in stage.paths for file in (source / path, *(source / path).rglob("*"))
                 if file.is_file() and not is_temporary(file)]
        # Settings before their journal, a log before its state: a run can resume from what a kill leaves here.
        for file in sorted(files, key=lambda file: (file.suffix, file.name)):
            _carry(file, target / file.relative_to(source))
        taken += [name] if files else []
    return taken


def _carry(source: Path, target: Path) -> None:
    """Copy a journal, which grows in place; link every other file, which is only ever replaced."""
    if source.suffix != ".jsonl":
        with suppress(OSError):             # a file system without links
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
            return
    write_bytes(target, source.read_bytes())


def claim(study: Study, folder: Path) -> None:
    """Write the study file into its folder. Raises SdftError where the folder holds another study or other files."""
    path, cells = folder / "study.toml", folder / "cells.json"
    owners = [read_study(path).name] if path.exists() else []
    if cells.exists():
        try:
            owners.append(read_json(cells)["study"]["name"])
        except (KeyError, TypeError, IndexError) as error:
            raise SdftError(f"{cells}: expected what `sdft sweep` writes, with the study's name; move the file away, "
                            "or name another folder with --out") from error
    for other in owners:
        if other != study.name:
            raise SdftError(f"{folder} holds the study {other!r}, not {study.name!r}; name another folder with --out")
    if not path.exists() and folder.exists() and any(not is_temporary(file) and file != cells
                                                     for file in folder.iterdir()):
        raise SdftError(f"{folder}: expected the folder of a study or an empty one; name another with --out")
    write_text(path, read_text(study.path))
