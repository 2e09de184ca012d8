"""The columns of cells.json: what each is in words, what it is counted on, and where the interval of a single run is.

    kl, kl8, long_answers, shift, …    names of summary.json
    general.bleu, recovery.steps.k3    a number's path in measures.json, without arms.<arm>
    elaborate                          a suite: the mean score
    elaborate.forgetting               F: of the items that the base model solves, the share that the arm lost
    elaborate.backward_transfer        BT: of the others, the share that it gained
    instructions.long.forgetting       the same of a part of the suite, or of a kind: elaborate.story.forgetting
    score, score.forgetting            the task's own suite, where the runs have different tasks
    matched.forgetting                 F of the arm where its task accuracy equals that of sft, which has its own there

Two columns of arm base count the items of a part or kind: instructions.long.n and instructions.long.solved_by_base.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from sdft.results import SuiteResult
from sdft.studies.results import RunResult

SCORE = "score"
FORGETTING, TRANSFER = ".forgetting", ".backward_transfer"
WORDS: Mapping[str, tuple[str, str]] = {                # column → words, unit
    "kl": ("KL from the base model", "nats/token"),
    "kl8": ("KL over the first 8 tokens", "nats/token"),
    "kl32": ("KL over the first 32 tokens", "nats/token"),
    "long_answers": ("long answers kept", "share of the base model's"),
    "top1": ("top-1 agreement with the base model", "share of tokens"),
    "rouge_l": ("ROUGE-L to the base model", "0 to 1"), "length": ("length of the answers", "tokens"),
    "shift": ("‖ΔW‖", ""), "relative_shift": ("‖ΔW‖ / ‖W‖", ""), "lr": ("learning rate", ""),
    "score": ("score on the task", "share"), "gained": ("score on the task above the base model's", "share"),
    "target_nll": ("NLL of the targets under the base model", "nats/token"),
    "accepted_share": ("share of rewrites accepted", ""),
    "changed_token_share": ("share of target tokens that are changed", ""),
    "effective_share": ("share of targets changed", ""),
    "rouge_l_written": ("ROUGE-L of rewrites to references", "0 to 1"),
    "texts.rouge_l": ("ROUGE-L of rewrites to originals", "0 to 1"),
    "texts.bleu": ("BLEU of rewrites to originals", "0 to 1"),
    "texts.cosine": ("embedding cosine of rewrites and originals", ""),
    "matched.forgetting": ("forgetting on elaborate at equal task accuracy", "share of the items solved by base"),
    "matched.difference": ("forgetting on elaborate at equal task accuracy, minus that of sft", "share"),
    "matched.accuracy": ("task accuracy where it equals that of sft", "share"),
    "recovery.forgetting": ("forgetting before recovery", "share of the items solved by base"),
    **{f"recovery.steps.k{k}": (f"recovery on {k} dialogues", "optimiser steps") for k in (1, 3, 10, 30)},
    "general.tv": ("total variation from the base model", "0 to 1"),
    "general.bleu": ("BLEU to the base model", "0 to 1"),
    "general.cosine": ("embedding cosine with the base model's answers", ""),
    "general.reverse.kl": ("reverse KL", "nats/token"),
    "general.reverse.tv": ("total variation on its own answers", "0 to 1"),
    "general.reverse.top1": ("top-1 agreement on its own answers", "share of tokens"),
    "on_task.kl": ("KL on the task", "nats/token"), "on_task.tv": ("total variation on the task", "0 to 1"),
    "on_task.top1": ("top-1 agreement on the task", "share of tokens"),
    "on_task.reverse.kl": ("reverse KL on the task", "nats/token"),
    "on_task.reverse.tv": ("total variation on its own answers to the task", "0 to 1"),
    "on_task.reverse.top1": ("top-1 agreement on its own answers to the task", "share of tokens"),
    "activations.relative": ("‖h − h₀‖ / ‖h₀‖", "mean over layers"),
    "activations.cka": ("CKA with the base model", "mean over layers"),
    "activations.cosine": ("cosine of h and h₀", "mean over layers"),
    "shift.changed_bf16": ("share of weights whose bf16 value changes", ""),
    "shift.stable_rank": ("stable rank of ΔW", "mean over modules"),
    "shift.effective_rank": ("effective rank of ΔW", "mean"),
    "shift.spectral_shift": ("‖σ(W₊) − σ(W₀)‖ / ‖σ(W₀)‖", "mean"),
    "shift.intruders": ("intruder dimensions of 10", "mean"),
    "shift.left_cosine": ("principal cosines with the base model, left", "mean"),
    "shift.right_cosine": ("principal cosines with the base model, right", "mean"),
    "fisher.total": ("Σ F·ΔW²", "nats²/answer"),
    "gap.distilled.low": ("share of target tokens with p < 0.4 under the base model", ""),
    "gap.distilled.rank_mean": ("mean rank of the target tokens under the base model", ""),
    "training.target_tokens": ("target tokens trained on", ""),
}
PARTS = {"brief": "where one word or the prompt itself passes", "long": "where no single word passes"}
GENERAL = ("kl", "kl8", "kl32", "top1")          # drift on the general answers
TEXTS = tuple(f"general.{name}" for name in ("rouge_l", "bleu", "cosine", "length_mean"))     # on more of them: no n
COUNTED = {"general": "general answers", "on_task": "answers to the task", "activations": "probe texts",
           "fisher": "answers of the base model", "texts": "rewrites"}           # the unit of general.n, on_task.n, …
SHARES = {"long_answers": "general.long_answers.n", "matched.forgetting": "matched.n"}      # share → column of its n
OWN = {"kl": "general.against_{}", "kl8": "general.kl8_against_{}", "long_answers": "general.long_answers.against_{}"}
LIKENESS = ("top1", "rouge_l", "bleu", "cosine", "cka", "long_answers", TRANSFER)   # larger: less drift, more ability


def words(column: str, suites: Collection[str] = ()) -> str:
    """A column in words, without its unit; suites: names that are scores of suites."""
    if column in WORDS:
        return WORDS[column][0]
    suite, part, measure = _ability(column)
    if measure or suite in suites:
        where = "the task" if suite == SCORE else suite
        where += f" {PARTS[part]}" if part in PARTS else f", {part}" if part else ""
        return {FORGETTING: "forgetting on ", TRANSFER: "backward transfer on "}.get(measure, "") + where
    return column


def axis(column: str, suites: Collection[str] = ()) -> str:
    """A column in words, with its unit where it has one."""
    text, unit = words(column, suites), WORDS.get(column, ("", ""))[1]
    if column not in WORDS:
        suite, _, measure = _ability(column)
        unit = {FORGETTING: "share of the items solved by base", TRANSFER: "share of the items failed by base"}.get(
            measure, "")
        text += ": score, share" if suite in suites and not measure else ""
    return f"{text}, {unit}" if unit else text


def is_score(column: str, suites: Collection[str]) -> bool:
    """Whether the column is a mean score: of a suite, a part or a kind of item."""
    suite, _, measure = _ability(column)
    return not measure and (column == SCORE or suite in suites)


def unit_of_n(column: str) -> str:
    """What the items of a score or share are."""
    if column == "long_answers":
        return "long answers of the base model"
    return {FORGETTING: "items solved by base", TRANSFER: "items failed by base"}.get(_ability(column)[2], "items")


def items_of(run: RunResult, column: str) -> int | None:
    """How many items or answers a score or share of the run is of; None where the column is none, or it is unknown."""
    if column in SHARES:
        return next((int(columns[SHARES[column]]) for columns in run["arms"].values() if SHARES[column] in columns),
                    None)
    suite, part, measure = _ability(of_run(run, column))
    base, items = run["arms"].get("base", {}), run.get("items", {})
    if suite not in items:
        return None
    n = base.get(f"{suite}.{part}.n") if part else items[suite]
    solved = base.get(f"{suite}.{part}.solved_by_base" if part else f"suites.{suite}.solved_by_base")
    if not measure or n is None or solved is None:
        return None if measure or n is None else int(n)
    return int(solved if measure == FORGETTING else n - solved)


def measured_on(runs: Sequence[RunResult], column: str) -> str:
    """How many answers or items a column is measured on: "n = 16 general answers"; "" where it is not known."""
    counts: set[float | None] = {items_of(run, column) for run in runs}
    what: str | None = unit_of_n(column)
    if counts <= {None} and column not in TEXTS:
        part = "general" if column in GENERAL else column.partition(".")[0]
        counts = {columns.get(f"{part}.n") for run in runs for columns in (*run["arms"].values(), run["measures"])}
        what = COUNTED.get(part)
    known = sorted(count for count in counts if count is not None)
    return f"n = {'–'.join(map(str, dict.fromkeys((known[0], known[-1]))))} {what}" if known and what else ""


def value(run: RunResult, arm: str, column: str, fall_back: bool = True) -> float | None:
    """A column of an arm; with fall_back the column of its run, where the arm has none of this name."""
    if arm not in run["arms"]:
        return None
    column = of_run(run, column)
    return run["arms"][arm].get(column, run["measures"].get(column) if fall_back else None)


def of_run(run: RunResult, column: str) -> str:
    """The column with the run's own task for `score`."""
    head, dot, rest = column.partition(".")
    return f"{run['suite']}{dot}{rest}" if head == SCORE else column


def own_interval(run: RunResult, arm: str, column: str, against: str) -> tuple[float, float] | None:
    """The run's own interval, over items or answers, of arm − against; None where it has none."""
    if column == "matched.forgetting" and against == "sft":
        path = "matched"
    elif column in OWN:
        path = OWN[column].format(against)
    else:
        suite, part, measure = _ability(of_run(run, column))
        if measure == TRANSFER:
            return None
        end = "forgetting_against_" if measure == FORGETTING else "against_"
        path = f"suites.{suite}.{f'parts.{part}.' if part else ''}{end}{against}"
    low, high = (value(run, arm, f"{path}.{bound}", False) for bound in ("low", "high"))
    return None if low is None or high is None else (low, high)


def more_is_better(column: str, results: Sequence[RunResult]) -> bool:
    """Whether larger values are less drift or more ability: scores, gains, and likenesses to the base model."""
    return column.endswith(LIKENESS) or any(is_score(column, run.get("items", {})) for run in results)


def parts_and_kinds(suite: str, result: SuiteResult, is_base: bool) -> Iterator[tuple[str, float]]:
    """The columns of a suite's parts and kinds of item. What all arms share, the counts, is in arm base alone."""
    for name, part in (*result.get("parts", {}).items(), *result["by_kind"].items()):
        yield f"{suite}.{name}", part["mean"]
        solved, failed = part["solved_by_base"], part["n"] - part["solved_by_base"]
        if is_base:
            yield from ((f"{suite}.{name}.n", part["n"]), (f"{suite}.{name}.solved_by_base", solved))
            continue
        if solved:
            yield f"{suite}.{name}{FORGETTING}", part["lost"] / solved
        if failed:
            yield f"{suite}.{name}{TRANSFER}", part["gained"] / failed


def _ability(column: str) -> tuple[str, str, str]:
    """Suite, part or kind, and measure of a column that is named as those of suites are: FORGETTING, TRANSFER or ""
    for the score."""
    measure = next((end for end in (FORGETTING, TRANSFER) if column.endswith(end)), "")
    suite, _, part = column.removesuffix(measure).partition(".")
    return suite, part, measure
