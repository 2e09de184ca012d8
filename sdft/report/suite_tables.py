"""The tables of the suites: what each arm lost and gained item by item, paired comparisons, and kinds of item."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sdft.report.run import Run
from sdft.report.tables import FLIPS, Table, interval, number, p_value, verdict, without_empty_columns
from sdft.results import ArmMeasures, Comparison, SuiteResult, comparisons


@dataclass(frozen=True)
class Compared:
    """One paired comparison of a run, and the words for a positive and a negative difference."""

    arm: str
    other: str
    measure: str                    # "passages", "elaborate: F", "long answers kept"
    comparison: Comparison
    n: int
    more: str = "gained"
    less: str = "lost"

    @property
    def verdict(self) -> str:
        """The difference in words, with its interval."""
        return verdict(self.comparison, self.more, self.less)

    @property
    def correction(self) -> str:
        """Holm's p-value, or why there is none."""
        if "p_holm" in self.comparison:
            return p_value(self.comparison["p_holm"])
        return "primary, not corrected" if "p" in self.comparison else "–"


def suites_of(results: ArmMeasures) -> Iterator[tuple[str, SuiteResult]]:
    """Every suite of an arm, each followed by its parts."""
    for name, suite in results["suites"].items():
        yield name, suite
        for part, result in suite.get("parts", {}).items():
            yield f"{name}, {part} items", result


def compared(run: Run) -> Iterator[Compared]:
    """Every paired comparison of the run that has a p-value or an interval: scores, forgetting, long answers."""
    for arm, results in run.results.items():
        for name, suite in suites_of(results):
            for other, comparison in comparisons(suite).items():
                yield Compared(arm, other, name, comparison, suite["n"])
            if forgetting := suite.get("forgetting_against_sft"):
                yield Compared(arm, "sft", f"{name}: F", forgetting, forgetting["n"], "forgot more,", "forgot less,")
        kept = results["general"].get("long_answers")
        if kept and "against_sft" in kept:
            yield Compared(arm, "sft", "long answers kept", kept["against_sft"], kept["n"], "kept more,", "kept fewer,")


def difference_table(run: Run) -> Table:
    """Paired differences of every trained arm from the base model and from sft."""
    rows = [[each.arm, each.other, each.measure, each.verdict, str(each.n), each.comparison.get("test", "–"),
             p_value(each.comparison.get("p")), each.correction] for each in compared(run)]
    return Table(["arm", "compared with", "measure", "paired difference (95 % interval)", "n", "test", "p", "p (Holm)"],
                 rows, "A suite's name stands for its mean score; F is forgetting, on the items that the base model "
                 "solves. n: items or answers, the same for both arms. p: two-sided, of McNemar's exact test where all "
                 "scores are 0 or 1, otherwise of a sign-flip test. Primary end points were named before the run; "
                 "their p is not corrected. p (Holm): adjusted for all other comparisons of the run. A difference "
                 "counts as detected where this p is below 0.05 and the interval excludes zero. Long answers kept: of "
                 "the base model's answers of 25 words or more, the share that the arm answers in 25 or more too.")


def forgetting_table(run: Run) -> Table:
    """What every arm lost and gained on every suite and its parts, item by item, next to the mean."""
    rows = []
    for arm, results in run.results.items():
        for name, suite in suites_of(results):
            solved, adjusted = suite["solved_by_base"], suite.get("chance_adjusted")
            mean = f"{100 * suite['mean']:.1f} ({100 * suite['low']:.0f}–{100 * suite['high']:.0f})"
            flips = [f"{suite['lost']} of {solved}", f"{suite['gained']} of {suite['n'] - solved}"]
            lost, gained = ("–", "–") if arm == "base" else flips
            rows.append([arm, name, str(suite["n"]), mean, str(solved), lost, interval(suite.get("forgetting")), gained,
                         interval(suite.get("backward_transfer")),
                         " / ".join(number(adjusted[key], 1, 100) for key in ("forgetting", "backward_transfer"))
                         if adjusted else "–"])
            if floor := suite.get("noise_floor"):
                rows.append(["base, asked again", name, str(floor["n"]), "–", str(floor["n"]),
                             f"{round(floor['share'] * floor['n'])} of {floor['n']}", interval(floor), "–", "–", "–"])
    return without_empty_columns(Table(
        ["arm", "suite", "items", "mean, %", "solved by base", "lost", "F, %", "gained", "BT, %",
         "F / BT without guessing, %"], rows,
        f"{FLIPS} In brackets: 95 % intervals (bootstrap of the mean, Wilson of F and BT). Items that were selected "
        "because they were solved always show some loss: compare F with BT and with the noise floor. Noise floor "
        "(base, asked again): F between two answers of the base model. Brief items: one word, or the prompt "
        "repeated, passes the check. Long items: all others."))


def kinds_table(run: Run, suite: str) -> Table:
    """One suite by kind of item: the mean of every arm, and what it lost and gained."""
    by_kind = {arm: results["suites"][suite]["by_kind"] for arm, results in run.results.items()}
    base = by_kind["base"]
    head = ["kind", "items", "solved by base", "base, %",
            *(f"{arm}{measure}" for arm in run.trained for measure in (", %", ": lost", ": gained"))]
    rows = [[kind, str(result["n"]), str(result["solved_by_base"]), number(result["mean"], 0, 100),
             *(cell for arm in run.trained for ours in [by_kind[arm][kind]]
               for cell in (number(ours["mean"], 0, 100), str(ours["lost"]), str(ours["gained"])))]
            for kind, result in base.items()]
    return Table(head, rows, "Lost: of the items solved by base. Gained: of the others.")
