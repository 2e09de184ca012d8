"""The conclusions of a run as sentences, made from measures.json alone."""
from __future__ import annotations

from sdft.report.run import Run
from sdft.report.tables import nats, p_value, verdict
from sdft.results import ArmMeasures, Difference, Gap, GapDifference, comparisons


def findings(run: Run) -> list[str]:
    """The conclusions of the run. An interval and Holm's p-value decide whether a sentence states a direction."""
    sentences = []
    for arm, results in run.results.items():
        verdicts: dict[str, list[str]] = {}
        for suite, result in results["suites"].items():
            for other, comparison in comparisons(result).items():
                p = f", Holm's p {p_value(comparison['p_holm'])}" if "p_holm" in comparison else ""
                verdicts.setdefault(other, []).append(f"on {suite}: {verdict(comparison)} [n = {result['n']}{p}]")
        sentences += [f"{arm} compared with {other}, {'; '.join(suites)}." for other, suites in verdicts.items()]
    if {"original", "distilled"} <= run.gaps.keys():
        sentences += _gap(run.gaps["original"], run.gaps["distilled"])
    if {"sft", "sdft"} <= run.results.keys():
        sentences += _sdft_and_sft(run.results["sdft"], run.results["sft"])
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
