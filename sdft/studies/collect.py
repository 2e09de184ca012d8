"""cells.json: what a study has found, small enough to be committed; its page is made from it alone.

    {"study": {name, question, primary, plots, matched, settings, cells},
     "cells": [{"name", "values": {setting: value}, "key": of its settings and data,
                "machine": {processor, torch}, "model_sha256",
                "suite": the task's own, "items": {suite: n},
                "measures": {column: number},                        of its data: the gap, the audit of the rewrites
                "arms": {arm: {column: number}},                     summary.json's row and every other number
                "seconds": of this cell's own work}],
     "failed": {cell: reason}, "statistics": see study_statistics.py,
     "earlier": the rows that stood here and are of no cell above}

A row is of a cell that has its name, its key and its model: what was found with other settings, of other data or by
other measures stays under `earlier`, and is taken from there when a cell has them again.

A column is a number of measures.json under its path ("general.kl_low", "training.target_tokens"), or under the name
that summary.json gives it ("kl"); `target_nll` is the gap of the arm's own targets.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.experiment.context import FORMAT
from sdft.experiment.run_folder import format_of, free
from sdft.experiment.settings import Config, to_values
from sdft.files import read_json
from sdft.studies.specification import Cell, Study
from sdft.studies.statistics import statistics

TABLES = ("modules", "layers", "kinds")          # of the shift: they would be most of the file
DIGITS = 6                                       # significant ones kept of a number


Row = dict[str, Any]


def collect(study: Study, rows: Sequence[Row], failed: Mapping[str, str], before: Sequence[Row] = ()) -> dict[str, Any]:
    """The content of cells.json, from the rows of the finished cells in the study's order and those that it held."""
    about = {"name": study.name, "question": study.question, "primary": study.primary, "plots": study.plots,
             "matched": study.matched, "settings": study.settings, "cells": len(study.cells)}
    content = {"study": about, "cells": list(rows), "failed": dict(failed), "statistics": statistics(about, rows)}
    known = set(map(identity, rows))
    earlier = [row for row in before if identity(row) not in known]
    return content | ({"earlier": earlier} if earlier else {})


def rows_in(folder: Path) -> list[Row]:
    """Every row of cells.json, [] where there is none yet (SdftError where it is not of a study that runs cells)."""
    path = folder / "cells.json"
    content = read_json(path) if path.exists() else {"cells": []}
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise SdftError(f"{path}: expected the cells of a study, found none; move the file away, or name another "
                        "folder with --out")
    return [*content["cells"], *content.get("earlier", [])]


def study_of(path: Path) -> str:
    """The name of the study that a cells.json is of (SdftError where it is of none)."""
    try:
        return read_json(path)["study"]["name"]
    except (KeyError, TypeError, IndexError) as error:
        raise SdftError(f"{path}: expected what `sdft sweep` writes, with the study's name; move the file away, or "
                        "name another folder with --out") from error


def identity(row: Row) -> tuple[str, str | None, str]:
    """What two rows of the same result have in common."""
    return row["name"], row.get("key"), row["model_sha256"]


def cell_key(cell: Cell) -> str:
    """What tells the results that a cell has, or will have, from others of its model."""
    return result_key(cell.config, cell.data, FORMAT)


def result_key(config: Config, data: str | None, measures: int) -> str:
    """A hash of the data, of the FORMAT of the measures, and of all settings but where things lie and how a run goes.

    data: `data_hash`; None where it is not known, which no cell's is.
    """
    values = to_values(config) | {"data": data, "format": measures}
    for name in ("model.model", "task.data", *free(config)):
        section, _, setting = name.partition(".")
        values[section].pop(setting, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def cell_row(cell: Cell, folder: Path) -> Row:
    """One finished cell as numbers; data and measures are those that its folder names."""
    environment = read_json(folder / "environment.json")
    measures, summary = read_json(folder / "measures.json"), read_json(folder / "summary.json")
    gap, audit = measures.get("gap", {}), measures.get("audit", {})
    arms = {arm: {**{column: _short(value) for column, value in row.items() if value is not None},
                  **dict(numbers(measures["arms"][arm]))} for arm, row in summary["table"].items()}
    for arm, row in arms.items():
        if targets := gap.get(measures["arms"][arm].get("targets")):
            row["target_nll"] = _short(targets["nll"])
    records = audit.get("records") or 0
    own = {**{f"gap.{name}.{column}": value for name, part in gap.items() for column, value in numbers(part)},
           **dict(numbers(audit)), **dict(numbers(measures.get("texts", {}), "texts.")),
           **({"accepted_share": _short(audit["accepted"] / records)} if records else {})}
    return {"name": cell.name, "values": json.loads(json.dumps(cell.values)),
            "key": result_key(cell.config, environment.get("data_sha256"), format_of(summary)),
            "machine": {name: environment.get(name) for name in ("processor", "torch")},
            "model_sha256": environment["model_sha256"],
            "suite": next(iter(measures["arms"]["base"]["suites"])),
            "items": {name: row["n"] for name, row in measures["arms"]["base"]["suites"].items()},
            "measures": own, "arms": arms, "seconds": _short(sum(summary["seconds"].values()))}


def numbers(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested tables under its path; lists, and tables over kinds, places or layers, are left out."""
    for key, value in values.items():
        if isinstance(value, Mapping) and not key.startswith("by_") and key not in TABLES:
            yield from numbers(value, f"{within}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{within}{key}", _short(value)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
