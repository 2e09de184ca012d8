"""How long the unfinished runs of a study will take: from finished ones, or before the first from operations alone."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sdft.errors import SdftError
from sdft.experiment.arms import settings_of
from sdft.experiment.plan import Plan, needs
from sdft.experiment.settings import Config, load_chosen
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


def planned_seconds(runs: Sequence[PlannedRun], folder: Path, rate: Callable[[Config], float | None]) -> float:
    """Estimate the seconds of all rewriting and training still to do, with the times of `sdft plan`. rate(config): the
    GFLOP/s of a run. A run that cannot be planned counts as 0 seconds; `sdft sweep` refuses it when it starts."""
    total = 0.0
    plans: dict[str, Plan | None] = {}
    for run, names in to_make(runs, folder):
        key = repr((run.config.task, run.config.distill, replace(run.config.train, seed=0), run.config.model))
        if key not in plans:
            try:
                plans[key] = needs(run.config, load_chosen(run.config.task), rate(run.config), None)
            except SdftError:
                plans[key] = None
        if not (plan := plans[key]):
            continue
        rewriting, training = plan["seconds"]["rewrite, at most"], plan["seconds"]["train, each arm"]
        total += rewriting * len({"rewrite", "answer self-output"} & set(names))
        for settings in (settings_of(name.removeprefix("train "), run.config.train)
                         for name in names if name.startswith("train ")):
            # On-policy, the model writes all answers again in every pass over the records.
            onpolicy = settings.objective.startswith("onpolicy")
            total += rewriting * onpolicy * plan["steps"] * min(1, settings.batch_size / plan["records"])
            total += training * (1.5 if onpolicy or settings.objective == "kl" else 1)      # another forward pass
    return total
