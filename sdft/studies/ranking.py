"""The page of a study that reads others: measures ranked by how well they predict what is forgotten."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdft.report.drawing import COLOURS, MARKERS, Figure
from sdft.report.tables import Table, as_markdown
from sdft.studies.columns import FORGETTING, GENERAL, WORDS, axis, words
from sdft.studies.figures import image, text_svg
from sdft.studies.results import BaseScore, RankedMeasure, RankingResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

ALIKE = ("top1", "rouge_l")         # outcomes that are drift of the general answers, not abilities
CONFOUNDED = ("As a measure of forgetting, this outcome is confounded. A mean score falls by what was lost and rises "
              "by what was gained: an arm that answers tersely wins the demands that a short answer meets, loses the "
              "others, and the two cancel. So this ranking says nothing about forgetting. It only says what goes with "
              "the mean score.")
UNCOUNTED = "These results were made before lost and gained items were counted, so there is nothing to rank."


def ranking_figures(content: RankingResults) -> list[Figure]:
    """For every outcome the ranking, and the outcome over its first measure."""
    drawn = []
    for outcome in content["study"]["outcomes"]:
        if ranked := [each for each in content["ranking"] if each["outcome"] == outcome]:
            drawn += [_ranking(outcome, ranked), _scatter(content, outcome, ranked[0]["measure"])]
    return drawn


def ranking_page(content: RankingResults, figures: Mapping[str, Figure]) -> str:
    """The whole page as Markdown."""
    study = content["study"]
    parts = [f"# {study['name'][0].upper()}{study['name'][1:]}", study["question"],
             f"{len(content['points'])} trained arms of {len(study['reads'])} studies: {', '.join(study['reads'])}. "
             "An outcome is the drop from the base model of the same run, or forgetting: of the items that the base "
             "model solves, the share that an arm does not solve. Measures are ranked by R² within "
             "studies: measure and drop are differences from their means over the arms of the same study and task, so "
             "that differences between studies (records, items, length) explain nothing. The pooled values treat all "
             "arms as one study. The sign of r gives the direction: + where larger values of the measure go with a "
             "larger drop. In brackets: 95 % bootstrap intervals over whole studies. With so few studies they are wide "
             "and rough, and the first of many measures looks better than it is. r with gained: r of the measure "
             "and `gained`, the score on the task above the base model's, which is itself ranked."]
    for names, text in ((content["missing"], "Named in the study file, but measured in no run"),
                        (content["constant"], "The same in every arm of a study, or measured in too few arms")):
        parts += [f"{text}: {', '.join(names)}."] if names else []
    for outcome in study["outcomes"]:
        ranked = [each for each in content["ranking"] if each["outcome"] == outcome]
        base = [score for score in content["base_scores"] if score["outcome"] == outcome]
        known = not outcome.endswith(FORGETTING) or any(score["score"] is not None for score in base)
        parts += [f"## {_capital(drop_of(outcome).removeprefix('a '))}", CONFOUNDED if is_mean(outcome) else "",
                  base_sentence(base), ranking_sentence(outcome, ranked) if known else UNCOUNTED]
        parts += [image(figures, _file(name, outcome)) for name in ("ranking", "drop")]
        parts += [as_markdown(ranking_table(ranked))] if ranked else []
    return "\n\n".join(part for part in parts if part) + "\n"


def base_sentence(scores: Sequence[BaseScore]) -> str:
    """The base model's score in every study, over how many items; and how many runs are left out since it is 0."""
    by_study: dict[str, list[str]] = {}
    for score in scores:
        if score["score"] is not None:
            left_out = f", {score['left_out']} of {score['runs']} runs left out" if score["left_out"] else ""
            unit = "answers" if score["outcome"] in GENERAL else "items"
            by_study.setdefault(score["study"], []).append(
                f"{score['task']}: {score['score']:.3g} of 1, n = {score['n']} {unit}{left_out}")
    unmeasured = dict.fromkeys(score["study"] for score in scores if score["study"] not in by_study)
    floor = sum(score["left_out"] for score in scores)
    own = "; ".join(f"{study} ({', '.join(dict.fromkeys(texts))})" for study, texts in by_study.items())
    return ((f"The base model's own: {own}." if own else "")
            + (f" Not measured in {', '.join(unmeasured)}." if unmeasured else "")
            + (f" {floor} runs whose base model scores 0 are left out: nothing can be lost there." if floor else "")
            ).lstrip()


def ranking_sentence(outcome: str, ranked: Sequence[RankedMeasure]) -> str:
    """The first of the ranking in words, and whether the second explains detectably less."""
    if not ranked:
        return f"No measure varies together with {drop_of(outcome)}: nothing to rank."
    best = ranked[0]
    text = (f"{_capital(words(best['measure']))} ranks first: R² = {_within(best)} within studies with "
            f"{drop_of(outcome)}, r = {_signed(best)}, n = {best['n']} arms of {best['studies']} studies: "
            f"{direction(best)}. Pooled over the studies r = {_number(best['pooled'], '+')}.")
    if best["with_gained"] is not None:
        text += f" With what was learned r = {best['with_gained']:+.2f}."
    if best["low"] is None:
        text += f" {best['studies']} studies give no interval, so no measure can be preferred."
    elif best["studies"] == 3:
        text += (" (An interval over 3 studies excludes zero about where all of them agree in sign, which happens by "
                 "chance one time in 4.)")
    if outcome in ALIKE:
        text += (f" {_capital(words(outcome))} is drift of the same general answers that KL, total variation and "
                 "likenesses are measured on, and no ability: that these go together says little.")
    below = [each.get("below_first") for each in ranked[1:]]
    if below and (second := below[0]) and second["low"] is not None:
        name = words(ranked[1]["measure"])
        verdict = (f"The next, {name}, explains less" if second["low"] > 0 else
                   f"No difference detected from the next, {name}")
        count = sum(each is not None and (each["low"] or 0) > 0 for each in below)
        text += (f" {verdict}: R² = {_within(ranked[1])}; on the same {second['n']} arms the difference is "
                 f"{second['difference']:+.2f} ({second['low']:+.2f} to {second['high']:+.2f}). By such an interval "
                 f"{count} of the other {len(below)} measures explain less.")
    return text


def is_mean(outcome: str) -> bool:
    """Whether the outcome is the mean score of a suite, or of a part of one."""
    return not outcome.endswith(FORGETTING) and outcome not in WORDS


def drop_of(outcome: str) -> str:
    """An outcome in words: the drop of a column, or forgetting."""
    return words(outcome) if outcome.endswith(FORGETTING) else f"a drop of {words(outcome)}"


def direction(ranked: RankedMeasure) -> str:
    """The sign of r in words, where its interval excludes zero."""
    low, high = ranked["low"], ranked["high"]
    if low is None or high is None or low <= 0 <= high:
        return "not clear"
    return f"larger values, {'larger' if ranked['r'] > 0 else 'smaller'} drop"


def ranking_table(ranked: Sequence[RankedMeasure]) -> Table:
    """The measures of one outcome, the one that explains most first."""
    return Table(["measure", "meaning", "R² within", "r within", "direction", "ρ of ranks", "R² pooled",
                  "r pooled", "r with gained", "arms", "studies"],
                 [[each["measure"], axis(each["measure"]), _within(each), _signed(each), direction(each),
                   _number(each["ranks"], "+"), _number(each["pooled"] and each["pooled"]**2),
                   _number(each["pooled"], "+"), _number(each["with_gained"], "+"), str(each["n"]),
                   str(each["studies"])] for each in ranked])


def _ranking(outcome: str, ranked: Sequence[RankedMeasure]) -> Figure:
    heights = range(len(ranked) - 1, -1, -1)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for height, each in zip(heights, ranked, strict=True):
            if each["low"] is not None and each["high"] is not None:
                axes.hlines(height, each["low"], each["high"], color=COLOURS[1])
        axes.plot([each["r"] for each in ranked], heights, linestyle="", marker=MARKERS[0], color=COLOURS[1],
                  label="within studies")
        axes.plot([np.nan if each["pooled"] is None else each["pooled"] for each in ranked], heights, linestyle="",
                  marker=MARKERS[2], markerfacecolor="none", color=COLOURS[2], label="pooled over studies")
        axes.axvline(0, color="#888", linewidth=0.8, zorder=0)
        axes.set_yticks(heights, [f"{axis(each['measure'])} (n = {each['n']})" for each in ranked], fontsize=8)
        axes.set(xlabel="r with the drop   (right: larger values, larger drop)", xlim=(-1.04, 1.04),
                 ylim=(-0.8, len(ranked) - 0.2), xticks=(-1, -0.5, 0, 0.5, 1),
                 title=f"What predicts {drop_of(outcome)} (n: trained arms)")
        axes.figure.legend(loc="outside lower right", ncols=2, fontsize=8)

    return Figure(_file("ranking", outcome), text_svg(draw, width=8.2, height=1.6 + 0.23 * len(ranked)),
                  f"How each measure goes with {drop_of(outcome)}; the highest explains most within studies. Lines: 95 "
                  "% bootstrap intervals over whole studies.")


def _scatter(content: RankingResults, outcome: str, measure: str) -> Figure:
    points = [point for point in content["points"] if measure in point["measures"] and outcome in point["drops"]]
    name = axis(outcome) if not is_mean(outcome) else f"{outcome}, share"

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for index, study in enumerate(dict.fromkeys(point["study"] for point in points)):
            of_study = [point for point in points if point["study"] == study]
            axes.scatter([point["measures"][measure] for point in of_study],
                         [point["drops"][outcome] for point in of_study], s=16, alpha=0.7,
                         color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
                         label=f"{study} (n = {len(of_study)})")
        axes.set(xlabel=axis(measure),
                 ylabel=name if outcome.endswith(FORGETTING) else f"drop from the base model of\n{name}",
                 title=f"n = {len(points)} trained arms")
        axes.legend(fontsize=8)

    return Figure(_file("drop", outcome), text_svg(draw),
                  f"Every trained arm: {drop_of(outcome).removeprefix('a ')} over {axis(measure)}, the first of the "
                  "ranking.")


def _file(name: str, outcome: str) -> str:
    return f"{name}-{outcome.replace('.', '_')}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}"


def _within(ranked: RankedMeasure) -> str:
    low, high = ranked["within_low"], ranked["within_high"]
    return f"{ranked['within']:.2f}" + ("" if low is None else f" ({low:.2f}–{high:.2f})")


def _signed(ranked: RankedMeasure) -> str:
    low, high = ranked["low"], ranked["high"]
    return f"{ranked['r']:+.2f}" + ("" if low is None else f" ({low:+.2f} to {high:+.2f})")
