"""Write report.html, one file that needs no network, and report.md.

    write_report(folder)         or        sdft report DIR
"""
from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from sdft.files import write_text
from sdft.report import suite_tables, tables
from sdft.report.answer import headline
from sdft.report.drawing import Figure
from sdft.report.figures import draw_figures
from sdft.report.findings import findings
from sdft.report.first_page import first_page, first_page_as_markdown
from sdft.report.heat_map import heat_map
from sdft.report.run import Run, read_run
from sdft.report.sequence import sequence_findings, sequence_table
from sdft.report.style import style_sheet
from sdft.report.tables import Table, as_markdown
from sdft.report.trajectory import trajectory_findings
from sdft.results import DistilledLine

ARMS = (
    "The arms are versions of one chat model. base: the model before training. sft: the base model, fine-tuned on the "
    "reference answers of a data set. sdft: the base model, fine-tuned in the same way on its own rewrites of these "
    "answers; an original answer stays where its rewrite fails a check (self-distillation, arXiv 2402.13669). Other "
    "arms are baselines.")
EXAMPLES = 4          # records shown of the accepted rewrites, and for each reason of rejection


def write_report(folder: Path) -> Path:
    """Write report.html and report.md of the run in `folder`; return the path of report.html.

    Raises SdftError when the folder holds no finished run, or when matplotlib (extra [report]) is missing.
    """
    run = read_run(folder)
    write_text(run.folder / "report.html", html_page(run))
    write_text(run.folder / "report.md", markdown_page(run))
    return run.folder / "report.html"


def html_page(run: Run) -> str:
    """The whole page as HTML: the answer, then every number in folded parts."""
    figures = {figure.name: figure for figure in draw_figures(run)}
    sections = [
        ("results", "Every number, with intervals",
         f"<p>{escape(ARMS)}</p>" + _table(tables.result_table(run)) + _table(suite_tables.forgetting_table(run))
         + _table(sequence_table(run)) + _list(_findings(run))
         + _figures(figures, "trade_off", "trajectory", "drift_by_position", "lengths")
         + _table(tables.drift_table(run)) + _table(suite_tables.difference_table(run)) + _kinds(run)),
        ("answers", f"All {len(run.answers['base']['general'])} prompts side by side", _answers(run)),
        ("data", "Training data", _table(tables.training_table(run)) + _audit(run)
         + _table(tables.similarity_table(run)) + _examples(run)),
        ("gap", "Gap between the targets and the base model",
         _table(tables.gap_table(run)) + _table(tables.paired_table(run))
         + _figures(figures, "gap_distribution", "gap_by_position", "target_nll") + heat_map(run)),
        ("training", "Training and weights",
         _table(tables.weights_table(run)) + _table(tables.between_table(run))
         + _figures(figures, "training", "shift", "spectrum", "fisher", "activations", "interpolation")),
        ("settings", "Settings and environment", _settings(run)),
    ]
    sections = [(name, title, content) for name, title, content in sections if content]
    # A browser opens the folded part that holds the target of a link, so the id is inside it.
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    parts = "".join(f"<details class=part><summary>{escape(title)}</summary><div id={name}>{content}</div></details>"
                    for name, title, content in sections)
    title, first = escape(" ".join(headline(run))), first_page(run, _figures(figures, "learned_and_lost"))
    return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{style_sheet()}</style></head><body><main>{first}"
            f"<nav>{links}</nav>{parts}</main></body></html>\n")


def markdown_page(run: Run) -> str:
    """The answer, the tables and the conclusions as Markdown, for a terminal or a repository."""
    parts = [first_page_as_markdown(run), "## Every number, with intervals", ARMS,
             as_markdown(tables.result_table(run)), as_markdown(suite_tables.forgetting_table(run)),
             as_markdown(sequence_table(run)),
             "\n".join(f"- {sentence}" for sentence in _findings(run)),
             "## Paired comparisons", as_markdown(suite_tables.difference_table(run)),
             *(f"{name} by kind of item:\n\n{as_markdown(suite_tables.kinds_table(run, name))}"
               for name in _suites_with_kinds(run)),
             "## Training data", as_markdown(tables.training_table(run)), as_markdown(tables.reasons_table(run)),
             "## Gap, drift and weights", *(as_markdown(table(run)) for table in (
                 tables.gap_table, tables.paired_table, tables.drift_table, tables.similarity_table,
                 tables.weights_table, tables.between_table))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head).replace(" ‖ ", "&nbsp;‖&nbsp;")
    lines = "".join(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
                    for name, *cells in table.rows)
    return ("<div class=scroll tabindex=0><table>"
            f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
            + (f"<p class=note>{escape(table.note)}</p>" if table.note else ""))


def _findings(run: Run) -> list[str]:
    """All conclusions as sentences."""
    return findings(run) + trajectory_findings(run) + sequence_findings(run)


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>" if sentences else ""


def _figures(figures: dict[str, Figure], *names: str) -> str:
    drawn = "".join(
        f'<figure><img alt="{escape(figure.caption)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(figure.svg.encode()).decode()}"><figcaption>{escape(figure.caption)}</figcaption></figure>'
        for name in names if (figure := figures.get(name)))
    return f"<div class=figures>{drawn}</div>" if drawn else ""


def _audit(run: Run) -> str:
    audit = run.measures.get("audit")
    if not audit:
        return ""
    return _table(tables.reasons_table(run)) + (
        f"<p>{100 * audit['nominal_ratio']:.0f} % of the training targets were to be distilled; "
        f"{100 * audit['effective_share']:.1f} % of the targets differ from the original. Without "
        f"end-of-turn tokens, the original targets have {audit['tokens_original']:,} tokens in total, and the training "
        f"targets {audit['tokens_distilled']:,}.</p>")


def _examples(run: Run) -> str:
    """Some accepted rewrites, and some that were rejected for each reason."""
    rewrites = {id: line["text"] for id, line in run.rewrites.items()}
    groups: dict[str, list[DistilledLine]] = {}
    for line in run.distilled:
        groups.setdefault("accepted" if line["source"] == "rewrite" else line["reason"], []).append(line)
    parts = []
    for name in sorted(groups, key=lambda name: name != "accepted"):
        title = "Accepted rewrites" if name == "accepted" else f"Rejected: {name}"
        cards = "".join(
            f'<div class=card><p class=prompt>{escape(line["instruction"])}</p><div class=answers>'
            f'{_answer("original", line["reference"])}{_answer("rewrite", rewrites.get(line["id"], ""))}</div></div>'
            for line in groups[name][:EXAMPLES])
        parts.append(_details(f"{title} ({len(groups[name])})", cards, opened=name == "accepted"))
    return "".join(parts)


def _suites_with_kinds(run: Run) -> list[str]:
    return [name for name, suite in run.results["base"]["suites"].items() if suite["by_kind"]]


def _kinds(run: Run) -> str:
    return "".join(_details(f"{name} by kind of item", _table(suite_tables.kinds_table(run, name)))
                   for name in _suites_with_kinds(run))


def _answers(run: Run) -> str:
    """Every general prompt, with the answers of the arms side by side."""
    by_id = {arm: {line["id"]: line for line in run.answers[arm]["general"]} for arm in run.arms}
    parts = []
    for id, line in by_id[run.arms[0]].items():
        answers = "".join(_answer(arm, by_id[arm][id]["output"], by_id[arm][id]["tokens"])
                          for arm in run.arms if id in by_id[arm])
        parts.append(_details(line["prompt"], f"<div class=answers>{answers}</div>"))
    return "".join(parts)


def _answer(name: str, text: str, tokens: int | None = None) -> str:
    count = "" if tokens is None else f" <small>{tokens} tokens</small>"
    return f"<div class=answer><b>{escape(name)}</b>{count}<pre>{escape(text)}</pre></div>"


def _details(summary: str, content: str, opened: bool = True) -> str:
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{content}</details>"


def _settings(run: Run) -> str:
    environment = Table(["environment", ""], [[key, str(value)] for key, value in run.environment.items()])
    seconds = Table(["stage", "seconds"], [[stage, f"{value:.0f}"] for stage, value in run.seconds.items()])
    return _details("config.toml", f"<pre>{escape(run.config)}</pre>") + _table(environment) + _table(seconds)
