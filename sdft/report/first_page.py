"""The first page of a report, as HTML and as Markdown: the answer, a figure, three prompts and the reasons."""
from __future__ import annotations

import re
from html import escape

from sdft.report.answer import NAMES, Card, cards, headline, introduction, loss_suite, name_of, reasons
from sdft.report.prompts import Chosen, chosen_prompts, rule, shortened
from sdft.report.run import Run

COUNTS = {1: "one prompt", 2: "two prompts", 3: "three prompts"}
INTERVALS = ("In brackets: 95 % intervals over test items; each version was trained once, so they do not cover a "
             "second training. p: how often chance alone makes such a difference.")


def first_page(run: Run, figure: str) -> str:
    """The HTML of the first page; `figure` is the HTML of the figure of what was learned and what was lost."""
    lines = "<br>".join(_coloured(run, sentence).replace("-", "\N{NON-BREAKING HYPHEN}") for sentence in headline(run))
    return (f"<h1>{lines}</h1><p class=lead>{_coloured(run, introduction(run))}</p>"
            f'<div class=cards>{"".join(_card(run, card) for card in cards(run))}</div><p class=note>{INTERVALS}</p>'
            f"<div class=pair>{figure}{_bars(run)}</div>{_prompts(run)}{_reasons(run)}")


def first_page_as_markdown(run: Run) -> str:
    """The same answer in Markdown."""
    parts = [f"# {' '.join(headline(run))}", introduction(run)]
    for card in cards(run):
        numbers = ", ".join(f"{name_of(arm)} {number}" for arm, number in card.numbers)
        parts.append(f"**{card.title}:** {numbers}. {' '.join(card.sentences)}")
    parts += [INTERVALS, *(f"- **{title}.** {text}" for title, text in reasons(run))]
    for chosen in chosen_prompts(run):
        parts.append(f"> {' '.join(chosen.prompt.split())}\n\n" + "\n".join(
            f"- {name_of(arm)}, {_words(line['output'])}{', collapsed' if chosen.collapsed(arm) else ''}: "
            f"{shortened(line['output'])}"
            for arm, line in chosen.lines.items()))
    return "\n\n".join([*parts, rule(run)])


def arm_class(run: Run, arm: str) -> str:
    """The CSS class of the arm's colour."""
    return f"arm{run.arms.index(arm) % 8}"


def _card(run: Run, card: Card) -> str:
    numbers = "".join(f'<span class="number {arm_class(run, arm)}"><b>{escape(number)}</b> '
                      f"<small>{escape(name_of(arm))}</small></span>" for arm, number in card.numbers)
    what, *rest = card.sentences
    listed = "".join(f"<li>{_coloured(run, sentence)}</li>" for sentence in rest)
    return (f"<div class=summary-card><h2>{escape(card.title)}</h2><div class=numbers>{numbers}</div>"
            f"<p>{escape(what)}</p>{listed and f'<ul>{listed}</ul>'}</div>")


def _prompts(run: Run) -> str:
    chosen = chosen_prompts(run)
    if not chosen:
        return ""
    parts = [f"<h2>What that looks like: {COUNTS[len(chosen)]}</h2><p class=note>{escape(rule(run))}</p>"]
    for each in chosen:
        answers = "".join(
            f'<div class="said {arm_class(run, arm)}"><b>{escape(name_of(arm))}</b> '
            f"<small>{_words(line['output'])}</small>{_mark(each, arm)}<p>{escape(shortened(line['output']))}</p></div>"
            for arm, line in each.lines.items())
        parts.append(f"<h3>“{escape(shortened(each.prompt))}”</h3><div class=side>{answers}</div>")
    return "".join(parts)


def _mark(chosen: Chosen, arm: str) -> str:
    return " <small class=mark>collapsed</small>" if chosen.collapsed(arm) else ""


def _bars(run: Run) -> str:
    """For every trained arm, three bars: kept and lost of what the base model solved, and what is new."""
    suite = loss_suite(run)
    if not suite or not run.trained:
        return ""
    solved, n = suite.solved, suite.results["base"]["n"]
    widest = max(1, solved + max(suite.results[arm]["gained"] for arm in run.trained))
    parts = []
    for arm in run.trained:
        result = suite.results[arm]
        counts = ("kept", solved - result["lost"]), ("lost", result["lost"]), ("new", result["gained"])
        bars = "".join(f'<i class={name} style="width:{98 * count / widest:.2f}%"></i>'
                       for name, count in counts if count) + ("<small>new</small>" if result["gained"] else "")
        words = " · ".join(f"<b>{count}</b> {name}" for name, count in counts)
        parts.append(f'<div class="bar {arm_class(run, arm)}"><b>{escape(name_of(arm))}</b> '
                     f"<span class=counts>{words}</span><div class=track>{bars}</div></div>")
    means = ", ".join(f"{name_of(arm)} {100 * suite.results[arm]['mean']:.0f} %" for arm in run.arms)
    return (f"<div><h2>What became of the {solved} {escape(suite.items)} it could {suite.solve}, and what is new</h2>"
            f"{''.join(parts)}<p class=note>New: of the {n - solved} that it could not {suite.solve} before. The mean "
            f"over all {n} counts lost and new together: {escape(means)}.</p></div>")


def _reasons(run: Run) -> str:
    found = reasons(run)
    if not found:
        return ""
    return "<h2>How it came about</h2><ul class=reasons>" + "".join(
        f"<li><b>{escape(title)}.</b> {_coloured(run, text)}</li>" for title, text in found) + "</ul>"


def _words(text: str) -> str:
    n = len(text.split())
    return f"{n} word{'' if n == 1 else 's'}"


def _coloured(run: Run, text: str) -> str:
    """The text as HTML; the names of sft and sdft have the colours of these arms."""
    text = escape(text)
    for arm in ("sft", "sdft"):
        if arm in run.results:
            name = re.compile(f"{NAMES[arm]}(, {arm})?", re.IGNORECASE)
            text = name.sub(rf'<span class="name {arm_class(run, arm)}">\g<0></span>', text)
    return text
