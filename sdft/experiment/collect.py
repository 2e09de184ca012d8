"""cells.json: what a study has found, small enough to be committed; its page is made from it alone.

    {"study": {name, question, primary, plots, matched, settings, cells},
     "cells": [{"name", "values": {setting: value}, "key": of its settings and data,
                "machine": {processor, torch}, "model_sha256",
                "suite": the task's own, "items": {suite: n},
                "measures": {column: number},                        of its data: the gap, the audit of the rewrites
                "arms": {arm: {column: number}},                     summary.json's row and every other number
                "seconds": of this cell's own work}],
     "failed": {cell: reason}, "statistics": see study_statistics.py}

A column is a number of measures.json under its path ("general.kl_low", "training.target_tokens"), or under the name
that summary.json gives it ("kl"); `target_nll` is the gap of the arm's own targets.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft.experiment.config import to_values
from sdft.experiment.lab import FORMAT
from sdft.experiment.study import Cell, Study
from sdft.experiment.study_statistics import statistics
from sdft.files import read_json

TABLES = ("modules", "layers", "kinds")          # of the shift: they would be most of the file
DIGITS = 6                                       # significant ones kept of a number


def collect(study: Study, rows: Sequence[dict[str, Any]], failed: Mapping[str, str]) -> dict[str, Any]:
    """The content of cells.json, from the rows of the finished cells in the study's order."""
    about = {"name": study.name, "question": study.question, "primary": study.primary, "plots": study.plots,
             "matched": study.matched, "settings": study.settings, "cells": len(study.cells)}
    return {"study": about, "cells": list(rows), "failed": dict(failed), "statistics": statistics(about, rows)}


def cell_key(cell: Cell) -> str:
    """What tells a cell's results from others: a hash of its data and of all settings but where things lie and run."""
    values = to_values(cell.config) | {"data": cell.data, "format": FORMAT}
    for part, name in (("model", "device"), ("generate", "rows"), ("task", "data")):
        values[part].pop(name, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def cell_row(cell: Cell, folder: Path) -> dict[str, Any]:
    """One finished cell as numbers."""
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
    return {"name": cell.name, "values": json.loads(json.dumps(cell.values)), "key": cell_key(cell),
            "machine": {name: environment.get(name) for name in ("processor", "torch")},
            "model_sha256": environment["model_sha256"],
            "suite": next(iter(measures["arms"]["seed"]["suites"])),
            "items": {name: row["n"] for name, row in measures["arms"]["seed"]["suites"].items()},
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
