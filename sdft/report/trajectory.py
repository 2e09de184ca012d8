"""Along training: accuracy against forgetting, the arms at equal accuracy, and how soon what was lost comes back."""
from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sdft.files import Journal
from sdft.report.drawing import line_style
from sdft.report.run import Run
from sdft.report.tables import number
from sdft.results import Matched, Recovery, TrajectoryPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


def trajectories(run: Run) -> dict[str, list[TrajectoryPoint]]:
    """Arm → its points, the base model first, for the arms that were measured along training."""
    read = {arm: cast(list[TrajectoryPoint], Journal(run.folder / arm / "trajectory.jsonl").read()) for arm in run.arms}
    return {arm: points for arm, points in read.items() if points}


def trajectory(run: Run, canvas: Canvas) -> str | None:
    """Task accuracy against F along training, one line per arm from the base model to the end."""
    drawn = {arm: [point for point in points if point["forgetting"] is not None]
             for arm, points in trajectories(run).items()}
    drawn = {arm: points for arm, points in drawn.items() if len(points) > 1}
    if not drawn:
        return None
    axes, first = canvas.subplots(), next(iter(drawn.values()))[0]
    for arm, points in drawn.items():
        x, y = ([100 * value for value in values] for values in
                ([point["accuracy"] for point in points], [cast(float, point["forgetting"]) for point in points]))
        style = line_style(run, arm)
        axes.plot(x, y, markersize=4, **style)
        axes.plot(x[-1], y[-1], markersize=10, **style | {"label": None})
        axes.annotate(f"step {points[-1]['step']}", (x[-1], y[-1]), xytext=(8, 4), textcoords="offset points")
    sizes = len(first["scores"]), first["solved_by_base"]
    axes.set(xlabel=f"accuracy on {run.task}, %   (right: learned more)",
             ylabel="F on elaborate, %   (up: forgot more)", ylim=(0, None),
             title=f"Along training (n = {sizes[0]} and {sizes[1]} items)")
    axes.legend()
    steps = ", ".join(str(point["step"]) for point in next(iter(drawn.values())))
    return (f"Accuracy on the first {sizes[0]} items of the task against F, the share lost of {sizes[1]} items of "
            f"elaborate that the base model solves, after the steps {steps}. A line begins with the base model; its "
            "large marker is the end of training. Compare arms where they are equally far right. With few items, a "
            f"point has a standard error of up to {50 / sizes[0] ** 0.5:.0f} points of accuracy and "
            f"{50 / sizes[1] ** 0.5:.0f} of F.")


def trajectory_findings(run: Run) -> list[str]:
    """Each arm compared with sft at equal accuracy, and the recovery of each arm, where the run measured them."""
    measured = trajectories(run)
    return ([_matched(arm, result["matched"]) if "matched" in result else
             f"{arm} and sft are not compared at equal accuracy: one of them never exceeds the base model's."
             for arm, result in run.trained.items()
             if arm != "sft" and {arm, "sft"} <= measured.keys() and measured[arm][0]["solved_by_base"]]
            + [_recovery(arm, result["recovery"]) for arm, result in run.trained.items() if "recovery" in result])


def _matched(arm: str, result: Matched) -> str:
    ours, theirs = (number(value, 0, 100) for value in (result["forgetting"], result["forgetting_with"]))
    points = (f"{100 * result['difference']:+.0f} points ({100 * result['low']:+.0f} to {100 * result['high']:+.0f})")
    verdict = f"no difference detected, {points}" if result["low"] <= 0 <= result["high"] else points
    return (f"At equal accuracy, {number(result['accuracy'], 0, 100)} % of {result['n_task']} items of the task, {arm} "
            f"forgot {ours} % and sft {theirs} % of {result['n']} items of elaborate: {verdict}. {arm} reached it at "
            f"step {result['step']:.0f}, sft at step {result['step_with']:.0f}.")


def _recovery(arm: str, result: Recovery) -> str:
    of = {name.removeprefix("k"): step for name, step in result["steps"].items()}
    found = [f"{step} steps on {k}" for k, step in of.items() if step is not None]
    failed = [k for k, step in of.items() if step is None]
    last = max((check["step"] for check in result["checks"]), default=0)
    parts = [f"after {', '.join(found)} of them"] * bool(found) + [f"not within {last} steps on {', '.join(failed)}"
                                                                   ] * bool(failed)
    return (f"{arm} forgot {number(result['forgetting'], 0, 100)} % of {result['n']} items of elaborate. Trained "
            f"further on the base model's own answers, it forgets less than 10 % {', but '.join(parts)}.")
