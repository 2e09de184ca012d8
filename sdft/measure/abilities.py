"""Abilities: run a suite of test items, keep every answer with its score, and sum the scores up.

    items ─encode→ requests ─stream→ eval/<arm>/<suite>.jsonl ─summarise→ mean and interval, by kind
                                     (a line as each finishes)  ─against→ paired difference from another arm, p-value

    sdft eval --suite instructions --model smollm2-135m --out eval/base
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from sdft.data.chat import encode_prompt
from sdft.distill.resume import fitting, resume
from sdft.errors import SdftError
from sdft.generation import Request, Sampling, stream
from sdft.measure.statistics import bootstrap_mean, holm, mcnemar, paired_difference, sign_flip
from sdft.model.io.fingerprint import fingerprint
from sdft.progress import progress
from sdft.tasks.base import Item, Suite


class Sheet:
    """The answers to one suite: those that its journal holds, and those that are still to be written."""

    def __init__(self, suite: Suite, path: Path, made_with: Mapping[str, Any]):
        self.suite, self.path = suite, path
        self.journal, self.lines = resume(path, made_with)
        self._refuse_foreign()

    def waiting(self) -> list[Item]:
        """The items without an answer."""
        return [item for item in self.suite.items if item.id not in self.lines]

    def keep(self, item: Item, output: str = "", tokens: int = 0, finish: str = "length") -> None:
        """Score an answer, and write its line."""
        score = None if self.suite.score is None else float(self.suite.score(item, output))
        self.lines[item.id] = {"id": item.id, "kind": item.kind, "prompt": item.messages[-1]["content"],
                               "output": output, "tokens": tokens, "finish": finish, "score": score}
        self.journal.append(self.lines[item.id])

    def _refuse_foreign(self) -> None:
        items = {item.id: item for item in self.suite.items}
        for id, line in self.lines.items():
            if id not in items or line["prompt"] != items[id].messages[-1]["content"]:
                raise SdftError(f"{self.path}: item {id} {'has another prompt' if id in items else 'is not'} in this "
                                "suite; the file belongs to other test items: use those, or another folder to start anew")


def evaluate(model, tokenizer, suites: Sequence[Suite], folder: Path, sampling: Sampling = Sampling(),
             batch_size: int = 32, chat: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Answer every item of the suites, at most its suite's max_new_tokens tokens each; return suite → lines, by item.

    All are answered in one stream: the rows that one suite leaves free at its end are filled by the next. A line of the
    journal <folder>/<suite>.jsonl: id, kind, prompt (the last user turn), output, tokens (how many), finish, score
    (None in a suite that keeps outputs only). A run that was killed goes on after the last line. An item that does not
    fit the model's context is told on stderr, and is an empty answer like any other.

    Raises SdftError when a journal was made with another model, chat format or sampling, or for other items.
    """
    made_with = {"model": fingerprint(model), "chat": chat or tokenizer.chat}
    sheets = [Sheet(suite, Path(folder) / f"{suite.name}.jsonl", made_with | {
        "sampling": asdict(replace(sampling, max_new_tokens=suite.max_new_tokens))}) for suite in suites]
    asked = {f"{sheet.suite.name} {item.id}": (sheet, item) for sheet in sheets for item in sheet.waiting()}
    requests = [Request(id, encode_prompt(tokenizer, item.messages, chat=chat), sheet.suite.max_new_tokens)
                for id, (sheet, item) in asked.items()]
    total, kept = sum(len(suite.items) for suite in suites), fitting(requests, model.config.context_length, "evaluate")
    with ExitStack() as journals, progress(total=total, desc="evaluate", unit="item") as bar:
        for sheet in sheets:
            journals.enter_context(sheet.journal)
        bar.update(total - len(kept))
        for request in requests:
            if request not in kept:
                sheet, item = asked[request.id]
                sheet.keep(item)
        for output in stream(model, tokenizer, kept, sampling, batch_size):
            sheet, item = asked[output.id]
            sheet.keep(item, output.text, len(output.tokens), output.finish)
            bar.update()
    return {sheet.suite.name: [sheet.lines[item.id] for item in sheet.suite.items] for sheet in sheets}


def summarise(rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Sum up the lines of a scored suite: mean with its 95 % interval, n, tokens_mean, and the mean of every kind."""
    mean, low, high = bootstrap_mean([row["score"] for row in rows], seed)
    kinds = sorted({row["kind"] for row in rows} - {""})
    by_kind = {kind: fmean(row["score"] for row in rows if row["kind"] == kind) for kind in kinds}
    return {"mean": mean, "low": low, "high": high, "n": len(rows),
            "tokens_mean": fmean(row["tokens"] for row in rows), "by_kind": by_kind}


def against(rows: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """The mean of score − other score, item by item, with its 95 % interval: difference, low, high, and n items.

    p is two-sided, of `test`: McNemar's exact test where all scores are 0 or 1, else the sign-flip test.
    """
    first, second = joined(rows, others)
    mine, their = ([row["score"] for row in side] for side in (first, second))
    difference, low, high = paired_difference(mine, their, seed)
    if {*mine, *their} <= {0, 1}:
        test, p = "McNemar", mcnemar(mine, their)
    else:
        test, p = "sign-flip", sign_flip([a - b for a, b in zip(mine, their, strict=True)], seed)
    return {"difference": difference, "low": low, "high": high, "n": len(mine), "p": p, "test": test}


def adjust_together(arms: dict[str, Any]) -> None:
    """Put Holm's adjusted p-value, p_holm, beside the p of every comparison of a run: all of them are one family.

    arms: arm → suites → suite → against_… → what `against` returned.
    """
    family = [found for arm in arms.values() for suite in arm["suites"].values()
              for key, found in suite.items() if key.startswith("against_")]
    for found, adjusted in zip(family, holm([found["p"] for found in family]), strict=True):
        found["p_holm"] = adjusted


def joined(rows: Sequence[dict[str, Any]],
           others: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of both, in one order of ids (SdftError where the two do not hold the same ids)."""
    by_id = {row["id"]: row for row in others}
    alone = {row["id"] for row in rows} ^ by_id.keys()
    if alone:
        raise SdftError(f"expected answers to the same items, but {len(alone)} stand on one side only (one is "
                        f"{min(alone)}); evaluate both on one suite")
    return list(rows), [by_id[row["id"]] for row in rows]
