"""The tables of the single measures: the gap of the targets, the drift of the outputs, the texts, the weights."""
from __future__ import annotations

from typing import Any

from sdft.report.run import Run
from sdft.report.tables import Table, nats, number


def gap_table(run: Run) -> Table:
    """Every set of targets under the seed: NLL, rank and low-probability share."""
    rows = [[name, *(number(part.get(key), digits, scale) for key, digits, scale in (
        ("nll", 2, 1), ("perplexity", 1, 1), ("rank_median", 0, 1), ("rank_mean", 0, 1), ("rank0", 1, 100),
        ("low", 1, 100))), f"{part['tokens']:,}", str(len(part["records"]))]
        for name, part in (run.measures.get("gap") or {}).items() if "rank0" in part]
    return Table(["targets", "NLL, nats/token", "perplexity", "rank, median", "rank, mean", "at rank 0, %",
                  "p < 0.4, %", "tokens", "records"], rows,
                 "Under the untouched seed. Rank: how many tokens of the vocabulary are more probable than the target "
                 "token; 0 is what greedy decoding would have written. p < 0.4: the share of low-probability tokens.")


def paired_table(run: Run) -> Table:
    """Rewrites against originals, record by record: whole, and over equally many tokens."""
    rows = []
    for name, part in (run.measures.get("gap") or {}).items():
        if paired := part.get("paired"):
            for label, row in (("whole", paired), ("equally many tokens", paired["length_matched"])):
                rows.append([f"{name} − {paired['with']}, {label}", f"{row['nll_with']:.2f}", f"{row['nll']:.2f}",
                             f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})",
                             *(f"{number(row.get(f'{key}_with'), digits, scale)} → {number(row.get(key), digits, scale)}"
                               for key, digits, scale in (("perplexity", 1, 1), ("rank_mean", 0, 1),
                                                          ("low_share", 1, 100))),
                             str(row["n"]), f"{row['tokens_with']:,} → {row['tokens']:,}"])
    return Table(["pairs", "NLL before, nats/token", "after", "difference (95 % interval)", "perplexity", "rank, mean",
                  "p < 0.4, %", "records", "tokens"], rows,
                 "Only records whose target changed; every record weighs alike. Equally many tokens: both texts are "
                 "read up to the length of the shorter, so the difference cannot come from the other being longer.")


def drift_table(run: Run) -> Table:
    """Every trained arm: what it learned, and every drift of its outputs, on general prompts and the task's."""
    arms, suite = run.measures["arms"], next(iter(run.measures["arms"][run.arms[0]]["suites"]))
    rows = []
    for arm in run.trained:
        learned = number(arms[arm]["suites"].get(suite, {}).get("mean"), 1, scale=100)
        for prompts, key in (("general", "general"), ("the task's", "on_task")):
            part = arms[arm].get(key) or {}
            reverse = part.get("reverse") or {}
            if "tv" in part or reverse:
                rows.append([arm, learned, prompts, _interval(part, "kl"), _interval(reverse, "kl"),
                             _interval(part, "tv"), number(part.get("top1"), 1, scale=100),
                             f"{part.get('n', 0)} / {reverse.get('n', 0)}"])
    return Table(["arm", f"{suite}, %", "prompts", "KL(seed ‖ arm), nats/token", "KL(arm ‖ seed), nats/token",
                  "total variation", "top-1, %", "answers of seed / arm"], rows,
                 "In brackets: 95 % bootstrap intervals over answers. KL(seed ‖ arm), total variation and top-1 "
                 "agreement: at every token of the seed's answers; KL(arm ‖ seed): of the arm's own.")


def likeness_table(run: Run) -> Table:
    """How alike texts are: the distilled targets to the originals, every arm's general answers to the seed's."""
    targets, general = run.measures.get("texts") or {}, {
        arm: run.measures["arms"][arm].get("general") or {} for arm in run.trained}
    pairs = [("distilled targets to originals", targets, targets.get("n", 0))]
    pairs += [(f"general answers, {arm} to seed", part, len(part.get("lengths", ()))) for arm, part in general.items()]
    rows = [[name, *(number(part.get(key), 2) for key in ("rouge_l", "bleu", "cosine")), str(n)]
            for name, part, n in pairs if "rouge_l" in part]
    return Table(["texts", "ROUGE-L", "BLEU", "cosine", "n"], rows,
                 "1: the same text. ROUGE-L: words in common in the same order. BLEU: runs of 1 to 4 words in common. "
                 "Cosine of all-MiniLM-L6-v2 embeddings: meaning in common.")


def weights_table(run: Run) -> Table:
    """Every trained arm: how far its weights moved, in how many directions, and whether these are the seed's own."""
    arms, rows, decomposed = run.measures["arms"], [], 0
    for arm in run.trained:
        shift, fisher = arms[arm].get("shift") or {}, arms[arm].get("fisher") or {}
        if "changed_bf16" not in shift:
            continue
        decomposed = sum("spectral_shift" in module for module in shift["modules"])
        rows.append([arm, str(len(shift["modules"])), number(shift["total"], 2), number(shift["relative"], 2, 100),
                     number(shift["changed_bf16"], 1, 100), number(fisher.get("total"), 3), *(number(
                         shift.get(key), digits, scale) for key, digits, scale in (
                             ("stable_rank", 1, 1), ("effective_rank", 1, 1), ("spectral_shift", 3, 100),
                             ("left_cosine", 4, 1), ("right_cosine", 4, 1), ("intruders", 2, 1)))])
    return Table(["arm", "weights", "‖ΔW‖", "‖ΔW‖/‖W‖, %", "changed in bf16, %", "Fisher-weighted shift, nats²", "stable rank",
                  "effective rank", "spectral shift, %", "principal cosine, left", "right", "intruders of 10"], rows,
                 "Weights: matrices and vectors that were trained. Changed in bf16: the share of single weights whose "
                 "bf16 value is another one after merging. Fisher-weighted: Σ F·ΔW², which counts a change by how much the "
                 "seed's answers depend on that weight. Ranks: how many directions ΔW takes, in the mean over matrices. "
                 f"The rest: the mean over {decomposed} matrices that were decomposed before and after: how far the "
                 "singular values moved, whether the 10 leading directions are still the seed's (1: yes), and how many "
                 "of them are like none of the seed's.")


def between_table(run: Run) -> Table:
    """Every two arms: did they change the same weights in the same directions?"""
    rows = [[pair, *(number(part.get(key), 2) for key in ("cosine", "left_cosine", "right_cosine")),
             " / ".join(number(norm, 2) for norm in part["norms"])]
            for pair, part in (run.measures.get("between") or {}).items()]
    return Table(["two arms", "cosine of ΔW", "principal cosine, left", "right", "‖ΔW‖ of each"], rows,
                 "Cosine: of the two changes as vectors; 1: the same change but for its size, 0: unrelated. Principal "
                 "cosines: of the directions that the changes write (left) and read (right), in the mean over matrices. "
                 "Adapters of one run begin with the same A, so much of what they read is common from the start.")


def _interval(part: dict[str, Any], name: str) -> str:
    value = part.get(name)
    return "–" if value is None else f"{nats(value)} ({nats(part[f'{name}_low'])}–{nats(part[f'{name}_high'])})"
