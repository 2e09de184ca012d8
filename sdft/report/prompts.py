"""Three general prompts for the first page, chosen by a rule and not by hand.

All prompts are sorted by the difference in words between the longest and the shortest answer of the base model and the
two main arms, the largest first. Shown are the first, the one a quarter down the list, and the middle one.
"""
from __future__ import annotations

from dataclasses import dataclass

from sdft.report.answer import main_arms
from sdft.report.run import Run
from sdft.results import AnswerLine

MOST_CHARACTERS = 240           # of an answer on the first page; the whole answer is in the folded list


@dataclass(frozen=True)
class Chosen:
    """A prompt, its rank in the sorted list (from 1), and the line of every shown arm."""

    rank: int
    prompt: str
    lines: dict[str, AnswerLine]


def chosen_prompts(run: Run) -> list[Chosen]:
    """The prompts at ranks 1, n // 4 + 1 and n // 2 + 1 of n; fewer where these are the same."""
    arms = ["base", *main_arms(run)]
    by_id = {arm: {line["id"]: line for line in run.answers[arm]["general"]} for arm in arms}
    shared = [id for id in by_id["base"] if all(id in lines for lines in by_id.values())]
    if not shared:
        return []

    def spread(id: str) -> int:
        words = [len(by_id[arm][id]["output"].split()) for arm in arms]
        return max(words) - min(words)

    ranked, n = sorted(shared, key=spread, reverse=True), len(shared)
    return [Chosen(rank + 1, by_id["base"][ranked[rank]]["prompt"], {arm: by_id[arm][ranked[rank]] for arm in arms})
            for rank in dict.fromkeys((0, n // 4, n // 2))]


def rule(run: Run) -> str:
    """How the prompts were chosen, and how many long answers collapsed."""
    chosen, n = chosen_prompts(run), len(run.answers["base"]["general"])
    if not chosen:
        return ""
    *most, last = (str(each.rank) for each in chosen)
    ranks = f"numbers {', '.join(most)} and {last}" if most else f"number {last}"
    text = (f"Chosen by rule: {n} open prompts, sorted by the difference in words between the longest and the shortest "
            f"answer. Shown: {ranks}.")
    counts = {arm: kept for arm in main_arms(run) if (kept := run.results[arm]["general"].get("long_answers"))}
    if counts:
        shrunk = " and ".join(f"{kept['shrunk']} with {arm}" for arm, kept in counts.items())
        text += (f" Of the {next(iter(counts.values()))['n']} answers that had 25 words or more before, {shrunk} "
                 "shrank to less than a quarter.")
    return text


def shortened(text: str) -> str:
    """The text on one line, cut after a word where it is long."""
    text = " ".join(text.split())
    if len(text) <= MOST_CHARACTERS:
        return text or "(empty answer)"
    return text[:MOST_CHARACTERS].rsplit(" ", 1)[0] + " …"
