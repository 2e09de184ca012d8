"""How long the unfinished runs of a study will take: from finished ones, or before the first from operations alone."""
from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sdft.errors import SdftError
from sdft.experiment.forecast import planned_stages
from sdft.experiment.rates import Rates
from sdft.experiment.settings import Config, resolve_settings
from sdft.experiment.timetable import Stage
from sdft.files import read_json
from sdft.studies.runs import to_make
from sdft.studies.specification import PlannedRun


def remaining(runs: Sequence[PlannedRun], folder: Path) -> tuple[float, int] | None:
    """The seconds that the unfinished runs need, and the number of finished runs that the estimate rests on.

    A stage costs the most seconds that it took in a finished run, which is without taking anything over; one that none
    of them had costs as much as the slowest of its kind ("train …"). A stage taken over from an earlier run costs
    nothing. None where no run is finished.
    """
    finished = [path for run in runs if (path := folder / run.name / "summary.json").exists()]
    if not finished:
        return None
    costs: dict[str, float] = {}
    for path in finished:
        for stage, seconds in read_json(path)["seconds"].items():
            for name in (stage, stage.partition(" ")[0]):
                costs[name] = max(costs.get(name, 0.0), seconds)
    total = sum(costs.get(stage, costs.get(stage.partition(" ")[0], 0.0))
                for _, names in to_make(runs, folder) for stage in names)
    return total, len(finished)


def planned_seconds(runs: Sequence[PlannedRun], folder: Path, rates: Callable[[Config], Rates | None]) -> float | None:
    """Estimate the seconds of all stages still to do, with the timetable of `sdft plan`; rates(config): of the machine
    of a run, None where they are not known: then there is no estimate. A run that cannot be planned is reported on
    stderr, and not counted."""
    total = 0.0
    planned: dict[str, list[Stage]] = {}
    for run, names in to_make(runs, folder):
        key = repr(replace(run.config, train=replace(run.config.train, seed=0)))
        try:
            if key not in planned:
                if (known := rates(run.config)) is None:
                    return None
                planned[key] = planned_stages(run.config, resolve_settings(run.config, run.explicit)[1], known)
        except SdftError as error:
            print(f"run {run.name} is not in the estimate: {error}", file=sys.stderr)
            continue
        # A later stage is made by every run; what is measured of an arm includes its recovery.
        total += sum(stage.seconds for stage in planned[key] if stage.name.startswith("then ")
                     or stage.name.replace("recovery ", "measure ") in names)
    return total
