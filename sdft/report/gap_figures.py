"""Figures of the gap: how surprising the training targets are to the seed, before and after distillation."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdft.report.draw import COLOURS, MARKERS, Figure, band_name, how_many, svg_of
from sdft.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

LINES = ("-", "--", ":", "-.") * 2


def gap_distribution(run: Run) -> Figure | None:
    """How the records' NLL is distributed, one outline per set of targets."""
    found = {name: np.array([row["nll"] for row in part["records"]]) for name, part in _gap(run).items()}
    if not found:
        return None
    edges = np.linspace(0, max(values.max() for values in found.values()) * 1.001 + 1e-9, 31)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for (name, values), colour, line in zip(found.items(), COLOURS[1:], LINES, strict=False):
            axes.hist(values, edges, weights=np.full(len(values), 100 / len(values)), histtype="step", linewidth=1.6,
                      color=colour, linestyle=line, label=f"{name} (median {np.median(values):.2f})")
        axes.set(xlabel="NLL of a record's target under the seed, nats/token", ylabel="records, %", xlim=(0, edges[-1]),
                 title=f"How surprising the targets are to the seed (n = {how_many(found.values())})")
        axes.legend()

    return Figure("gap_distribution", svg_of(draw), "The mean NLL of every record's target tokens under the untouched "
                  "seed. The further left, the closer the targets are to what the seed would have said anyway.")


def gap_by_place(run: Run) -> Figure | None:
    """NLL under the seed by place of the token among a record's targets, one line per set of targets."""
    found = {name: part["by_position"] for name, part in _gap(run).items() if part.get("by_position")}
    if not found:
        return None
    longest = max(found.values(), key=lambda rows: rows[-1]["last"])

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for (name, rows), colour, marker in zip(found.items(), COLOURS[1:], MARKERS[1:], strict=False):
            axes.plot(range(len(rows)), [row["nll"] for row in rows], color=colour, marker=marker,
                      label=f"{name} ({sum(row['tokens'] for row in rows):,} tokens)")
        axes.set_xticks(range(len(longest)), [band_name(row) for row in longest])
        axes.set(xlabel="place of the token in the target", ylabel="NLL under the seed, nats/token", ylim=(0, None),
                 title=f"Where in a target the gap is (n = {how_many(_gap(run)[name]['records'] for name in found)})")
        axes.legend()

    return Figure("gap_by_place", svg_of(draw), "The mean over all targets' tokens at these places. A longer target "
                  "has more late tokens, which are cheaper since more is given: at equal places this does not count.")


def target_nll(run: Run) -> Figure | None:
    """NLL per token under the seed of every record's original target against its distilled one."""
    gap = _gap(run)
    if not {"original", "distilled"} <= gap.keys():
        return None
    before = {row["id"]: row["nll"] for row in gap["original"]["records"]}
    after = {row["id"]: row["nll"] for row in gap["distilled"]["records"]}
    rewritten = {row["id"] for row in run.distilled if row["source"] == "rewrite"}
    shared = [key for key in before if key in after]

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for label, chosen, colour, marker in (
            ("rewrite accepted", [key for key in shared if key in rewritten], COLOURS[2], "o"),
            ("original kept", [key for key in shared if key not in rewritten], COLOURS[1], "x"),
        ):
            if chosen:
                axes.scatter([before[key] for key in chosen], [after[key] for key in chosen], s=14, alpha=0.6,
                             color=colour, marker=marker, label=f"{label} ({len(chosen)})")
        edge = max([*before.values(), *after.values(), 1e-9]) * 1.05
        axes.plot([0, edge], [0, edge], color="#888", linewidth=1, linestyle="--", label="no change")
        axes.set(xlabel="NLL of the original target, nats/token", ylabel="NLL of the distilled target, nats/token",
                 title=f"The gap to the seed, record by record (n = {len(shared)})", xlim=(0, edge), ylim=(0, edge))
        axes.legend(loc="upper left")

    return Figure("target_nll", svg_of(draw), "Each point is one training record: how surprising its target is to the "
                  f"seed before and after distillation. Per token of all targets: {gap['original']['nll']:.2f} nats "
                  f"original, {gap['distilled']['nll']:.2f} distilled. Below the line: closer to the seed.")


def _gap(run: Run) -> dict[str, dict]:
    return run.measures.get("gap") or {}
