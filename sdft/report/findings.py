"""The conclusions of a run as sentences, made from measures.json alone."""
from __future__ import annotations

from sdft.report.run import Run
from sdft.report.suite_tables import Compared, compared, suites_of
from sdft.report.tables import interval, nats, p_value
from sdft.results import ArmMeasures, Difference, Gap, GapDifference


def findings(run: Run) -> list[str]:
    """The conclusions of the run. An interval and a p-value decide whether a sentence states a direction.

    The p-value is Holm's, except for the primary end points of the run, which are not corrected.
    """
    sentences = _forgetting(run)
    verdicts: dict[tuple[str, str], list[str]] = {}
    for each in compared(run):
        verdicts.setdefault((each.arm, each.other), []).append(
            f"on {each.measure}: {each.verdict} [n = {each.n}{_p(each)}]")
    sentences += [f"{arm} compared with {other}, {'; '.join(measures)}." for (arm, other), measures in verdicts.items()]
    if {"original", "distilled"} <= run.gaps.keys():
        sentences += _gap(run.gaps["original"], run.gaps["distilled"])
    if {"sft", "sdft"} <= run.results.keys():
        sentences += _sdft_and_sft(run.results["sdft"], run.results["sft"])
    return sentences


def _p(each: Compared) -> str:
    if "p_holm" in each.comparison:
        return f", Holm's p {p_value(each.comparison['p_holm'])}"
    return f", p {p_value(each.comparison['p'])}, primary, not corrected" if "p" in each.comparison else ""


def _forgetting(run: Run) -> list[str]:
    """What every trained arm lost and gained on every suite, item by item."""
    sentences = []
    for arm, results in run.trained.items():
        for name, suite in suites_of(results):
            if "forgetting" in suite or "backward_transfer" in suite:
                solved = suite["solved_by_base"]
                sentences.append(
                    f"On {name}, {arm} lost {suite['lost']} of {solved} items that the base model solves (F in %: "
                    f"{interval(suite.get('forgetting'))}) and gained {suite['gained']} of the other "
                    f"{suite['n'] - solved} (BT in %: {interval(suite.get('backward_transfer'))}).")
        if kept := results["general"].get("long_answers"):
            sentences.append(f"Of {kept['n']} long answers of the base model, {arm} kept {kept['kept']} long (in %: "
                             f"{interval(kept)}); {kept['shrunk']} shrank to less than a quarter of their words.")
    return sentences


def _gap(original: Gap, distilled: Gap) -> list[str]:
    before, after, paired = original["nll"], distilled["nll"], distilled.get("paired")
    low, high = (paired["low"], paired["high"]) if paired else (after - before, after - before)
    moved = ("moved the targets closer to the base model" if high < 0 else
             "moved the targets away from the base model" if low > 0 else
             "made no detected difference to how close the targets are to the base model")
    sentences = [f"Distillation {moved}: their NLL under the base model is {before:.2f} nats per token before and "
                 f"{after:.2f} after."]
    if paired:
        sentences.append(f"Paired difference of {paired['n']} rewrites and their originals in NLL under the base "
                         f"model: {_difference(paired)} at full length; {_difference(paired['length_matched'])} at "
                         "equal length.")
    return sentences


def _difference(result: GapDifference | Difference) -> str:
    difference, low, high = (nats(value, "+") for value in (result["difference"], result["low"], result["high"]))
    value = f"{difference} nats per token ({low} to {high})"
    return f"no difference detected, {value}" if result["low"] <= 0 <= result["high"] else value


def _sdft_and_sft(sdft: ArmMeasures, sft: ArmMeasures) -> list[str]:
    sentences = []
    a, b = sdft["general"], sft["general"]
    if "kl" in a and "kl" in b:
        paired = a.get("against_sft")
        sentences.append(f"The general answers drifted {_ratio(a['kl'], b['kl'])} (KL "
                         f"{nats(a['kl'])} and {nats(b['kl'])}"
                         + (f"; paired over {paired['n']} answers: {_difference(paired)}" if paired else "") + ").")
    if "kl8" in a and "kl8" in b:
        paired = a.get("kl8_against_sft")
        sentences.append(f"Over the first 8 tokens of an answer, they drifted {_ratio(a['kl8'], b['kl8'])} (KL "
                         f"{nats(a['kl8'])} and {nats(b['kl8'])}"
                         + (f"; paired over {paired['n']} answers: {_difference(paired)}" if paired else "") + ").")
    x, y = a.get("reverse"), b.get("reverse")
    if x and y and x["n"] and y["n"]:
        apart = x["kl_high"] < y["kl_low"] or y["kl_high"] < x["kl_low"]
        sentences.append(f"On the answers that each arm wrote itself, the reverse KL is {nats(x['kl'])} with sdft and "
                         f"{nats(y['kl'])} with sft; the intervals {'do not overlap' if apart else 'overlap'}.")
    if a.get("by_position") and b.get("by_position"):
        first, last = ([general["by_position"][band]["kl"] for general in (a, b)] for band in (0, -1))
        sentences.append(f"At the first token of an answer, the KL is {nats(first[0])} nats with sdft and "
                         f"{nats(first[1])} with sft; from token {b['by_position'][-1]['first']} on, {nats(last[0])} "
                         f"and {nats(last[1])}.")
    if (shift := sdft.get("shift")) and (other := sft.get("shift")):
        sentences.append(f"The weights moved {_ratio(shift['total'], other['total'])} (‖ΔW‖ "
                         f"{shift['total']:.2f} and {other['total']:.2f}; there is no interval, since each arm was "
                         "trained once).")
    return sentences


def _ratio(value: float, reference: float) -> str:
    if reference > 0:
        return f"{value / reference:.2f} times as far with sdft as with sft"
    return "farther with sdft than with sft" if value > 0 else "with neither arm"
