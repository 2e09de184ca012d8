"""The conclusions of a run in words, made from the numbers of measures.json alone."""
from __future__ import annotations

from typing import Any

from sdft.report.run import Run
from sdft.report.tables import compared, nats, p_value, verdict


def findings(run: Run) -> list[str]:
    """The conclusions of the run, one sentence each, worded by the intervals and by Holm's p-values."""
    arms, sentences = run.measures["arms"], []
    for arm in run.arms[1:]:
        told: dict[str, list[str]] = {}
        for suite, row in arms[arm]["suites"].items():
            for other, against in compared(row).items():
                told.setdefault(other, []).append(f"{suite} {verdict(against)} [{_size(row['n'], against)}]")
        for other, suites in told.items():
            sentences.append(f"{arm} against {'the seed' if other == 'seed' else other}: {'; '.join(suites)}.")
    gap = run.measures.get("gap") or {}
    if {"original", "distilled"} <= gap.keys():
        sentences += _gap(gap["original"], gap["distilled"])
    if {"sft", "sdft"} <= arms.keys():
        sentences += _sdft_against_sft(arms["sft"], arms["sdft"])
    return sentences


def _size(n: int, against: dict[str, Any]) -> str:
    return f"n = {n}" + (f", Holm's p {p_value(against['p_holm'])}" if "p_holm" in against else "")


def _gap(original: dict[str, Any], distilled: dict[str, Any]) -> list[str]:
    before, after, paired = original["nll"], distilled["nll"], distilled.get("paired")
    low, high = (paired["low"], paired["high"]) if paired else (after - before, after - before)
    moved = ("moved the targets nearer to the seed" if high < 0 else "moved the targets away from the seed" if low > 0
             else "left the targets as near to the seed as they were, as far as can be told")
    sentences = [f"Distillation {moved}: {before:.2f} → {after:.2f} nats per token under the seed."]
    if paired:
        whole, matched = _detected(paired), _detected(paired["length_matched"])
        sentences.append(f"Record by record, {paired['n']} rewrites against their originals under the seed: {whole}; "
                         f"over equally many tokens of each: {matched}.")
    return sentences


def _detected(row: dict[str, Any]) -> str:
    difference, low, high = (nats(row[key], "+") for key in ("difference", "low", "high"))
    told = f"{difference} nats per token ({low} to {high})"
    return f"no difference detected, {told}" if row["low"] <= 0 <= row["high"] else told


def _sdft_against_sft(sft: dict[str, Any], sdft: dict[str, Any]) -> list[str]:
    sentences = []
    if sft.get("general") and sdft.get("general"):
        a, b = sft["general"], sdft["general"]
        paired = b.get("against_sft")
        sentences.append(f"General answers drifted {_ratio(b['kl'], a['kl'])} under sdft as under sft (KL "
                         f"{nats(b['kl'])} against {nats(a['kl'])}"
                         + (f"; over the same n = {paired['n']} answers {_detected(paired)}" if paired else "") + ").")
        if (a.get("reverse") or {}).get("n") and (b.get("reverse") or {}).get("n"):
            x, y = a["reverse"], b["reverse"]
            sentences.append(f"On what each arm itself wrote, the reverse KL is {nats(y['kl'])} under sdft against "
                             f"{nats(x['kl'])}; the intervals {_overlap(x, y)}.")
        if a.get("by_position") and b.get("by_position"):
            first, last = ([x["by_position"][place]["kl"] for x in (a, b)] for place in (0, -1))
            sentences.append(f"At an answer's first token sft drifted {first[0]:.2f} nats and sdft {first[1]:.2f}; from "
                             f"token {a['by_position'][-1]['first']} on, {nats(last[0])} and {nats(last[1])}.")
    if sft.get("shift") and sdft.get("shift"):
        a, b = sft["shift"]["total"], sdft["shift"]["total"]
        sentences.append(f"The weights moved {_ratio(b, a)} under sdft as under sft (‖ΔW‖ {b:.2f} against {a:.2f}; "
                         "one training run each, so no interval).")
    return sentences


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f} times as far" if base > 0 else "from nothing as far"


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> str:
    return "do not overlap" if b["kl_high"] < a["kl_low"] or a["kl_high"] < b["kl_low"] else "overlap"
