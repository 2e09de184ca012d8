"""Transfer over stages: what training on one task changed of a task that was learned in an earlier stage.

    a₀    mean score of the base model on task A
    a₁    directly after the stage that trained A: the altitude
    aₖ    after stage k, which trained another task

    raw         aₖ − a₁                  backward transfer of arXiv 1706.08840 and 2601.19897; below 0: lost
    retained    (aₖ − a₀) / (a₁ − a₀)    share of what the stage of A taught that is left: raw, adjusted for altitude
    F, BT       of the items solved after the stage of A, the share lost; of the others, the share gained

Raw falls with slope −1 in the altitude: of two models that end at the same aₖ, the one that had learned more lost more.
So raw says nothing about which of two arms kept more of what it learned. `retained` relates the loss to what could be
lost: 1 is all, 0 is back at the base model, below 0 is worse than that. It equals 1 + raw / (a₁ − a₀). It is absent
where the stage of A taught too little to be a divisor: where the 95 % interval of a₁ − a₀ reaches 0. F and BT are those
of forgetting.py with the model after the stage of A in the place of the base model. aₖ − a₀ is in `suites`, as the
difference from the base model.
"""
from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from sdft.measure.abilities import against, by_same_id
from sdft.measure.forgetting import flips, share
from sdft.measure.statistics import bootstrap_ratio, bootstrap_ratios, paired_difference
from sdft.results import AnswerLine, Difference, Transfer

Gains = tuple[list[float], list[float]]         # item by item: score after stage k − base, after its own stage − base


def transfer(lines: Sequence[AnswerLine], own: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]) -> Transfer:
    """What `lines`, the answers after a later stage, say of a task; own: those directly after the task's own stage.

    Raises SdftError where the three are not scored answers to the same items.
    """
    counts = flips(lines, own)
    solved = counts["solved_by_base"]                               # here: after the task's own stage
    result: Transfer = {"base": _mean(base_lines), "altitude": _mean(own), "after": _mean(lines),
                        "raw": against(lines, own), "solved": solved, "lost": counts["lost"],
                        "gained": counts["gained"]}
    if solved:
        result["forgetting"] = share(counts["lost"], solved)
    if failed := len(lines) - solved:
        result["backward_transfer"] = share(counts["gained"], failed)
    if gains := _gains(lines, own, base_lines):
        kept, low, high = bootstrap_ratio(*gains)
        result["retained"] = {"share": kept, "low": low, "high": high, "n": len(lines)}
    return result


def compare_retained(first: Sequence[Sequence[AnswerLine]], second: Sequence[Sequence[AnswerLine]]
                     ) -> Difference | None:
    """Retained share of one arm − that of another, given the answers (lines, own, base_lines) of each.

    None where either arm has no retained share.
    """
    ours, theirs = _gains(*first), _gains(*second)
    if ours is None or theirs is None:
        return None
    difference, low, high = bootstrap_ratios(ours, theirs)
    return {"difference": difference, "low": low, "high": high, "n": len(ours[0])}


def _gains(lines: Sequence[AnswerLine], own: Sequence[AnswerLine], base_lines: Sequence[AnswerLine]) -> Gains | None:
    """The two gains over the base model of every item, in the order of `base_lines`; None where nothing was learned."""
    base, after = by_same_id(base_lines, lines)
    _, learned = by_same_id(base_lines, own)
    scores, start, altitude = ([line["score"] or 0.0 for line in side] for side in (after, base, learned))
    if paired_difference(altitude, start)[1] <= 0:
        return None
    return ([k - zero for k, zero in zip(scores, start, strict=True)],
            [one - zero for one, zero in zip(altitude, start, strict=True)])


def _mean(lines: Sequence[AnswerLine]) -> float:
    return fmean(line["score"] or 0.0 for line in lines)
