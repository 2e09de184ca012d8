"""The answer of a run in words: what each arm learned, what it lost, and how that came about.

Every wording depends on the numbers: an interval and a p-value decide whether a direction is stated (tables.direction).

    headline    a sentence for each of the two main arms
    cards       learned, lost and collapsed: the numbers of every arm, and what they say
    reasons     what is lost at equal learning, the targets, the first tokens, the weights
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp

from sdft.report.run import Run
from sdft.report.tables import direction, nats, p_value
from sdft.results import Comparison, Difference, Share, SuiteResult

NAMES = {"base": "before training", "sft": "plain fine-tuning", "sdft": "self-distillation"}
WAYS = {"sft": "on the reference answers (plain fine-tuning, sft)",
        "sdft": "on its own rewrites of the reference answers, which it made once before training, seeing each "
                "reference (self-distillation, sdft)"}
TASKS = {"passages": "questions about short passages, with one-word answers"}
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
    description: str                    # a sentence, or empty
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
                return LossSuite(f"items of {name}", "solve", "", results, floor)
            such = "a list, a story or a letter to a friend" if name == "elaborate" else "a list or three paragraphs"
            description = f"Each asks for more than a word, such as {such}." if name == "elaborate" or long else ""
            return LossSuite("instructions", "follow", description, results, floor)
    return None


def introduction(run: Run) -> str:
    """What was trained, on what, and in which ways."""
    others = [arm for arm in run.trained if arm not in WAYS]
    ways = [WAYS[arm] for arm in main_arms(run) if arm in WAYS]
    ways += [f"in other ways (baselines: {', '.join(others)})"] if others else []
    model, n = run.settings.get("model", {}).get("model"), len(run.trained)
    examples = next((f" on {arm['training']['records']} examples" for arm in run.trained.values()), "")
    task = f" of the task {run.task}{f' ({TASKS[run.task]})' if run.task in TASKS else ''}" if examples else ""
    lost = "" if loss_suite(run) else " What was lost elsewhere was not measured item by item."
    return (f"One chat model{f', {model},' if model else ''} was trained {TIMES.get(n, f'{n} times')}{examples}{task}"
            f"{': ' if ways else ''}{', and '.join(ways)}.{lost}")


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
    if change < 0:
        return f"got worse at {task}", False
    if not change:
        points = round(100 * suite["against_base"]["difference"])
        return (f"gained {_count(points, 'point')} in the task, which could be chance,", False) if points > 0 else (
            f"did not detectably learn {task}", False)
    sft = run.results["sft"]["suites"][run.task].get("against_base") if after_sft else None
    if not sft or direction(sft) < 1:
        return f"learned {task}", True
    further = direction(suite["against_sft"]) if "against_sft" in suite else 0
    return {1: "learned more of it", 0: "learned it too", -1: "learned less of it"}[further], further >= 0


def _lost(run: Run, arm: str, after_sft: bool) -> tuple[str, bool | None] | None:
    """How many items the arm lost, in words, and whether that is good; None for neither."""
    suite = loss_suite(run)
    if not suite:
        return None
    share, comparison = suite.results[arm]["forgetting"], suite.results[arm].get("forgetting_against_sft")
    detected = share["low"] > (suite.noise_floor["high"] if suite.noise_floor else 0)
    lost = suite.results[arm]["lost"]
    if after_sft and comparison and (change := direction(comparison)):
        return (f"lost more: {lost}", False) if change > 0 else (f"lost fewer: {lost}", True)
    words = f"lost {lost or 'none'}" + ("" if after_sft else f" of the {suite.solved} {suite.items} it could "
                                        f"{suite.solve} before")
    if not detected:
        return words + (", which could be chance" if lost else ""), None
    if after_sft and comparison:
        return f"{words}; the difference could be chance", None
    return words, False


# ---------------------------------------------------------------------------------------------------------------- cards
def cards(run: Run) -> list[Card]:
    """What was learned, what was lost, and which long answers collapsed: the cards that the run has measures for."""
    return [card for card in (_learned_card(run), _lost_card(run), _collapsed_card(run)) if card]


def _learned_card(run: Run) -> Card:
    suites = {arm: results["suites"][run.task] for arm, results in run.results.items()}
    metric, n = suites["base"]["metric"], suites["base"]["n"]
    sentences = [f"{_start(metric)} on {n} new items of the task."]
    for arm in main_arms(run):
        if change := suites[arm].get("against_base"):
            chance = "" if direction(change) else f": could be chance{_in_brackets(change)}"
            sentences.append(f"{_start(name_of(arm))}: {_points(change, 1)}{chance}.")
    sentences += _against_sft(run, ((arm, suites[arm].get("against_sft")) for arm in main_arms(run)),
                              "learned more", "learned less")
    return Card("Learned", [(arm, f"{100 * suite['mean']:.0f} %") for arm, suite in suites.items()], sentences)


def _lost_card(run: Run) -> Card | None:
    suite = loss_suite(run)
    if not suite or not run.trained:
        return None
    solved, n = suite.solved, suite.results["base"]["n"]
    sentences = [f"Of the {solved} {suite.items} (of {n}) that the model could {suite.solve} before, checked by a "
                 f"program. {suite.description}".rstrip()]
    for arm in main_arms(run):
        lost = suite.results[arm]["forgetting"]
        sentences.append(f"{_start(name_of(arm))}: {100 * lost['share']:.0f} % ({100 * lost['low']:.0f} to "
                         f"{100 * lost['high']:.0f}).")
    sentences += _against_sft(run, ((arm, suite.results[arm].get("forgetting_against_sft")) for arm in main_arms(run)),
                              "lost more", "lost fewer")
    if floor := suite.noise_floor:
        sentences.append(f"Asked a second time, the untrained model failed {round(floor['share'] * floor['n'])} of "
                         f"these {floor['n']} ({100 * floor['share']:.0f} %): that much can be chance.")
    return Card("Lost", [(arm, f"{suite.results[arm]['lost']} of {solved}") for arm in run.trained], sentences)


def _collapsed_card(run: Run) -> Card | None:
    answers = {arm: kept for arm, results in run.trained.items() if (kept := results["general"].get("long_answers"))}
    if not answers:
        return None
    n = next(iter(answers.values()))["n"]
    sentence = (f"Answers to open prompts that shrank to less than a quarter of their words, of the {n} that had 25 or "
                "more before.")
    return Card("Collapsed", [(arm, f"{kept['shrunk']} of {n}") for arm, kept in answers.items()], [sentence])


def _against_sft(run: Run, compared: Iterator[tuple[str, Comparison | None]], more: str, less: str) -> list[str]:
    """For each comparison with sft one sentence, with its p-value."""
    sentences = []
    for arm, comparison in compared:
        if comparison:
            change, p = direction(comparison), _in_brackets(comparison)
            sentences.append(f"{_start(name_of(arm))} {more if change > 0 else less} than plain fine-tuning{p}."
                             if change else f"The difference between the two could be chance{p}.")
    return sentences


def _in_brackets(comparison: Comparison) -> str:
    """The p-value of a comparison as ' (p = 0.122)': Holm's, unless the end point is primary; empty without one."""
    p = comparison.get("p_holm", comparison.get("p"))
    corrected = "corrected " if "p_holm" in comparison else ""
    return "" if p is None else f" ({corrected}p {'' if p < 0.001 else '= '}{p_value(p)})"


def _points(change: Difference, digits: int) -> str:
    """A difference with its interval in percentage points: '+7.3 points (−1.3 to +15.3)'."""
    difference, low, high = (f"{100 * value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
                             for value in (change["difference"], change["low"], change["high"]))
    return f"{difference} points ({low} to {high})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
            says = (f"{name_of(arm)} lost {'fewer' if matched['high'] < 0 else 'more'}"
                    if not matched["low"] <= 0 <= matched["high"] else "the difference could be chance")
            return (f"Where both had learned the task equally well ({100 * matched['accuracy']:.0f} % right), plain "
                    f"fine-tuning had lost {other:.0f} % and {name_of(arm)} {lost:.0f} % of {matched['n']} "
                    f"instructions: {says}, {_points(matched, 0)}.")
    return ""


def _targets(run: Run) -> str:
    if not {"original", "distilled"} <= run.gaps.keys():
        return ""
    before, after = run.gaps["original"]["nll"], run.gaps["distilled"]["nll"]
    paired = run.gaps["distilled"].get("paired")
    nearer = ("nearer to" if paired["high"] < 0 else "farther from" if paired["low"] > 0 else "") if paired else ""
    says = f"The model's own rewrites are {nearer} what it would say" if nearer else (
        "Whether the model's own rewrites are nearer to what it would say could be chance")
    return (f"{says}: before training it expects a word or word part of the reference answers with a probability of "
            f"{_probability(before)}, and one of the answers that self-distillation trains on with "
            f"{_probability(after)} (geometric means; {before:.2f} and {after:.2f} nats per token).")


def _first_words(run: Run) -> str:
    general = {arm: run.results[arm]["general"] for arm in main_arms(run) if "kl8" in run.results[arm]["general"]}
    if not general:
        return ""
    first = " and ".join(f"{nats(drift['kl8'])} with {name_of(arm)}" for arm, drift in general.items())
    whole = " and ".join(nats(drift["kl"]) for drift in general.values())
    says = ""
    for arm, drift in general.items():
        if paired := drift.get("kl8_against_sft"):
            says = (f" {'less' if paired['high'] < 0 else 'more'} with {name_of(arm)} than with plain fine-tuning"
                    if not paired["low"] <= 0 <= paired["high"] else "; the difference between the two could be chance")
    return (f"The first 8 words or word parts of an answer changed{says} (distance from the untrained model: {first}; "
            f"over whole answers: {whole}; KL divergence, nats per token).")


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
