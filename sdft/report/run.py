"""A finished run as the report sees it: the files of the run folder that the page shows, each read once.

Lines of different files are joined by their `id`, never by position.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft.errors import SdftError
from sdft.files import Journal, read_json, read_text, read_toml
from sdft.results import FORMAT, AnswerLine, ArmMeasures, DistilledLine, Gap, LogLine, Measures, RewriteLine


@dataclass(frozen=True)
class Run:
    """The contents of a run folder; `sdft.results` describes them."""

    folder: Path
    measures: Measures
    seconds: dict[str, float]                        # stage → duration, from summary.json
    environment: dict[str, object]
    config: str                                      # text of config.toml
    settings: dict[str, dict[str, Any]]              # its sections
    rewrites: dict[str, RewriteLine]                 # id → line
    distilled: list[DistilledLine]
    logs: dict[str, list[LogLine]]                   # arm → one line per optimiser step
    answers: dict[str, dict[str, list[AnswerLine]]]  # arm → suite → lines

    @property
    def results(self) -> dict[str, ArmMeasures]:
        """Arm → its measures."""
        return self.measures["arms"]

    @property
    def arms(self) -> list[str]:
        """All arms in the order of the run, base first."""
        return list(self.results)

    @property
    def trained(self) -> dict[str, ArmMeasures]:
        """Arm → its measures, for the arms that were trained."""
        return {arm: result for arm, result in self.results.items() if result.get("training")}

    @property
    def gaps(self) -> dict[str, Gap]:
        """Set of targets → its gap; empty where the run did not measure it."""
        return self.measures.get("gap") or {}

    @property
    def task(self) -> str:
        """The suite that tests the task itself: the first of the run."""
        return next(iter(self.results["base"]["suites"]))


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises SdftError where it holds no finished run, or one of another version."""
    folder = Path(folder)
    if not (folder / "measures.json").is_file():
        raise SdftError(f"{folder}: expected a finished run with measures.json, found none; "
                        "make one with `sdft run --out DIR`, or run the same command again to finish it")
    environment = read_json(folder / "environment.json")
    if environment.get("format") != FORMAT:
        raise SdftError(f"{folder}: expected a run folder of format {FORMAT}, got one of format "
                        f"{environment.get('format', 1)} by another version of sdft; run again in a new folder")
    measures = read_json(folder / "measures.json")
    arms = measures.get("arms") if isinstance(measures, dict) else None
    if not arms or not all(isinstance(arm, dict) and arm.get("suites") for arm in arms.values()):
        raise SdftError(f"{folder / 'measures.json'}: expected the suites that each arm answered, found none; "
                        "run the same command again to make them")
    summary = read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    return Run(
        folder=folder, measures=measures, seconds=summary.get("seconds") or {},
        environment=environment, config=read_text(folder / "config.toml"),
        settings=read_toml(folder / "config.toml"),
        rewrites={line["id"]: line for line in _lines(folder / "rewrites.jsonl") if "text" in line},
        distilled=_lines(folder / "distilled.jsonl"),
        logs={arm: _lines(folder / arm / "log.jsonl") for arm in arms},
        answers={arm: {suite: _lines(folder / "eval" / arm / f"{suite}.jsonl")
                       for suite in (*arms[arm]["suites"], "general")} for arm in arms},
    )


def _lines(path: Path) -> Any:
    return Journal(path).read()
