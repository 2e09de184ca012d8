"""A finished run as the report sees it: every file of the run folder that the page shows, read once.

Rows of different files are joined by their `id`, never by position.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.files import Journal, read_json, read_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder holds (see `sdft.experiment` for who writes what)."""

    folder: Path
    measures: dict[str, Any]
    summary: dict[str, Any]
    environment: dict[str, Any]
    config: str                              # config.toml as written
    rewrites: dict[str, Row]                 # id → line of rewrites.jsonl
    distilled: list[Row]
    logs: dict[str, list[Row]]               # arm → lines of its log.jsonl
    answers: dict[str, dict[str, list[Row]]]  # arm → suite → lines of eval/<arm>/<suite>.jsonl

    @property
    def arms(self) -> list[str]:
        """The arms in the order of the run, the seed first."""
        return list(self.measures["arms"])

    @property
    def trained(self) -> list[str]:
        """The arms that were trained."""
        return [arm for arm in self.arms if self.measures["arms"][arm].get("training")]


def read_run(folder: Path) -> Run:
    """Read a run folder (SdftError when it is none, or when the run has not come to its measures yet)."""
    folder = Path(folder)
    if not (folder / "measures.json").is_file():
        raise SdftError(f"{folder}: expected a finished run with measures.json, found none; "
                        "make one with `sdft run --out DIR`, or run the same command again to finish it")
    measures = read_json(folder / "measures.json")
    arms = measures.get("arms") if isinstance(measures, dict) else None
    if not arms or not all(isinstance(arm, dict) and "suites" in arm for arm in arms.values()):
        raise SdftError(f"{folder / 'measures.json'}: expected the suites that each arm answered, found none; "
                        "run the same command again to make them")
    return Run(
        folder=folder,
        measures=measures,
        summary=read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {},
        environment=read_json(folder / "environment.json"),
        config=read_text(folder / "config.toml"),
        rewrites={row["id"]: row for row in Journal(folder / "rewrites.jsonl").read() if "text" in row},
        distilled=Journal(folder / "distilled.jsonl").read(),
        logs={arm: Journal(folder / arm / "log.jsonl").read() for arm in arms},
        answers={arm: {suite: Journal(folder / "eval" / arm / f"{suite}.jsonl").read()
                       for suite in (*arms[arm]["suites"], "general")} for arm in arms},
    )
