"""The answer of a run in words: what each arm learned, what it lost, and how that came about.

Every wording depends on the numbers: an interval and a p-value decide whether a direction is stated (tables.direction).

    headline    a sentence for each of the two main arms
    cards       learned, kept and collapsed: the numbers of every arm, and what they say
    reasons     what is lost at equal learning, the targets, the first tokens, the weights
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp

from sdft.report.run import Run
from sdft.report.tables import direction, nats, p_value, verdict
from sdft.results import Comparison, Share, SuiteResult

NAMES = {"base": "before", "sft": "plain fine-tuning", "sdft": "self-distillation"}
WAYS = {"sft": "on the reference answers of a data set (plain fine-tuning, sft)",
        "sdft": "on its own rewrites of the reference answers (self-distillation, sdft)"}
TIMES = {1: "once", 2: "twice"}


@dataclass(frozen=True)
class Card:
    """One measure of every arm: (arm, number) pairs, and sentences about them."""

    title: str
    numbers: list[tuple[str, str]]
    sentences: list[str]


@dataclass(frozen=True)
class LossSuite:
    """The suite that shows what was lost: its results by arm, and the words for its items."""

    items: str                          # "instructions"
    solve: str                          # "follow"
    description: str
    results: dict[str, SuiteResult]
    noise_floor: Share | None

    @property
    def solved(self) -> int:
        """Number of items that the base model solves."""
        return self.results["base"]["solved_by_base"]


def name_of(arm: str) -> str:
    """The arm's name within a sentence."""
    return NAMES.get(arm, f"arm {arm}")


def main_arms(run: Run) -> list[str]:
    """The two arms of the headline: sft and sdft where they were trained, then the others in their order."""
    return sorted(run.trained, key=lambda arm: ("sft", "sdft").index(arm) if arm in WAYS else 2)[:2]


def loss_suite(run: Run) -> LossSuite | None:
    """The suite `elaborate`, else the long part of `instructions`, else the first other suite that is not the task.

    None where the run has no such suite, or where the base model solves none of its items.
    """
    first = ("elaborate", "instructions")
    for name in sorted(run.results["base"]["suites"], key=lambda name: first.index(name) if name in first else 2):
        suites = {arm: results["suites"][name] for arm, results in run.results.items()}
        long = {arm: suite["parts"]["long"] for arm, suite in suites.items() if "long" in suite.get("parts", {})}
        floor = None if long else suites["base"].get("noise_floor")
        results = long or suites
        if name != run.task and all("forgetting" in results[arm] for arm in run.trained):
            if name not in first:
                return LossSuite(f"items of {name}", "solve", "of another suite than the task", results, floor)
            return LossSuite("instructions", "follow", "each asks for more than one word, such as a list or a letter",
                            results, floor)
    return None


def introduction(run: Run) -> str:
    """What was trained, and what the page shows."""
    others = [arm for arm in run.trained if arm not in WAYS]
    ways = [WAYS[arm] for arm in main_arms(run) if arm in WAYS]
    ways += [f"in other ways (baselines: {', '.join(others)})"] if others else []
    model, n = run.settings.get("model", {}).get("model"), len(run.trained)
    lost = "" if loss_suite(run) else " What was lost elsewhere was not measured item by item."
    return (f"One chat model{f' ({model})' if model else ''} was trained {TIMES.get(n, f'{n} times')}"
            f"{': ' if ways else ''}{', and '.join(ways)}. This page shows what each version learned and what it "
            f"lost.{lost}")


# ------------------------------------------------------------------------------------------------------------- headline
def headline(run: Run) -> list[str]:
    """For each main arm one sentence: whether it learned the task, and how much it lost."""
    arms, sentences = main_arms(run), []
    for arm in arms:
        after_sft = arm != "sft" and arms[0] == "sft"
        clauses = [clause for clause in (_learned(run, arm, after_sft), _lost(run, arm, after_sft)) if clause]
        goods = {good for _, good in clauses}
        joined = (" but " if goods == {True, False} else " and ").join(words for words, _ in clauses)
        sentences.append(f"{_start(name_of(arm))} {joined}." if clauses else "")
    return [sentence for sentence in sentences if sentence] or ["No version of the model was trained."]


def _learned(run: Run, arm: str, after_sft: bool) -> tuple[str, bool | None] | None:
    """Whether the arm learned the task, in words, and whether that is good; None for neither."""
    suite = run.results[arm]["suites"].get(run.task)
    if not suite or "against_base" not in suite:
        return None
    task, change = "it" if after_sft else "the task", direction(suite["against_base"])
    points = f"{100 * suite['against_base']['difference']:.0f}"
    if change < 0:
        return f"got worse at {task}", False
    if not change:
        likely = float(points) > 0
        return (f"may have learned {task} (+{points} points)", None) if likely else (
            f"did not detectably learn {task}", False)
    sft = run.results["sft"]["suites"][run.task].get("against_base") if after_sft else None
    if not sft or direction(sft) < 1:
        return f"learned {task}", True
    further = direction(suite["against_sft"]) if "against_sft" in suite else 0
    return {1: "learned more of it", 0: "learned it too", -1: "learned less of it"}[further], further >= 0


def _lost(run: Run, arm: str, after_sft: bool) -> tuple[str, bool | None] | None:
    """What the arm lost, in words, and whether that is good; None for neither."""
    suite = loss_suite(run)
    if not suite:
        return None
    lost, comparison = suite.results[arm]["forgetting"], suite.results[arm].get("forgetting_against_sft")
    detected = lost["low"] > (suite.noise_floor["high"] if suite.noise_floor else 0)
    share = f"{100 * lost['share']:.0f} %"
    if after_sft and comparison and (change := direction(comparison)):
        return (f"lost more: {share}", False) if change > 0 else (f"lost less: {share}", True)
    if not detected:
        return "lost nothing detectable", None
    if after_sft and comparison:
        return f"lost {share}, not detectably more or less", None
    return f"lost {share} of the {suite.items} that the model could {suite.solve}", False


# ---------------------------------------------------------------------------------------------------------------- cards
def cards(run: Run) -> list[Card]:
    """What was learned, what was kept, and which long answers collapsed: the cards that the run has measures for."""
    return [card for card in (_learned_card(run), _kept_card(run), _collapsed_card(run)) if card]


def _learned_card(run: Run) -> Card:
    suites = {arm: results["suites"][run.task] for arm, results in run.results.items()}
    metric, n = suites["base"]["metric"], suites["base"]["n"]
    sentences = [f"{_start(metric)} on {n} new items of the task {run.task}."]
    for arm in main_arms(run):
        if "against_base" in suites[arm]:
            sentences.append(f"{_start(name_of(arm))}: {verdict(suites[arm]['against_base'])}.")
    sentences += _against_sft(run, ((arm, suites[arm].get("against_sft")) for arm in main_arms(run)),
                              "learned more", "learned less")
    return Card("Learned", [(arm, f"{100 * suite['mean']:.0f} %") for arm, suite in suites.items()], sentences)


def _kept_card(run: Run) -> Card | None:
    suite = loss_suite(run)
    if not suite:
        return None
    solved = suite.solved
    sentences = [f"{_start(suite.items)} that the model could {suite.solve} before: {suite.description}."]
    for arm in main_arms(run):
        lost = suite.results[arm]["forgetting"]
        sentences.append(f"{_start(name_of(arm))} lost {suite.results[arm]['lost']} of {solved}: "
                         f"{100 * lost['share']:.0f} % ({100 * lost['low']:.0f} to {100 * lost['high']:.0f}).")
    sentences += _against_sft(run, ((arm, suite.results[arm].get("forgetting_against_sft")) for arm in main_arms(run)),
                              "lost more", "lost less")
    if suite.noise_floor:
        again = round(suite.noise_floor["share"] * suite.noise_floor["n"])
        sentences.append(f"Asked again, the untrained model itself failed {again} of them: so much is chance.")
    return Card("Kept", [("base", str(solved)), *((arm, f"{solved - suite.results[arm]['lost']} of {solved}")
                                                  for arm in run.trained)], sentences)


def _collapsed_card(run: Run) -> Card | None:
    answers = {arm: kept for arm, results in run.trained.items() if (kept := results["general"].get("long_answers"))}
    if not answers:
        return None
    n = next(iter(answers.values()))["n"]
    still = " and ".join(f"{answers[arm]['kept']} with {name_of(arm)}" for arm in main_arms(run) if arm in answers)
    sentences = [f"Answers to open prompts that shrank to less than a quarter of their words, of {n} that had 25 "
                 "words or more before.", f"Still of 25 words or more: {still}."]
    sentences += _against_sft(run, ((arm, answers[arm].get("against_sft")) for arm in main_arms(run)
                                    if arm in answers), "kept more", "kept fewer")
    return Card("Collapsed", [(arm, f"{kept['shrunk']} of {n}") for arm, kept in answers.items()], sentences)


def _against_sft(run: Run, compared: Iterator[tuple[str, Comparison | None]], more: str, less: str) -> list[str]:
    """For each comparison with sft one sentence, with its p-value: Holm's, unless the end point is primary."""
    sentences = []
    for arm, comparison in compared:
        if comparison:
            p, change = comparison.get("p_holm", comparison.get("p")), direction(comparison)
            value = "" if p is None else f" (p {'' if p < 0.001 else '= '}{p_value(p)})"
            sentences.append(f"{_start(name_of(arm))} {more if change > 0 else less} than plain fine-tuning{value}."
                             if change else f"Between the two, no difference was detected{value}.")
    return sentences


# -------------------------------------------------------------------------------------------------------------- reasons
def reasons(run: Run) -> list[tuple[str, str]]:
    """How it came about: (title, text) of arms that learned equally much, of targets, first tokens and weights."""
    found = (("At equal learning", _matched(run)), ("Targets", _targets(run)), ("First words", _first_words(run)),
             ("Weights", _weights(run)))
    return [(title, text) for title, text in found if text]


def _matched(run: Run) -> str:
    for arm in main_arms(run):
        if matched := run.results[arm].get("matched"):
            lost, other = 100 * matched["forgetting"], 100 * matched["forgetting_with"]
            says = (f"{name_of(arm)} lost {'less' if matched['high'] < 0 else 'more'}"
                    if not matched["low"] <= 0 <= matched["high"] else "no difference was detected")
            return (f"Where both had learned the task equally well ({100 * matched['accuracy']:.0f} % right), plain "
                    f"fine-tuning had lost {other:.0f} % and {name_of(arm)} {lost:.0f} % of {matched['n']} "
                    f"instructions: {says} ({100 * matched['difference']:+.0f} points, {100 * matched['low']:+.0f} to "
                    f"{100 * matched['high']:+.0f}).")
    return ""


def _targets(run: Run) -> str:
    if not {"original", "distilled"} <= run.gaps.keys():
        return ""
    before, after = run.gaps["original"]["nll"], run.gaps["distilled"]["nll"]
    paired = run.gaps["distilled"].get("paired")
    nearer = ("nearer to" if paired["high"] < 0 else "farther from" if paired["low"] > 0 else "") if paired else ""
    says = f"Its own rewrites are {nearer} what the model would say" if nearer else (
        "No difference was detected in how near its own rewrites are to what the model would say")
    return (f"{says}: before training it gives a token of the reference answers a typical probability of "
            f"{_probability(before)}, and a token of the answers that self-distillation trains on "
            f"{_probability(after)} ({before:.2f} and {after:.2f} nats per token).")


def _first_words(run: Run) -> str:
    general = {arm: run.results[arm]["general"] for arm in main_arms(run) if "kl8" in run.results[arm]["general"]}
    if not general:
        return ""
    first = " and ".join(f"{nats(drift['kl8'])} with {name_of(arm)}" for arm, drift in general.items())
    whole = " and ".join(nats(drift["kl"]) for drift in general.values())
    text = (f"Distance from the untrained model's choice of the next token, over the first 8 tokens of its answers: "
            f"{first}; over whole answers: {whole} (KL divergence, nats per token).")
    for arm, drift in general.items():
        paired = drift.get("kl8_against_sft")
        if paired and not paired["low"] <= 0 <= paired["high"]:
            text = (f"{_start(name_of(arm))} changed how an answer begins {'less' if paired['high'] < 0 else 'more'} "
                    f"than plain fine-tuning. {text}")
    return text


def _weights(run: Run) -> str:
    moved = {arm: shift["total"] for arm in main_arms(run) if (shift := run.results[arm].get("shift"))}
    if len(moved) < 2:
        return ""
    (first, reference), (second, value) = moved.items()
    times = f"{value / reference:.2f} times as far" if reference > 0 else "not comparably far"
    return (f"The weights moved {times} with {name_of(second)} as with {name_of(first)} (norm of the change: "
            f"{value:.2f} and {reference:.2f}; no interval, since each was trained once).")


def _probability(nll: float) -> str:
    """The geometric mean of the tokens' probabilities, as '1.0 %'."""
    percent = 100 * exp(-nll)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"


def _start(text: str) -> str:
    return text[:1].upper() + text[1:]
