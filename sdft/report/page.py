"""Write report.html, one file that needs no network, and report.md.

    write_report(folder)         or        sdft report DIR
"""
from __future__ import annotations

import base64
from html import escape
from pathlib import Path

from sdft.files import write_text
from sdft.report import tables
from sdft.report.drawing import Figure
from sdft.report.figures import draw_figures, heat_map
from sdft.report.findings import findings
from sdft.report.run import Run, read_run
from sdft.report.tables import Table, as_markdown
from sdft.results import DistilledLine

INTRODUCTION = (
    "This page compares several versions of one chat model, the arms. base: the model before training. sft: the base "
    "model, fine-tuned on the reference answers of a data set. sdft: the base model, fine-tuned in the same way on its "
    "own rewrites of these answers; an original answer stays where its rewrite fails a check (self-distillation, arXiv "
    "2402.13669). Other arms are baselines. The question is what each arm learned, and what it lost or changed "
    "elsewhere.")
EXAMPLES = 4          # records shown of the accepted rewrites, and for each reason of rejection
OPEN = 5              # general prompts whose answers are unfolded
STYLE = """
:root{color-scheme:light} *{box-sizing:border-box}
body{margin:0;background:#fff;color:#1b1c1d;font:16px/1.5 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:1rem clamp(.8rem,3vw,2rem) 4rem}
h1{font-size:clamp(1.4rem,4vw,2rem);line-height:1.2}
h2{font-size:1.3rem;margin:2.5rem 0 .8rem;border-bottom:1px solid #ddd;padding-bottom:.3rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;font-size:.9rem} a{color:#1559a6}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .7rem;text-align:right;border-bottom:1px solid #e4e4e4;vertical-align:top}
thead th{border-bottom:2px solid #999;vertical-align:bottom;max-width:9rem}
td{white-space:nowrap} th:first-child{text-align:left} tbody th{min-width:4rem} tbody tr:hover{background:#f5f7fa}
.note,figcaption,small{color:#5a5e63;font-size:.84rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1.2rem}
figure{margin:0} img{width:100%;height:auto;display:block}
details{border:1px solid #e0e0e0;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer;font-weight:600;overflow-wrap:anywhere}
.card{border-top:1px solid #eee;margin-top:.6rem;padding-top:.3rem}
.prompt{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0;color:#333;font-size:.9rem}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr));gap:.6rem;margin:.5rem 0}
.answer{background:#f6f7f9;border-radius:5px;padding:.5rem .7rem;min-width:0}
.low{text-decoration:underline;text-underline-offset:3px;text-decoration-color:#8a3200}
.heat span,.legend span{border-radius:2px} .legend{font-size:.88rem} .legend span{padding:.1rem .2rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0 0;font:.84rem/1.45 ui-monospace,monospace}
"""


def write_report(folder: Path) -> Path:
    """Write report.html and report.md of the run in `folder`; return the path of report.html.

    Raises SdftError when the folder holds no finished run, or when matplotlib (extra [report]) is missing.
    """
    run = read_run(folder)
    write_text(run.folder / "report.html", html_page(run))
    write_text(run.folder / "report.md", markdown_page(run))
    return run.folder / "report.html"


def html_page(run: Run) -> str:
    """The whole page as HTML."""
    figures = {figure.name: figure for figure in draw_figures(run)}
    sections = [
        ("Results", _table(tables.result_table(run)) + _list(findings(run))
         + _figures(figures, "trade_off", "drift_by_position", "lengths") + _table(tables.drift_table(run))),
        ("Paired comparisons of the scores", _table(tables.difference_table(run)) + _kinds(run)),
        ("Training data", _table(tables.training_table(run)) + _audit(run) + _table(tables.similarity_table(run))
         + _examples(run)),
        ("Gap between the targets and the base model", _table(tables.gap_table(run)) + _table(tables.paired_table(run))
         + _figures(figures, "gap_distribution", "gap_by_position", "target_nll") + heat_map(run)),
        ("Loss, weights and activations", _table(tables.weights_table(run)) + _table(tables.between_table(run))
         + _figures(figures, "training", "shift", "spectrum", "fisher", "activations", "interpolation")),
        ("General prompts and every arm's answers", _answers(run)),
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
    parts = [f"# {_title(run)}", INTRODUCTION, as_markdown(tables.result_table(run)),
             "\n".join(f"- {sentence}" for sentence in findings(run)),
             "## Paired comparisons of the scores", as_markdown(tables.difference_table(run)),
             "## Training data", as_markdown(tables.training_table(run)), as_markdown(tables.reasons_table(run)),
             "## Gap, drift and weights", *(as_markdown(table(run)) for table in (
                 tables.gap_table, tables.paired_table, tables.drift_table, tables.similarity_table,
                 tables.weights_table, tables.between_table))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(run: Run) -> str:
    return f"Effects of fine-tuning: {run.folder.resolve().name}"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head).replace(" ‖ ", "&nbsp;‖&nbsp;")
    lines = "".join(f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
                    for name, *cells in table.rows)
    return ("<div class=scroll tabindex=0><table>"
            f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
            + (f"<p class=note>{escape(table.note)}</p>" if table.note else ""))


def _list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>" if sentences else ""


def _figures(figures: dict[str, Figure], *names: str) -> str:
    return '<div class=figures>' + "".join(
        f'<figure><img alt="{escape(figure.caption)}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(figure.svg.encode()).decode()}"><figcaption>{escape(figure.caption)}</figcaption></figure>'
        for name in names if (figure := figures.get(name))) + "</div>"


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


def _kinds(run: Run) -> str:
    return "".join(_details(f"{name}: scores by kind of item, %", _table(tables.kinds_table(run, name)))
                   for name, suite in run.results["base"]["suites"].items() if suite.get("by_kind"))


def _answers(run: Run) -> str:
    """Every general prompt, with the answers of the arms side by side."""
    by_id = {arm: {line["id"]: line for line in run.answers[arm]["general"]} for arm in run.arms}
    parts = []
    for number, (id, line) in enumerate(by_id[run.arms[0]].items()):
        answers = "".join(_answer(arm, by_id[arm][id]["output"], by_id[arm][id]["tokens"])
                          for arm in run.arms if id in by_id[arm])
        parts.append(_details(line["prompt"], f"<div class=answers>{answers}</div>", opened=number < OPEN))
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
