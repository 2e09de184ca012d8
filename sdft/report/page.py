"""report.html, one file that needs no network, and report.md beside it.

    write_report(folder)         or        sdft report DIR
"""
from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from sdft.files import write_text
from sdft.report.draw import Figure
from sdft.report.figures import draw_figures
from sdft.report.findings import findings
from sdft.report.heat import heat_map
from sdft.report.measure_tables import (
    between_table,
    drift_table,
    gap_table,
    likeness_table,
    paired_table,
    weights_table,
)
from sdft.report.run import Row, Run, read_run
from sdft.report.style import STYLE
from sdft.report.tables import Table, difference_table, kinds_table, reasons_table, result_table, training_table

INTRODUCTION = (
    "This page compares copies of one chat model, the arms. seed: the model as it was published. sft: the seed, "
    "fine-tuned (LoRA) on the reference answers of a data set. sdft: the seed, fine-tuned in the same way on its own "
    "rewrites of those answers, where a rewrite passed the checks (self-distillation, arXiv 2402.13669). The "
    "question is what each learned, and what it lost or changed elsewhere.")
EXAMPLES = 4          # accepted rewrites shown, and rejected ones of each reason
OPEN = 5              # general prompts whose answers are unfolded


def write_report(folder: Path) -> Path:
    """Write report.html and report.md of the run in `folder`; return the path of report.html.

    Raises SdftError when the folder holds no finished run, or when matplotlib (extra [report]) is missing.
    """
    run = read_run(folder)
    figures = {figure.name: figure for figure in draw_figures(run)}
    path = run.folder / "report.html"
    write_text(path, html_page(run, figures))
    write_text(run.folder / "report.md", markdown_page(run))
    return path


def html_page(run: Run, figures: dict[str, Figure]) -> str:
    """The whole page as one HTML text."""
    sections = [
        ("Result", _table(result_table(run)) + _list(findings(run))
         + _figures(figures, "trade_off", "drift_by_place", "lengths") + _table(drift_table(run))),
        ("Abilities, item by item", _table(difference_table(run)) + _kinds(run)),
        ("What was trained on", _table(training_table(run)) + _audit(run) + _table(likeness_table(run))
         + _examples(run)),
        ("The gap: how surprising the targets are to the seed", _table(gap_table(run)) + _table(paired_table(run))
         + _figures(figures, "gap_distribution", "gap_by_place", "target_nll") + heat_map(run)),
        ("What training did to weights, activations and loss",
         _table(weights_table(run)) + _table(between_table(run))
         + _figures(figures, "training", "shift", "spectrum", "fisher", "activations", "interpolation")),
        ("The same prompts, answered by each arm", _answers(run)),
        ("Settings and environment", _settings(run)),
    ]
    title = escape(_title(run))
    contents = "".join(f'<a href="#s{number}">{escape(name)}</a>' for number, (name, _) in enumerate(sections))
    body = "".join(f'<section id="s{number}"><h2>{escape(name)}</h2>{text}</section>'
                   for number, (name, text) in enumerate(sections))
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>"
            f"<p>{escape(INTRODUCTION)}</p><nav>{contents}</nav>{body}</main></body></html>\n")


def markdown_page(run: Run) -> str:
    """The tables and conclusions as Markdown, for a terminal or a repository."""
    parts = [f"# {_title(run)}", INTRODUCTION, as_markdown(result_table(run)),
             "\n".join(f"- {line}" for line in findings(run)),
             "## Against the seed", as_markdown(difference_table(run)), "## What was trained on",
             as_markdown(training_table(run)), as_markdown(reasons_table(run)),
             *(as_markdown(table(run)) for table in (gap_table, paired_table, drift_table, likeness_table, weights_table,
                                               between_table))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(run: Run) -> str:
    return f"What fine-tuning did: {run.folder.resolve().name}"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
                   for name, *cells in table.rows)
    note = f"<p class=note>{escape(table.note)}</p>" if table.note else ""
    return ("<div class=scroll tabindex=0><table>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}")


def as_markdown(table: Table) -> str:
    """The table in Markdown, its note below it."""
    if not table.rows:
        return ""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{text}\n\n{table.note}".rstrip()


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>" if sentences else ""


def _figures(figures: dict[str, Figure], *names: str) -> str:
    shown = [figures[name] for name in names if name in figures]
    return '<div class=figures>' + "".join(
        f'<figure><img alt="{escape(figure.caption)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(figure.svg.encode()).decode()}"><figcaption>{escape(figure.caption)}</figcaption></figure>'
        for figure in shown) + "</div>"


def _audit(run: Run) -> str:
    audit = run.measures.get("audit")
    if not audit:
        return ""
    return _table(reasons_table(run)) + (
        f"<p>Asked for a share of {100 * audit['nominal_ratio']:.0f} % distilled targets; "
        f"{100 * audit['effective_share']:.1f} % of the training targets in fact differ from the original. "
        f"Tokens of the targets: {audit['tokens_original']:,} original, {audit['tokens_distilled']:,} distilled.</p>")


def _examples(run: Run) -> str:
    """Some accepted rewrites and, for every reason, some rejected ones."""
    groups: dict[str, list[Row]] = {}
    for row in run.distilled:
        groups.setdefault("accepted" if row["source"] == "rewrite" else row["reason"], []).append(row)
    parts = []
    for name in sorted(groups, key=lambda name: name != "accepted"):
        title = "Accepted rewrites" if name == "accepted" else f"Rejected: {name}"
        cards = "".join(_example(run, row) for row in groups[name][:EXAMPLES])
        parts.append(_details(f"{title} ({len(groups[name])})", cards, opened=name == "accepted"))
    return "".join(parts)


def _example(run: Run, row: Row) -> str:
    rewrite = run.rewrites.get(row["id"], {}).get("text", "")
    return (f'<div class=card><p class=prompt>{escape(row["instruction"])}</p><div class=answers>'
            f'{_answer("original", row["reference"])}{_answer("rewrite", rewrite)}</div></div>')


def _kinds(run: Run) -> str:
    suites = [suite for suite, row in run.measures["arms"][run.arms[0]]["suites"].items() if row.get("by_kind")]
    return "".join(_details(f"{suite} by kind, %", _table(kinds_table(run, suite))) for suite in suites)


def _answers(run: Run) -> str:
    """The general prompts one after the other; the answers of the arms side by side."""
    by_id = {arm: {row["id"]: row for row in run.answers[arm]["general"]} for arm in run.arms}
    parts = []
    for number, row in enumerate(run.answers[run.arms[0]]["general"]):
        answers = "".join(_answer(arm, by_id[arm][row["id"]]["output"], by_id[arm][row["id"]]["tokens"])
                          for arm in run.arms if row["id"] in by_id[arm])
        parts.append(_details(row["prompt"], f"<div class=answers>{answers}</div>", opened=number < OPEN))
    return "".join(parts)


def _answer(name: str, text: str, tokens: int | None = None) -> str:
    count = "" if tokens is None else f" <small>{tokens} tokens</small>"
    return f"<div class=answer><b>{escape(name)}</b>{count}<pre>{escape(text)}</pre></div>"


def _details(summary: str, content: str, opened: bool = True) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{content}</details>"


def _settings(run: Run) -> str:
    seconds = [[stage, f"{value:.0f}"] for stage, value in (run.summary.get("seconds") or {}).items()]
    environment = [[key, str(value)] for key, value in run.environment.items()]
    return (_details("config.toml", f"<pre>{escape(run.config)}</pre>")
            + _table(Table(["environment", ""], environment))
            + (_table(Table(["stage", "seconds"], seconds)) if seconds else ""))
