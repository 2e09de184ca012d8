"""The tables of the report, made from the numbers of measures.json alone.

Those of the gap, of the drift and of the texts stand in measure_tables.py, the conclusions in words in findings.py.
"""
from __future__ import annotations

import math
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
            nats(general.get("kl")), number(general.get("top1"), 1, scale=100),
            number(general.get("rouge_l"), 2), number(general.get("length_mean"), 0),
            number(shift.get("total"), 2), number(shift.get("relative"), 2, scale=100),
        ])
    n = (run.measures["arms"][run.arms[0]].get("general") or {}).get("n", 0)
    return Table(head, rows, "In brackets: 95 % bootstrap intervals. KL(seed ‖ arm), top-1 agreement, ROUGE-L and "
                             f"length: on {n} general prompts. ‖ΔW‖: Frobenius norm of all that training added.")


def difference_table(run: Run) -> Table:
    """Every trained arm against the seed and others, item by item, and whether the difference can be told from zero."""
    rows = []
    for arm in run.arms[1:]:
        for suite, measured in run.measures["arms"][arm]["suites"].items():
            for other, against in compared(measured).items():
                rows.append([arm, other, suite, verdict(against), str(measured["n"]), against.get("test", "–"),
                             p_value(against.get("p")), p_value(against.get("p_holm"))])
    return Table(["arm", "against", "suite", "paired difference (95 % interval)", "n", "test", "p", "Holm's p"], rows,
                 "n: items, the same for both arms. p: two-sided, of McNemar's exact test where scores are 0 or 1, "
                 "else of flipping signs. Holm's p: adjusted for all rows of this table together; a direction is told "
                 "where it is below 0.05 and the interval leaves zero out.")


def training_table(run: Run) -> Table:
    """What every arm was trained on and how long it took."""
    rows = []
    gap = run.measures.get("gap") or {}
    for arm in run.trained:
        training, source = run.measures["arms"][arm]["training"], gap.get(run.measures["arms"][arm].get("targets"), {})
        left_out = ", ".join(f"{count} {reason}" for reason, count in (training.get("left_out") or {}).items() if count)
        rows.append([arm, str(training["records"]), str(training["steps"]), f"{training['tokens']:,}",
                     f"{training['target_tokens']:,}", number(source.get("nll"), 2), f"{training['seconds']:.0f}",
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
    return Table(["kind", *run.arms], [[kind, *(number(measured[arm].get(kind), 0, scale=100) for arm in run.arms)]
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


def verdict(against: dict[str, Any]) -> str:
    """A paired difference in words: a direction only where the interval leaves zero out, and Holm's p falls below 0.05.

    A run that was measured without p-values is judged by its intervals alone.
    """
    points = f"{100 * against['difference']:+.1f} points ({100 * against['low']:+.1f} to {100 * against['high']:+.1f})"
    if against["low"] <= 0 <= against["high"] or against.get("p_holm", 0) >= 0.05:
        return f"no difference detected, {points}"
    return f"{'gained' if against['low'] > 0 else 'lost'} {points}"


def compared(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """With which arms a suite's scores were compared: other arm → the paired difference."""
    return {key.removeprefix("against_"): found for key, found in measured.items() if key.startswith("against_")}


def _suite_title(run: Run, suite: str) -> str:
    return f"{suite}: {run.measures['arms'][run.arms[0]]['suites'][suite]['metric']}, %"


def _interval(row: dict[str, Any] | None) -> str:
    return "–" if not row else f"{100 * row['mean']:.1f} ({100 * row['low']:.0f}–{100 * row['high']:.0f})"


def number(value: float | None, digits: int, scale: float = 1) -> str:
    """A figure of a table; a dash where there is none."""
    return "–" if value is None else f"{value * scale:.{digits}f}"


def nats(value: float | None, sign: str = "") -> str:
    """A KL, in three decimals; a small one in so many that two figures of it are seen."""
    digits = 3 if not value or not abs(value) < 0.01 else min(6, 1 - math.floor(math.log10(abs(value))))
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def p_value(value: float | None) -> str:
    """A p-value of a table: never 0.000, which no test can find."""
    return number(value, 3) if value is None or value >= 0.001 else "< 0.001"
