"""Forgetting, item by item: what the base model could do and a tuned model no longer can.

    solved            a score of at least ½ (a suite of right and wrong answers: right)
    forgetting    F   of the items that the base model solves, the share that the tuned model does not     (1 → 0)
    transfer      BT  of the items that the base model does not solve, the share that the tuned model does (0 → 1)
    sources           arXiv 2510.17776; "negative flips" of arXiv 2011.09161; 2402.13669, section 4, reports means alone

A mean hides both: kinds of items that gain and kinds that lose cancel. Items were selected by what the base model
solved, so some loss is regression to the mean. A run therefore measures the noise floor of an F that is a primary end
point: F between two answers of the base model itself, which is 0 with greedy decoding in fp32. Two tuned models are
compared on the items that the base model solves, by McNemar's test.

    sdft measure forgetting --adapter runs/mine/sdft --suite elaborate
"""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from sdft.errors import SdftError
from sdft.measure.abilities import against, by_same_id, compare_scores, summarise
from sdft.measure.statistics import add_holm, wilson
from sdft.results import (
    AnswerLine,
    ArmMeasures,
    ChanceAdjusted,
    Comparison,
    Flips,
    KindResult,
    LongAnswers,
    Share,
    SuiteResult,
    comparisons,
)
from sdft.tasks.base import Suite

SOLVED = 0.5            # the least score of a solved item
LONG = 25               # words of a long answer
SHRUNK = 4              # a shrunk answer has less than a quarter of the base model's words


def suite_result(suite: Suite, lines: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]) -> SuiteResult:
    """All that the scores of one arm say on one suite. For arm base, `lines` are `base_lines` themselves."""
    result = _result(suite, lines, base_lines)
    brief = {item.id for item in suite.items if item.brief}
    if 0 < len(brief) < len(suite.items):
        result["parts"] = {}
        for name, ids in (("brief", brief), ("long", {line["id"] for line in lines} - brief)):
            base = _among(base_lines, ids)
            result["parts"][name] = _result(suite, base if lines is base_lines else _among(lines, ids), base)
    return result


def _result(suite: Suite, lines: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]) -> SuiteResult:
    counts = flips(lines, base_lines)
    by_kind: dict[str, KindResult] = {}
    for kind in sorted({line["kind"] for line in lines} - {""}):
        ids = {line["id"] for line in lines if line["kind"] == kind}
        ours, base = _among(lines, ids), _among(base_lines, ids)
        by_kind[kind] = {**flips(ours, base), "mean": fmean(line["score"] or 0.0 for line in ours), "n": len(ours)}
    result: SuiteResult = {"metric": suite.metric, **summarise(lines), **counts, "by_kind": by_kind}
    if lines is base_lines:
        return result
    failed = len(lines) - counts["solved_by_base"]
    if counts["solved_by_base"]:
        result["forgetting"] = share(counts["lost"], counts["solved_by_base"])
    if failed:
        result["backward_transfer"] = share(counts["gained"], failed)
    if adjusted := chance_adjusted(suite, lines, base_lines):
        result["chance_adjusted"] = adjusted
    result["against_base"] = against(lines, base_lines)
    return result


def share(count: int, n: int) -> Share:
    """count / n with Wilson's 95 % interval."""
    low, high = wilson(count, n)
    return {"share": count / n, "low": low, "high": high, "n": n}


def solved(lines: Sequence[AnswerLine]) -> set[str]:
    """The ids of the solved items (SdftError for answers without a score)."""
    if any(line["score"] is None for line in lines):
        raise SdftError("forgetting: expected scored answers, got some without a score; take a suite that is scored")
    return {line["id"] for line in lines if (line["score"] or 0.0) >= SOLVED}


def flips(lines: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]) -> Flips:
    """How many items the base model solves, and how many of the same items an arm lost and gained."""
    ours, base = map(solved, by_same_id(lines, base_lines))
    return {"solved_by_base": len(base), "lost": len(base - ours), "gained": len(ours - base)}


def compare_forgetting(lines: Sequence[AnswerLine], others: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]
                       ) -> Comparison | None:
    """F of one arm − F of another, on the items that the base model solves; None where it solves none."""
    base = solved(base_lines)
    if not base:
        return None
    ours, theirs = (solved(by_same_id(base_lines, side)[1]) for side in (lines, others))
    first, second = ([float(id not in kept) for id in sorted(base)] for kept in (ours, theirs))
    return compare_scores(first, second)


def chance_adjusted(suite: Suite, lines: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]
                    ) -> ChanceAdjusted | None:
    """F and BT of the multiple-choice items without the flips expected of guessing; None where there are none.

    A model knows an item or guesses one of its k options. With the accuracies a₀ before and a after, a share
    (1 − a₀)/(k − 1) of the items was guessed right before, and with the probability 1 − a it is wrong after. So
    (1 − a₀)·(1 − a)/(k − 1) of all items flip by chance, as many each way (after arXiv 2510.17776). Never below 0.
    """
    chances = {item.id: 1 / (item.choices - 1) for item in suite.items if item.choices > 1}
    ours, base = (_among(side, chances.keys()) for side in (lines, base_lines))
    if not ours:
        return None
    counts, n = flips(ours, base), len(ours)
    before, after = len(solved(base)) / n, len(solved(ours)) / n
    by_chance = (1 - before) * (1 - after) * fmean(chances[line["id"]] for line in ours)
    failed = n - counts["solved_by_base"]
    return {"forgetting": max(0.0, counts["lost"] - n * by_chance) / max(1, counts["solved_by_base"]),
            "backward_transfer": max(0.0, counts["gained"] - n * by_chance) / max(1, failed),
            "flips": by_chance, "n": n}


def long_answers(lines: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]) -> LongAnswers | None:
    """How many of the base model's long answers an arm keeps long; None where the base model gives none."""
    pairs = [(ours, base) for ours, base in zip(*by_same_id(lines, base_lines), strict=True) if _is_long(base)]
    if not pairs:
        return None
    kept = sum(_is_long(ours) for ours, _ in pairs)
    shrunk = sum(SHRUNK * len(ours["output"].split()) < len(base["output"].split()) for ours, base in pairs)
    return {**share(kept, len(pairs)), "kept": kept, "shrunk": shrunk}


def compare_long_answers(lines: Sequence[AnswerLine], others: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]
                         ) -> Comparison | None:
    """Share of the base model's long answers that one arm keeps − that of another; None where there are none."""
    ids = [line["id"] for line in base_lines if _is_long(line)]
    ours, theirs = ({line["id"]: float(_is_long(line)) for line in by_same_id(base_lines, side)[1]}
                    for side in (lines, others))
    return compare_scores([ours[id] for id in ids], [theirs[id] for id in ids]) if ids else None


def comparisons_of(suite: str, result: SuiteResult) -> dict[str, list[Comparison]]:
    """The comparisons of a suite's result by end point: its mean (`suite`), its F, and those of its parts."""
    forgetting = result.get("forgetting_against_sft")
    found = {suite: list(comparisons(result).values()), f"{suite}.forgetting": [forgetting] if forgetting else []}
    for name, part in result.get("parts", {}).items():
        found |= comparisons_of(f"{suite}.{name}", part)
    return found


def adjust_together(arms: Mapping[str, ArmMeasures], primary: Collection[str]) -> None:
    """Add Holm's adjusted p-value, p_holm, to the comparisons of a run: all but those of the end points `primary`.

    A primary end point was named before the run, so its p-value is not adjusted. All others are one family.
    """
    family = [comparison for arm in arms.values() for suite, result in arm["suites"].items()
              for end_point, found in comparisons_of(suite, result).items() if end_point not in primary
              for comparison in found]
    kept = [arm["general"]["long_answers"] for arm in arms.values() if "long_answers" in arm["general"]]
    family += [answers["against_sft"] for answers in kept if "against_sft" in answers]
    add_holm(family)


def _is_long(line: AnswerLine) -> bool:
    return len(line["output"].split()) >= LONG


def _among(lines: Sequence[AnswerLine], ids: Collection[str]) -> list[AnswerLine]:
    return [line for line in lines if line["id"] in ids]
