"""Later stages of a run: what every arm scores on all tasks so far, and what is left of the earlier ones."""
from __future__ import annotations

from collections.abc import Mapping

from sdft.report.run import Run
from sdft.report.tables import Table, number
from sdft.results import Difference, Share, SuiteResult, Transfer

ELABORATE = "elaborate"
Suites = Mapping[str, SuiteResult]


def sequence_table(run: Run) -> Table:
    """Arms and stages × scores on all tasks and transfer of the earlier ones; no rows where no task follows."""
    tasks = _tasks(run)
    suites = [*tasks, *(suite for suite in run.results["base"]["suites"] if suite == ELABORATE)]
    head = ["arm, after", *(f"{suite}, %" for suite in suites),
            *(f"{task}: {what}" for task in tasks[:-1] for what in ("change, points", "retained, %", "F / BT, %"))]
    rows = [[name, *(_score(scores.get(suite)) for suite in suites),
             *(cell for task in tasks[:-1] for cell in _cells(transfer.get(task)))]
            for arm in run.arms for name, scores, transfer in _stages(run, arm)]
    return Table(head, rows, "Every stage trains the model of the stage before. In brackets: 95 % intervals. Change: "
                 "score now − score directly after the task's own stage. It falls with the score that was reached, so "
                 "it does not compare arms. Retained: share of the gain over the base model that is left; 100 is all, "
                 "0 is the base model's score; a dash where the interval of the gain reaches 0. F: of the items that "
                 "were solved directly after the task's own stage, the share no longer solved. BT: of the others, the "
                 "share solved now.")


def sequence_findings(run: Run) -> list[str]:
    """What is left of every earlier task after the last stage, in a sentence for each arm, and compared with sft."""
    sentences = []
    for arm, result in run.trained.items():
        if stages := result.get("then"):
            last = stages[str(len(stages))]
            sentences += [_sentence(arm, task, last["task"], transfer) for task, transfer in last["transfer"].items()]
    return sentences


def _sentence(arm: str, task: str, later: str, transfer: Transfer) -> str:
    base, altitude, after = (number(value, 1, 100) for value in (transfer["base"], transfer["altitude"],
                                                                  transfer["after"]))
    text = (f"On {task}, {arm} scored {altitude} % after its stage (base model {base} %) and {after} % after {later}: "
            f"it lost {transfer['lost']} of {transfer['solved']} solved items, and gained {transfer['gained']}.")
    if retained := transfer.get("retained"):
        text += f" It retained {_share(retained)} % of what it had learned"
        text += f"; {_against_sft(difference)}." if (difference := transfer.get("retained_against_sft")) else "."
    else:
        text += " What it had learned is too little to say which share of it was retained."
    return text


def _against_sft(result: Difference) -> str:
    points = (f"{100 * result['difference']:+.0f} points ({100 * result['low']:+.0f} to {100 * result['high']:+.0f}) "
              "compared with sft")
    return f"no difference detected, {points}" if result["low"] <= 0 <= result["high"] else points


def _tasks(run: Run) -> list[str]:
    """The first suite of every task, in the order of training; [] where no task follows."""
    stages = next((result["then"] for result in run.trained.values() if "then" in result), None)
    if not stages:
        return []
    last = stages[str(len(stages))]
    return [*last["transfer"], *(suite for suite in last["suites"] if suite not in (*last["transfer"], ELABORATE))]


def _stages(run: Run, arm: str) -> list[tuple[str, Suites, Mapping[str, Transfer]]]:
    """The lines of an arm: name, suites, transfer. The base model has one, for all suites; [] where no task follows."""
    result = run.results[arm]
    later = list(result.get("then", {}).values())
    if arm == "base" or not later:
        return [(arm, stage["suites"], {}) for stage in later[-1:]]
    return [(f"{arm}, {run.task}", result["suites"], {}),
            *((f"{arm}, {stage['task']}", stage["suites"], stage["transfer"]) for stage in later)]


def _cells(transfer: Transfer | None) -> list[str]:
    if transfer is None:
        return ["–"] * 3
    raw, shares = transfer["raw"], [transfer.get("forgetting"), transfer.get("backward_transfer")]
    return [f"{100 * raw['difference']:+.1f} ({100 * raw['low']:+.0f} to {100 * raw['high']:+.0f})",
            _share(transfer.get("retained")),
            " / ".join(number(share["share"] if share else None, 1, 100) for share in shares)]


def _share(result: Share | None) -> str:
    if result is None:
        return "–"
    return f"{100 * result['share']:.0f} ({100 * result['low']:.0f} to {100 * result['high']:.0f})"


def _score(result: SuiteResult | None) -> str:
    if result is None:
        return "–"
    return f"{100 * result['mean']:.1f} ({100 * result['low']:.0f}–{100 * result['high']:.0f})"
