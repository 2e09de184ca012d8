"""The tables of a run's report, made from measures.json alone, and their forms as plain text and Markdown.

The tables of the suites, item by item, are in suite_tables.py.
"""
from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from sdft.report.run import Run
from sdft.results import Comparison, Share, SuiteResult

FLIPS = ("F (forgetting): of the items that the base model solves, the share that the arm no longer solves. BT "
         "(backward transfer): of the items that the base model fails, the share that the arm solves.")


@dataclass(frozen=True)
class Table:
    """A table of text: the first column names the line, the others hold values."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""


# ----------------------------------------------------------------------------------------------------- result, training
def result_table(run: Run) -> Table:
    """Arms × measures: mean, forgetting and transfer on every suite, drift of the general answers, shift of weights."""
    suites = run.results["base"]["suites"]
    head = ["arm", *(cell for name, suite in suites.items()
                     for cell in (f"{name}: {suite['metric']}, %", f"{name}: F / BT, %")),
            "long answers kept, %", "KL of the first 8 tokens, nats/token", "KL(base ‖ arm), nats/token",
            "answer length, tokens", "‖ΔW‖", "‖ΔW‖/‖W‖, %"]
    rows = [[arm, *(cell for suite in suites for result in [results["suites"].get(suite)]
                    for cell in (_score(result), flipped(result))),
             *_numbers(results["general"].get("long_answers"), ("share", 1, 100)),
             *(nats(_value(results["general"], key)) for key in ("kl8", "kl")),
             *_numbers(results["general"], ("length_mean", 0, 1)),
             *_numbers(results.get("shift"), ("total", 2, 1), ("relative", 2, 100))]
            for arm, results in run.results.items()]
    general = run.results["base"]["general"]
    return without_empty_columns(Table(
        head, rows, f"In brackets: 95 % bootstrap intervals. {FLIPS} KL is measured on the answers to "
        f"{general.get('n', 0)} general prompts, long answers and answer length on {len(general.get('lengths', ()))}. "
        "‖ΔW‖ is the Frobenius norm of the change of all weights."))


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
            if drift and not {"kl8", "tv", "reverse"}.isdisjoint(drift):
                reverse = drift.get("reverse")
                rows.append([arm, *score, prompts, *(_drift(drift, key) for key in ("kl8", "kl32", "kl")),
                             _drift(reverse, "kl"), _drift(drift, "tv"),
                             *_numbers(drift, ("top1", 1, 100)),
                             f"{drift['n']} / {reverse['n'] if reverse else 0}"])
    return without_empty_columns(Table(
        ["arm", f"{run.task}, %", "prompts", "KL of the first 8 tokens", "KL of the first 32 tokens",
         "KL(base ‖ arm), nats/token", "KL(arm ‖ base), nats/token", "total variation", "top-1 agreement, %",
         "answers of base / arm"], rows,
        "In brackets: 95 % bootstrap intervals over answers. KL(base ‖ arm), also of the first tokens, total variation "
        "and top-1 agreement are means over the tokens of the base model's answers"
        + (", KL(arm ‖ base) over those of the arm's answers." if any(row[6] != "–" for row in rows) else ".")))


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
        if shift := result.get("shift"):
            decomposed = sum("spectral_shift" in module for module in shift["modules"])
            rows.append([
                arm, str(len(shift["modules"])),
                *_numbers(shift, ("total", 2, 1), ("relative", 2, 100), ("changed_bf16", 1, 100)),
                *_numbers(result.get("fisher"), ("total", 3, 1)),
                *_numbers(shift, ("stable_rank", 1, 1), ("effective_rank", 1, 1), ("spectral_shift", 3, 100),
                          ("left_cosine", 4, 1), ("right_cosine", 4, 1), ("intruders", 2, 1))])
    note = "‖ΔW‖: Frobenius norm of the change of all weights. ‖W‖: their norm before training."
    if any("changed_bf16" in (result.get("shift") or {}) for result in run.trained.values()):
        note += (
            " Changed in bf16: share of single weights whose bf16 value differs after merging. Fisher-weighted shift: "
            "Σ F·ΔW², each squared change weighted by how sensitive the base model's answers are to that weight. "
            "Stable and effective rank: number of directions that ΔW uses, averaged over matrices. The last four "
            f"columns are means over {decomposed} matrices and compare the singular value decomposition before and "
            "after training. Spectral shift: relative change of the singular values. Principal cosine: agreement of "
            "the 10 leading singular directions (1: the same directions). Intruder dimensions: how many of the 10 "
            "leading directions are like none of the base model's.")
    return without_empty_columns(Table(
        ["arm", "trained tensors", "‖ΔW‖", "‖ΔW‖/‖W‖, %", "changed in bf16, %", "Fisher-weighted shift, nats²",
         "stable rank", "effective rank", "spectral shift, %", "principal cosine, left", "principal cosine, right",
         "intruder dimensions of 10"], rows, note))


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
def without_empty_columns(table: Table) -> Table:
    """The table without the columns that hold a dash in every row: measures that the run does not have."""
    kept = [not index or any(row[index] != "–" for row in table.rows) for index in range(len(table.head))]
    head, *rows = ([cell for cell, keep in zip(line, kept, strict=True) if keep] for line in (table.head, *table.rows))
    return Table(head, rows, table.note)


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
def direction(comparison: Comparison) -> int:
    """1 or -1 where a difference was detected: its interval excludes zero and p is below 0.05; otherwise 0.

    p is Holm's adjusted p-value; that of a primary end point is not adjusted.
    """
    low, high = comparison["low"], comparison["high"]
    p = comparison.get("p_holm", comparison.get("p", 0.0))
    return 0 if low <= 0 <= high or p >= 0.05 else 1 if low > 0 else -1


def verdict(comparison: Comparison, more: str = "gained", less: str = "lost") -> str:
    """A paired difference of shares in words, with its interval in percentage points."""
    difference, low, high = (100 * comparison["difference"], 100 * comparison["low"], 100 * comparison["high"])
    detected = {1: more, -1: less, 0: "no difference detected,"}[direction(comparison)]
    return f"{detected} {difference:+.1f} points ({low:+.1f} to {high:+.1f})"


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


def flipped(result: SuiteResult | None) -> str:
    """F / BT in %, as '91.3 / 1.2'; a dash where neither is known."""
    shares = [result.get("forgetting"), result.get("backward_transfer")] if result else []
    return " / ".join(number(share["share"] if share else None, 1, 100) for share in shares) if any(shares) else "–"


def interval(share: Share | None) -> str:
    """A share in % with its interval, as '36.2 (26–48)'; a dash for None."""
    return f"{100 * share['share']:.1f} ({100 * share['low']:.0f}–{100 * share['high']:.0f})" if share else "–"


def _score(result: Mapping[str, object] | None) -> str:
    mean, low, high = _numbers(result, ("mean", 1, 100), ("low", 0, 100), ("high", 0, 100))
    return f"{mean} ({low}–{high})" if result else "–"


def _drift(result: Mapping[str, object] | None, key: str) -> str:
    value, low, high = (nats(_value(result, name)) for name in (key, f"{key}_low", f"{key}_high"))
    return "–" if value == "–" else f"{value} ({low}–{high})"


def _value(result: Mapping[str, object] | None, key: str) -> float | None:
    value = result.get(key) if result else None
    return value if isinstance(value, int | float) else None
