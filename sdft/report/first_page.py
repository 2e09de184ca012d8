"""The first page of a report, as HTML and as Markdown: the answer, a figure, three prompts and the reasons."""
from __future__ import annotations

from html import escape

from sdft.report.answer import Card, cards, headline, introduction, loss_suite, name_of, reasons
from sdft.report.prompts import chosen_prompts, rule, shortened
from sdft.report.run import Run

COUNTS = {1: "one prompt", 2: "two prompts", 3: "three prompts"}
INTERVALS = "In brackets: 95 % intervals. p: probability of such a difference by chance alone."


def first_page(run: Run, figure: str) -> str:
    """The HTML of the first page; `figure` is the HTML of the figure of what was learned and what was lost."""
    lines = "<br>".join(escape(sentence).replace("-", "\N{NON-BREAKING HYPHEN}") for sentence in headline(run))
    return (f'<p class=kicker>{escape(_kicker(run))}</p><h1>{lines}</h1>'
            f"<p class=lead>{_coloured(run, introduction(run))}</p>"
            f'<div class=cards>{"".join(_card(run, card) for card in cards(run))}</div><p class=note>{INTERVALS}</p>'
            f"<div class=pair>{figure}{_bars(run)}</div>{_prompts(run)}{_reasons(run)}")


def first_page_as_markdown(run: Run) -> str:
    """The same answer in Markdown."""
    parts = [f"# {' '.join(headline(run))}", introduction(run)]
    for card in cards(run):
        numbers = ", ".join(f"{_label(arm)} {number}" for arm, number in card.numbers)
        parts.append(f"**{card.title}:** {numbers}. {' '.join(card.sentences)}")
    parts += [INTERVALS, *(f"- **{title}.** {text}" for title, text in reasons(run))]
    for chosen in chosen_prompts(run):
        parts.append(f"> {' '.join(chosen.prompt.split())}\n\n" + "\n".join(
            f"- {_label(arm)}, {_words(line['output'])}: {shortened(line['output'])}"
            for arm, line in chosen.lines.items()))
    return "\n\n".join([*parts, rule(run)])


def arm_class(run: Run, arm: str) -> str:
    """The CSS class of the arm's colour."""
    return f"arm{run.arms.index(arm) % 8}"


def _kicker(run: Run) -> str:
    training = next((results["training"] for results in run.trained.values() if "training" in results), None)
    settings, texts = run.settings, ["sdft"]
    texts += [text for text in (settings.get("model", {}).get("model"), f"task {run.task}") if text]
    texts += [f"{training['records']} training records"] if training else []
    texts += {"lora": ["LoRA"], "full": ["all weights trained"]}.get(settings.get("train", {}).get("method", ""), [])
    return " · ".join([*texts, "each version trained once"])


def _card(run: Run, card: Card) -> str:
    numbers = "".join(f'<span class="number {arm_class(run, arm)}"><b>{escape(number)}</b> '
                      f"<small>{escape(_label(arm))}</small></span>" for arm, number in card.numbers)
    what, *rest = card.sentences
    return (f"<div class=summary-card><h2>{escape(card.title)}</h2><div class=numbers>{numbers}</div>"
            f"<p>{escape(what)}</p><ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in rest)}</ul></div>")


def _prompts(run: Run) -> str:
    chosen = chosen_prompts(run)
    if not chosen:
        return ""
    parts = [f"<h2>What that looks like: {COUNTS[len(chosen)]}</h2><p class=note>{escape(rule(run))}</p>"]
    for each in chosen:
        answers = "".join(
            f'<div class="said {arm_class(run, arm)}"><b>{escape(_full_label(arm))}</b> '
            f"<small>{_words(line['output'])}</small><p>{escape(shortened(line['output']))}</p></div>"
            for arm, line in each.lines.items())
        parts.append(f"<h3>“{escape(shortened(each.prompt))}”</h3><div class=side>{answers}</div>")
    return "".join(parts)


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
                       for name, count in counts if count)
        words = " · ".join(f"<b>{count}</b> {name}" for name, count in counts)
        parts.append(f'<div class="bar {arm_class(run, arm)}"><b>{escape(_full_label(arm))}</b> '
                     f"<span class=counts>{words}</span><div class=track>{bars}</div></div>")
    means = ", ".join(f"{_label(arm)} {100 * suite.results[arm]['mean']:.0f} %" for arm in run.arms)
    return (f"<div><h2>What became of {n} {escape(suite.items)}</h2>{''.join(parts)}<p class=note>Kept and lost: of "
            f"the {solved} that the model could {suite.solve} before. New: of the other {n - solved}. The mean alone "
            f"would say: {escape(means)}.</p></div>")


def _reasons(run: Run) -> str:
    found = reasons(run)
    if not found:
        return ""
    return "<h2>How it came about</h2><ul class=reasons>" + "".join(
        f"<li><b>{escape(title)}.</b> {escape(text)}</li>" for title, text in found) + "</ul>"


def _label(arm: str) -> str:
    return "before" if arm == "base" else arm


def _full_label(arm: str) -> str:
    return f"{name_of(arm)} ({arm})" if arm in ("sft", "sdft") else _label(arm)


def _words(text: str) -> str:
    n = len(text.split())
    return f"{n} word{'' if n == 1 else 's'}"


def _coloured(run: Run, text: str) -> str:
    """The text as HTML; the names of sft and sdft in brackets have their colours."""
    text = escape(text)
    for arm in ("sft", "sdft"):
        if arm in run.results:
            text = text.replace(f", {arm})", f', <b class="{arm_class(run, arm)}">{arm}</b>)')
    return text
