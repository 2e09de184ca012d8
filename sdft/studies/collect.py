"""cells.json: the results of a study, small enough to be committed. The study's page is made from it alone.

Its types are StudyResults and RunResult of results.py. A column of a run is a number's path in measures.json
("general.kl_low", "training.target_tokens"), the name that summary.json gives it ("kl", "elaborate.forgetting"), or one
of a kind of item ("elaborate.story.forgetting"; columns.py); `target_nll` is the NLL of the arm's own targets under the
base model.

A result belongs to a run with its name, key and model. Results of other settings, data or FORMATs are kept under
`earlier`, and are used again when a run has them again.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.experiment.run_folder import free
from sdft.experiment.settings import to_values
from sdft.files import read_json
from sdft.results import FORMAT, Measures, Summary
from sdft.studies.columns import parts_and_kinds
from sdft.studies.results import RunResult, StudyInfo, StudyResults
from sdft.studies.specification import PlannedRun, Study
from sdft.studies.statistics import statistics

TABLES = ("modules", "layers", "kinds")          # of the shift: they would be most of the file
UNUSED = ("mean", "n", "tokens_mean", "p_holm")      # of a suite: other columns say mean and n; p_holm is one run's
DIGITS = 6                                       # significant digits kept of a number


def collect(study: Study, results: Sequence[RunResult], failed: Mapping[str, str],
            before: Sequence[RunResult]) -> StudyResults:
    """The content of cells.json; results: of the finished runs, in the study's order; before: all that it held."""
    info: StudyInfo = {"name": study.name, "question": study.question, "primary": study.primary, "plots": study.plots,
                       "matched": study.matched, "settings": study.settings, "runs": len(study.runs)}
    if study.controls:
        info["controls"] = study.controls
    content: StudyResults = {"study": info, "runs": list(results), "failed": dict(failed),
                             "statistics": statistics(info, results)}
    known = set(map(identity, results))
    if earlier := [result for result in before if identity(result) not in known]:
        content["earlier"] = earlier
    return content


def results_in(folder: Path) -> list[RunResult]:
    """Every result in cells.json, [] where there is no such file. Raises SdftError where it holds no study's runs."""
    path = folder / "cells.json"
    content = read_json(path) if path.exists() else {"runs": []}
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
        raise SdftError(f"{path}: expected the runs of a study, found none; move the file away, or name another "
                        "folder with --out")
    return [*content["runs"], *content.get("earlier", [])]


def identity(result: RunResult) -> tuple[str, str | None, str]:
    """Two results with the same identity are the same result."""
    return result["name"], result.get("key"), result["model_sha256"]


def run_key(run: PlannedRun, data_sha256: str = "") -> str:
    """A hash of FORMAT, of the data, and of all settings that decide the result (paths and `free` settings do not)."""
    values: dict[str, Any] = {**to_values(run.config), "data": data_sha256 or run.data_sha256, "format": FORMAT}
    values["arms"]["then"] = [Path(task).stem for task in run.config.arms.then]
    for name in ("model.model", "task.data", *free(run.config)):
        section, _, setting = name.partition(".")
        values[section].pop(setting, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def run_result(run: PlannedRun, folder: Path) -> RunResult:
    """One finished run as numbers. Its key names the data of its folder, which need not be today's."""
    environment = read_json(folder / "environment.json")
    measures: Measures = read_json(folder / "measures.json")
    summary: Summary = read_json(folder / "summary.json")
    gap, audit, base = measures.get("gap", {}), measures.get("audit", {}), measures["arms"]["base"]
    arms: dict[str, dict[str, float]] = {}
    for arm, columns in summary["table"].items():
        measured = measures["arms"][arm]
        arms[arm] = {**{column: _rounded(number) for column, number in columns.items() if number is not None},
                     **{column: number for column, number in numbers(measured)
                        if not (column.startswith("suites.") and column.rpartition(".")[2] in UNUSED)},
                     **{column: _rounded(number) for suite, result in measured["suites"].items()
                        for column, number in parts_and_kinds(suite, result, arm == "base")}}
        if targets := gap.get(measured.get("targets", "")):
            arms[arm]["target_nll"] = _rounded(targets["nll"])
    data = {**{f"gap.{name}.{column}": number for name, part in gap.items() for column, number in numbers(part)},
            **dict(numbers(audit)), **dict(numbers(measures.get("texts", {}), "texts."))}
    if records := audit.get("records"):
        data["accepted_share"] = _rounded(audit["accepted"] / records)
    return {"name": run.name, "values": json.loads(json.dumps(run.values)),
            "key": run_key(run, environment["data_sha256"]),
            "machine": {name: environment.get(name) for name in ("processor", "torch")},
            "model_sha256": environment["model_sha256"], "suite": next(iter(base["suites"])),
            "items": {name: suite["n"] for name, suite in base["suites"].items()},
            "measures": data, "arms": arms, "seconds": _rounded(sum(summary["seconds"].values()))}


def numbers(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested tables under its path, but not those in lists or in tables by kind, position or layer."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not key.startswith("by_") and key not in TABLES:
            yield from numbers(value, f"{within}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{within}{key}", _rounded(value)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
