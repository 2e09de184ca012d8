"""A run's stages with their estimated seconds: which come, which is at work, and how long all of them will take.

    5 stages, about 14 min: rewrite 50 s, …
    stage 3 of 5: train sft, about 9 min left

A stage that an interrupted run has finished does not count; one that it has half finished counts half. What finished
stages took against their estimate corrects the stages of the same kind that are still to come; what the rest of an
interrupted stage took does not. forecast.py estimates.
"""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdft.progress import duration


@dataclass(frozen=True)
class Stage:
    """A stage of a run before it begins."""

    name: str           # as in seconds.jsonl
    seconds: float      # estimated, of the whole stage
    files: str          # pattern of its files in the run folder
    lines: int          # that these files hold together when the stage is finished

    def done(self, folder: Path) -> float:
        """The share of the stage that `folder` holds already, from 0 to 1."""
        lines = sum(max(1, path.read_bytes().count(b"\n")) for path in folder.glob(self.files))
        return min(1.0, lines / self.lines)


class Timetable:
    """The stages that a run has still to do. `begin` and `end` are called around each of them."""

    def __init__(self, stages: Sequence[Stage] = (), folder: Path = Path()):
        """folder: of the run; the stages whose files it holds are left out."""
        done = {stage.name: stage.done(folder) for stage in stages}
        left = {stage.name: stage.seconds * (1 - done[stage.name]) for stage in stages if done[stage.name] < 1}
        self.count, self.to_do, self.begun = len(left), left, {name for name in done if done[name]}
        self.finished: list[tuple[str, float, float]] = []      # (kind, seconds estimated, seconds taken)

    def left(self) -> float:
        """The seconds of all stages to do, corrected by the finished stages of their kinds."""
        total = 0.0
        for name, seconds in self.to_do.items():
            known = [times for kind, *times in self.finished if kind == _kind(name)]
            estimated, taken = (sum(column) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
            total += seconds * (taken / estimated if estimated else 1.0)
        return total

    def announce(self) -> None:
        """Print on stderr which stages come, and how long all of them will take."""
        if self.to_do:
            each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.to_do.items())
            print(f"{self.count} stages, about {duration(self.left())}: {each}", file=sys.stderr)

    def begin(self, name: str) -> None:
        """Print on stderr which stage begins, and how long it and all later ones will take. Stages before it that did
        not begin were not needed."""
        if name in self.to_do:
            names = list(self.to_do)
            self.to_do = {later: self.to_do[later] for later in names[names.index(name) :]}
            number = self.count - len(self.to_do) + 1
            print(f"stage {number} of {self.count}: {name}, about {duration(self.left())} left", file=sys.stderr)

    def end(self, name: str, seconds: float) -> None:
        """Record the seconds that a stage took, where this process did all of it."""
        estimated = self.to_do.pop(name, None)
        if estimated is not None and name not in self.begun:
            self.finished.append((_kind(name), estimated, seconds))


def _kind(name: str) -> str:
    """What a stage does: "train sft" and "then 1-gsm8k: train sft" are of the kind train."""
    return name.rpartition(": ")[2].partition(" ")[0]
