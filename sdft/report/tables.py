"""The tables of the report and its conclusions in words, both made from the numbers of measures.json alone."""
from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from sdft.report.run import Run


@dataclass(frozen=True)
class Table:
    """A table of text: the first column names the row, the others hold figures."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""


def result_table(run: Run) -> Table:
    """Arms × measures: ability on every suite, drift of the general answers, shift of the weights."""
    suites = list(run.measures["arms"][run.arms[0]]["suites"])
    head = ["arm", *(_suite_title(run, suite) for suite in suites), "KL, nats/token", "top-1, %", "ROUGE-L to seed",
            "answer, tokens", "‖ΔW‖", "‖ΔW‖/‖W‖, %"]
    rows = []
    for arm in run.arms:
        measured = run.measures["arms"][arm]
        general, shift = measured.get("general") or {}, measured.get("shift") or {}
        rows.append([
            arm,
            *(_interval(measured["suites"].get(suite)) for suite in suites),
            _number(general.get("kl"), 3), _number(general.get("top1"), 1, scale=100),
            _number(general.get("rouge_l"), 2), _number(general.get("length_mean"), 0),
            _number(shift.get("total"), 2), _number(shift.get("relative"), 2, scale=100),
        ])
    n = (run.measures["arms"][run.arms[0]].get("general") or {}).get("n", 0)
    return Table(head, rows, "In brackets: 95 % bootstrap intervals. KL(seed ‖ arm), top-1 agreement, ROUGE-L and "
                             f"length: on {n} general prompts. ‖ΔW‖: Frobenius norm of all that training added.")


def difference_table(run: Run) -> Table:
    """Every trained arm against the seed, item by item: the paired difference and whether it can be told from zero."""
    rows = []
    for arm in run.arms[1:]:
        for suite, measured in run.measures["arms"][arm]["suites"].items():
            against = measured.get("against_seed")
            if against:
                rows.append([arm, suite, verdict(against), str(measured["n"])])
    return Table(["arm", "suite", "paired difference from the seed (95 % interval)", "n"], rows)


def training_table(run: Run) -> Table:
    """What every arm was trained on and how long it took."""
    rows = []
    gap = run.measures.get("gap") or {}
    for arm in run.trained:
        training = run.measures["arms"][arm]["training"]
        source = gap.get("original" if arm == "sft" else "distilled" if arm == "sdft" else "", {})
        left_out = ", ".join(f"{count} {reason}" for reason, count in (training.get("left_out") or {}).items() if count)
        rows.append([arm, str(training["records"]), str(training["steps"]), f"{training['tokens']:,}",
                     f"{training['target_tokens']:,}", _number(source.get("nll"), 2), f"{training['seconds']:.0f}",
                     left_out or "none"])
    return Table(["arm", "records", "steps", "tokens", "of them targets", "target NLL under the seed, nats/token",
                  "seconds", "left out"], rows)


def reasons_table(run: Run) -> Table:
    """How many rewrites were accepted, and why the others were not."""
    audit = run.measures.get("audit") or {}
    records = audit.get("records") or 1
    counts = [("accepted", audit.get("accepted", 0)), *(audit.get("reasons") or {}).items()]
    return Table(["rewrite", "records", "share, %"], [[reason, str(count), f"{100 * count / records:.1f}"]
                                                      for reason, count in counts])


def kinds_table(run: Run, suite: str) -> Table:
    """One suite by kind of item, arm by arm, in per cent."""
    measured = {arm: run.measures["arms"][arm]["suites"].get(suite, {}).get("by_kind") or {} for arm in run.arms}
    kinds = list(measured[run.arms[0]])
    return Table(["kind", *run.arms], [[kind, *(_number(measured[arm].get(kind), 0, scale=100) for arm in run.arms)]
                                       for kind in kinds])


def as_text(table: Table) -> str:
    """The table for a terminal: columns aligned, the head in as many lines as it needs."""
    head = [_fold(cell) for cell in table.head]
    height = max(len(cell) for cell in head)
    lines = [[cell[line - height + len(cell)] if line >= height - len(cell) else "" for cell in head]
             for line in range(height)]
    lines += [["─" * max(map(len, column)) for column in zip(*lines, *table.rows, strict=True)], *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join("  ".join(cell.ljust(width) if index == 0 else cell.rjust(width)
                               for index, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)
    return f"{text}\n{table.note}".rstrip()


def _fold(text: str, width: int = 13) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False) or [""]


def findings(run: Run) -> list[str]:
    """The conclusions of the run, one sentence each, worded by the intervals."""
    arms, sentences = run.measures["arms"], []
    for arm in run.arms[1:]:
        told = [f"{suite} {verdict(row['against_seed'])}" for suite, row in arms[arm]["suites"].items()
                if row.get("against_seed")]
        if told:
            sentences.append(f"{arm} against the seed: {'; '.join(told)}.")
    if {"sft", "sdft"} <= arms.keys():
        sentences += _sdft_against_sft(arms["sft"], arms["sdft"], run.measures.get("gap") or {})
    return sentences


def verdict(against: dict[str, float]) -> str:
    """A paired difference in words: a direction only where the interval leaves zero out."""
    points = f"{100 * against['difference']:+.1f} points ({100 * against['low']:+.1f} to {100 * against['high']:+.1f})"
    if against["low"] > 0:
        return f"gained {points}"
    if against["high"] < 0:
        return f"lost {points}"
    return f"no difference detected, {points}"


def _sdft_against_sft(sft: dict[str, Any], sdft: dict[str, Any], gap: dict[str, Any]) -> list[str]:
    sentences = []
    if {"original", "distilled"} <= gap.keys():
        before, after = gap["original"]["nll"], gap["distilled"]["nll"]
        sentences.append(f"Distillation moved the targets {'nearer to' if after < before else 'away from'} the seed: "
                         f"{before:.2f} → {after:.2f} nats per token under the seed.")
    if sft.get("general") and sdft.get("general"):
        a, b = sft["general"], sdft["general"]
        apart = b["kl_high"] < a["kl_low"] or a["kl_high"] < b["kl_low"]
        sentences.append(f"General answers drifted {_ratio(b['kl'], a['kl'])} under sdft as under sft (KL "
                         f"{b['kl']:.3f} against {a['kl']:.3f}; "
                         f"the intervals {'do not overlap' if apart else 'overlap'}).")
        if a.get("by_position") and b.get("by_position"):
            ends = [(x["by_position"][0]["kl"], x["by_position"][-1]["kl"]) for x in (a, b)]
            sentences.append(f"At an answer's first token sft drifted {ends[0][0]:.2f} nats and sdft {ends[1][0]:.2f}; "
                             f"from token {a['by_position'][-1]['first']} on, {ends[0][1]:.3f} and {ends[1][1]:.3f}.")
    if sft.get("shift") and sdft.get("shift"):
        a, b = sft["shift"]["total"], sdft["shift"]["total"]
        sentences.append(f"The weights moved {_ratio(b, a)} under sdft as under sft (‖ΔW‖ {b:.2f} against {a:.2f}; "
                         "one training run each, so no interval).")
    return sentences


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f} times as far" if base > 0 else "from nothing as far"


def _suite_title(run: Run, suite: str) -> str:
    return f"{suite}: {run.measures['arms'][run.arms[0]]['suites'][suite]['metric']}, %"


def _interval(row: dict[str, Any] | None) -> str:
    return "–" if not row else f"{100 * row['mean']:.1f} ({100 * row['low']:.0f}–{100 * row['high']:.0f})"


def _number(value: float | None, digits: int, scale: float = 1) -> str:
    return "–" if value is None else f"{value * scale:.{digits}f}"
