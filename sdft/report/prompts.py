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
PLACES = ("the first", "the one a quarter down", "the middle one")
LONG, SHRUNK = 25, 4            # a long answer has LONG words or more; it collapsed below 1 / SHRUNK of them


@dataclass(frozen=True)
class Chosen:
    """A prompt, its rank in the sorted list (from 1) and in words, and the line of every shown arm."""

    rank: int
    place: str
    prompt: str
    lines: dict[str, AnswerLine]

    def collapsed(self, arm: str) -> bool:
        """Whether the base model's answer is long, and the arm's has less than a quarter of its words."""
        before, after = (len(self.lines[name]["output"].split()) for name in ("base", arm))
        return before >= LONG and SHRUNK * after < before


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
    places: dict[int, str] = {}
    for rank, place in zip((0, n // 4, n // 2), PLACES, strict=True):
        places.setdefault(rank, place)
    return [Chosen(rank + 1, place, by_id["base"][ranked[rank]]["prompt"],
                   {arm: by_id[arm][ranked[rank]] for arm in arms}) for rank, place in places.items()]


def rule(run: Run) -> str:
    """How the prompts were chosen."""
    places = [each.place for each in chosen_prompts(run)]
    if not places:
        return ""
    shown = " and ".join(filter(None, (", ".join(places[:-1]), places[-1])))
    return (f"Chosen by rule, not by hand: of {len(run.answers['base']['general'])} open prompts, sorted by how much "
            f"the versions' answers differ in length, {shown}.")


def shortened(text: str) -> str:
    """The text on one line, cut after a word where it is long."""
    text = " ".join(text.split())
    if len(text) <= MOST_CHARACTERS:
        return text or "(empty answer)"
    return text[:MOST_CHARACTERS].rsplit(" ", 1)[0] + " …"
