"""The tables of a run's report, made from measures.json alone, and their forms as plain text and Markdown."""
from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from sdft.report.run import Run
from sdft.results import Comparison, comparisons


@dataclass(frozen=True)
class Table:
    """A table of text: the first column names the line, the others hold values."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""


# ----------------------------------------------------------------------------------------------------- result, training
def result_table(run: Run) -> Table:
    """Arms × measures: score on every suite, drift of the general answers, shift of the weights."""
    suites = run.results["base"]["suites"]
    head = ["arm", *(f"{name}: {suite['metric']}, %" for name, suite in suites.items()), "KL(base ‖ arm), nats/token",
            "top-1 agreement, %", "ROUGE-L to base", "answer length, tokens", "‖ΔW‖", "‖ΔW‖/‖W‖, %"]
    rows = [[arm, *(_score(result["suites"].get(suite)) for suite in suites),
             nats(result["general"].get("kl")),
             *_numbers(result["general"], ("top1", 1, 100), ("rouge_l", 2, 1), ("length_mean", 0, 1)),
             *_numbers(result.get("shift"), ("total", 2, 1), ("relative", 2, 100))]
            for arm, result in run.results.items()]
    n = run.results["base"]["general"].get("n", 0)
    return Table(head, rows, "In brackets: 95 % bootstrap intervals. KL, top-1 agreement, ROUGE-L and answer length "
                 f"are measured on {n} general prompts. ‖ΔW‖ is the Frobenius norm of the change of all weights.")


def difference_table(run: Run) -> Table:
    """Paired differences of every trained arm's scores from those of the base model and of sft."""
    rows = [[arm, other, suite, verdict(comparison), str(result["n"]), comparison.get("test", "–"),
             p_value(comparison.get("p")), p_value(comparison.get("p_holm"))]
            for arm, results in run.results.items() for suite, result in results["suites"].items()
            for other, comparison in comparisons(result).items()]
    return Table(["arm", "compared with", "suite", "paired difference (95 % interval)", "n", "test", "p", "p (Holm)"],
                 rows, "n: test items, the same for both arms. p: two-sided, of McNemar's exact test where all scores "
                 "are 0 or 1, otherwise of a sign-flip test. p (Holm): adjusted for all comparisons of the run. A "
                 "difference counts as detected where p (Holm) is below 0.05 and the interval excludes zero.")


def training_table(run: Run) -> Table:
    """The training data of every arm, and the duration of its training."""
    rows = []
    for arm, result in run.results.items():
        if training := result.get("training"):
            skipped = ", ".join(f"{count} {reason}" for reason, count in training["left_out"].items() if count)
            gap = run.gaps.get(result.get("targets", ""))
            rows.append([arm, str(training["records"]), str(training["steps"]), f"{training['tokens']:,}",
                         f"{training['target_tokens']:,}", *_numbers(gap, ("nll", 2, 1)), f"{training['seconds']:.0f}",
                         skipped or "none"])
    return Table(["arm", "records", "steps", "tokens", "target tokens", "NLL of the targets under base, nats/token",
                  "seconds", "skipped records"], rows, "Steps, tokens and seconds are those of all epochs together.")


def reasons_table(run: Run) -> Table:
    """How many rewrites were accepted, and how many were rejected for each reason."""
    audit = run.measures.get("audit")
    counts = [("accepted", audit["accepted"]), *audit["reasons"].items()] if audit else []
    return Table(["rewrite", "records", "share, %"], [
        [reason, str(count), f"{100 * count / max(audit['records'], 1):.1f}"] for reason, count in counts])


def kinds_table(run: Run, suite: str) -> Table:
    """Mean scores of one suite by kind of item and by arm."""
    scores = [result["suites"][suite]["by_kind"] for result in run.results.values()]
    return Table(["kind", *run.arms], [[kind, *(number(by_kind[kind]["mean"], 0, 100) for by_kind in scores)]
                                       for kind in scores[0]])


# ------------------------------------------------------------------------------------------ gap of the targets, outputs
def gap_table(run: Run) -> Table:
    """NLL, rank and share of low-probability tokens of every set of targets."""
    rows = [[name, *_numbers(gap, ("nll", 2, 1), ("perplexity", 1, 1), ("rank_median", 0, 1), ("rank_mean", 0, 1),
                             ("rank0", 1, 100), ("low", 1, 100)), f"{gap['tokens']:,}", str(len(gap["records"]))]
            for name, gap in run.gaps.items() if "rank0" in gap]
    return Table(["targets", "NLL, nats/token", "perplexity", "median rank", "mean rank", "at rank 0, %", "p < 0.4, %",
                  "tokens", "records"], rows,
                 "All values are under the base model before training. Rank: number of tokens of the vocabulary that "
                 "are more probable than the target token. Rank 0 is the token that greedy decoding would choose. p < "
                 "0.4: share of low-probability target tokens.")


def paired_table(run: Run) -> Table:
    """Rewrites compared with originals: over whole targets, and over the length of the shorter one of each pair."""
    rows = []
    for name, gap in run.gaps.items():
        if paired := gap.get("paired"):
            for length, pairs in (("full length", paired), ("equal length", paired["length_matched"])):
                columns = ("perplexity", 1, 1), ("rank_mean", 0, 1), ("low_share", 1, 100)
                before = _numbers(pairs, *((f"{key}_with", digits, scale) for key, digits, scale in columns))
                rows.append([f"{name} − {paired['with']}, {length}", f"{pairs['nll_with']:.2f}", f"{pairs['nll']:.2f}",
                             f"{pairs['difference']:+.2f} ({pairs['low']:+.2f} to {pairs['high']:+.2f})",
                             *map(" → ".join, zip(before, _numbers(pairs, *columns), strict=True)), str(pairs["n"]),
                             f"{pairs['tokens_with']:,} → {pairs['tokens']:,}"])
    return Table(["pairs", "NLL before, nats/token", "NLL after, nats/token", "difference (95 % interval)",
                  "perplexity", "mean rank", "p < 0.4, %", "records", "tokens"], rows,
                 "Only records whose target changed; every record has the same weight. Equal length: both targets are "
                 "cut to the length of the shorter one, so that a difference in length cannot explain a difference in "
                 "NLL.")


def drift_table(run: Run) -> Table:
    """Score on the task of every trained arm, and every drift of its outputs."""
    rows = []
    for arm, result in run.trained.items():
        score = _numbers(result["suites"].get(run.task), ("mean", 1, 100))
        for prompts, drift in (("general", result["general"]), ("task", result.get("on_task"))):
            if drift and ("tv" in drift or drift.get("reverse")):
                reverse = drift.get("reverse")
                rows.append([arm, *score, prompts, _drift(drift, "kl"), _drift(reverse, "kl"), _drift(drift, "tv"),
                             *_numbers(drift, ("top1", 1, 100)),
                             f"{drift['n']} / {reverse['n'] if reverse else 0}"])
    return Table(["arm", f"{run.task}, %", "prompts", "KL(base ‖ arm), nats/token", "KL(arm ‖ base), nats/token",
                  "total variation", "top-1 agreement, %", "answers of base / arm"], rows,
                 "In brackets: 95 % bootstrap intervals over answers. KL(base ‖ arm), total variation and top-1 "
                 "agreement are means over the tokens of the base model's answers, KL(arm ‖ base) over those of the "
                 "arm's answers.")


def similarity_table(run: Run) -> Table:
    """Similarity of distilled to original targets, and of every arm's general answers to the base model's."""
    targets, rows = run.measures.get("texts"), []
    columns = ("rouge_l", 2, 1), ("bleu", 2, 1), ("cosine", 2, 1)
    if targets and "rouge_l" in targets:
        rows.append(["distilled and original targets", *_numbers(targets, *columns), str(targets["n"])])
    rows += [[f"general answers of {arm} and base", *_numbers(general, *columns), str(len(general["lengths"]))]
             for arm, result in run.trained.items() if "rouge_l" in (general := result["general"])]
    return Table(["texts compared", "ROUGE-L", "BLEU", "embedding cosine", "n"], rows,
                 "1: identical texts. ROUGE-L: longest common subsequence of words. BLEU: common sequences of 1 to 4 "
                 "words. Embedding cosine: similarity in meaning, by embeddings of all-MiniLM-L6-v2.")


# -------------------------------------------------------------------------------------------------------------- weights
def weights_table(run: Run) -> Table:
    """Size, rank and direction of every trained arm's weight change."""
    rows, decomposed = [], 0
    for arm, result in run.trained.items():
        shift = result.get("shift")
        if shift and "changed_bf16" in shift:
            decomposed = sum("spectral_shift" in module for module in shift["modules"])
            rows.append([
                arm, str(len(shift["modules"])),
                *_numbers(shift, ("total", 2, 1), ("relative", 2, 100), ("changed_bf16", 1, 100)),
                *_numbers(result.get("fisher"), ("total", 3, 1)),
                *_numbers(shift, ("stable_rank", 1, 1), ("effective_rank", 1, 1), ("spectral_shift", 3, 100),
                          ("left_cosine", 4, 1), ("right_cosine", 4, 1), ("intruders", 2, 1))])
    return Table(["arm", "trained tensors", "‖ΔW‖", "‖ΔW‖/‖W‖, %", "changed in bf16, %", "Fisher-weighted shift, nats²",
                  "stable rank", "effective rank", "spectral shift, %", "principal cosine, left",
                  "principal cosine, right", "intruder dimensions of 10"], rows,
                 "Changed in bf16: share of single weights whose bf16 value differs after merging. Fisher-weighted "
                 "shift: Σ F·ΔW², each squared change weighted by how sensitive the base model's answers are to that "
                 "weight. Stable and effective rank: number of directions that ΔW uses, averaged over matrices. The "
                 f"last four columns are means over {decomposed} matrices and compare the singular value "
                 "decomposition before and after training. Spectral shift: relative change of the singular values. "
                 "Principal cosine: agreement of the 10 leading singular directions (1: the same directions). "
                 "Intruder dimensions: how many of the 10 leading directions are like none of the base model's.")


def between_table(run: Run) -> Table:
    """For every two arms: whether they changed the same weights in the same directions."""
    rows = [[pair, *_numbers(change, ("cosine", 2, 1), ("left_cosine", 2, 1), ("right_cosine", 2, 1)),
             " / ".join(number(norm, 2) for norm in change["norms"])]
            for pair, change in (run.measures.get("between") or {}).items()]
    return Table(["arms compared", "cosine of ΔW", "principal cosine, left", "principal cosine, right", "‖ΔW‖ of each"],
                 rows, "Cosine of ΔW: 1 means the same change up to its size, 0 means unrelated changes. Principal "
                 "cosines: agreement of the output directions (left) and of the input directions (right) of the two "
                 "changes, averaged over matrices. All adapters of a run start from the same A, so their input "
                 "directions agree in large part from the start.")


# --------------------------------------------------------------------------------------------------------- whole tables
def as_text(table: Table) -> str:
    """The table for a terminal: aligned columns, with the head wrapped into several lines."""
    head = [textwrap.wrap(cell, 15, break_long_words=False) or [""] for cell in table.head]
    height = max(map(len, head))
    lines = [list(line) for line in zip(*([""] * (height - len(cell)) + cell for cell in head), strict=True)]
    lines += [["─" * max(map(len, column)) for column in zip(*lines, *table.rows, strict=True)], *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join("  ".join(cell.ljust(width) if index == 0 else cell.rjust(width)
                               for index, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)
    return f"{text}\n{textwrap.fill(table.note, 120)}".rstrip()


def as_markdown(table: Table) -> str:
    """The table in Markdown, followed by its note."""
    if not table.rows:
        return ""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{text}\n\n{table.note}".rstrip()


# -------------------------------------------------------------------------------------------------------- single values
def verdict(comparison: Comparison) -> str:
    """A paired difference in words; a direction needs an interval without zero and, if known, a p_holm below 0.05."""
    difference, low, high = (100 * comparison["difference"], 100 * comparison["low"], 100 * comparison["high"])
    points = f"{difference:+.1f} points ({low:+.1f} to {high:+.1f})"
    if low <= 0 <= high or comparison.get("p_holm", 0) >= 0.05:
        return f"no difference detected, {points}"
    return f"{'gained' if low > 0 else 'lost'} {points}"


def number(value: float | None, digits: int, scale: float = 1) -> str:
    """A value with a fixed number of decimals; a dash for None."""
    return "–" if value is None else f"{value * scale:.{digits}f}"


def nats(value: float | None, sign: str = "") -> str:
    """A KL with three decimals, or with as many as show two significant digits; a dash for None."""
    digits = 3 if not value or not abs(value) < 0.01 else min(6, 1 - math.floor(math.log10(abs(value))))
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def p_value(value: float | None) -> str:
    """A p-value with three decimals, '< 0.001' where these would be zeros."""
    return number(value, 3) if value is None or value >= 0.001 else "< 0.001"


def _numbers(result: Mapping[str, object] | None, *columns: tuple[str, int, float]) -> list[str]:
    """Values of a result, for columns (key, decimals, scale); a dash where the result lacks the key."""
    return [number(_value(result, key), digits, scale) for key, digits, scale in columns]


def _score(result: Mapping[str, object] | None) -> str:
    mean, low, high = _numbers(result, ("mean", 1, 100), ("low", 0, 100), ("high", 0, 100))
    return f"{mean} ({low}–{high})" if result else "–"


def _drift(result: Mapping[str, object] | None, key: str) -> str:
    value, low, high = (nats(_value(result, name)) for name in (key, f"{key}_low", f"{key}_high"))
    return "–" if value == "–" else f"{value} ({low}–{high})"


def _value(result: Mapping[str, object] | None, key: str) -> float | None:
    value = result.get(key) if result else None
    return value if isinstance(value, int | float) else None
