"""Abilities: answer suites of test items, keep every answer with its score, and summarise the scores.

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
from typing import Any, TypeVar, cast

from sdft.data.chat import encode_prompt
from sdft.distill.resume import fitting, resume
from sdft.errors import SdftError
from sdft.generation import Request, Sampling, stream
from sdft.measure.statistics import bootstrap_mean, mcnemar, paired_difference, sign_flip
from sdft.model.io.checkpoints import fingerprint
from sdft.model.llama import Llama
from sdft.progress import progress
from sdft.results import AnswerDrift, AnswerLine, Comparison, ScoreSummary
from sdft.tasks.base import Item, Suite
from sdft.tokenizers.tokenizer import Tokenizer

Line = TypeVar("Line", AnswerLine, AnswerDrift)


class AnswerSheet:
    """The answers to one suite: those that its journal holds, and those that are still missing."""

    def __init__(self, suite: Suite, path: Path | None, made_with: Mapping[str, Any]):
        self.suite, self.path = suite, path
        self.journal, lines = resume(path, made_with)
        self.lines = cast(dict[str, AnswerLine], lines)
        items = {item.id: item for item in suite.items}
        for id, line in self.lines.items():
            if id not in items or line["prompt"] != items[id].messages[-1]["content"]:
                raise SdftError(f"{path}: item {id} {'has another prompt' if id in items else 'is not'} in this suite; "
                                "the file belongs to other test items: use those, or another folder")

    def keep(self, item: Item, output: str = "", tokens: int = 0, finish: str = "length") -> None:
        """Score an answer, and append its line to the journal."""
        score = None if self.suite.score is None else float(self.suite.score(item, output))
        self.lines[item.id] = {"id": item.id, "kind": item.kind, "prompt": item.messages[-1]["content"],
                               "output": output, "tokens": tokens, "finish": finish, "score": score}
        self.journal.append(self.lines[item.id])


def evaluate(model: Llama, tokenizer: Tokenizer, suites: Sequence[Suite], folder: Path | None,
             sampling: Sampling = Sampling(), batch_size: int = 32, chat: str | None = None
             ) -> dict[str, list[AnswerLine]]:
    """Answer every item of the suites, with at most its suite's max_new_tokens; return suite → lines in item order.

    All suites share one stream, so the next suite fills the batch as one ends. An interrupted call resumes after the
    last line of the journals in `folder`; with None nothing is written. An item that does not fit the model's context
    is reported on stderr, and counts as an empty answer. Raises SdftError when a journal was made with another model,
    chat format or sampling, or other items.
    """
    made_with = {"model": fingerprint(model), "chat": chat or tokenizer.chat}
    sheets = [AnswerSheet(suite, None if folder is None else Path(folder) / f"{suite.name}.jsonl", made_with | {
        "sampling": asdict(replace(sampling, max_new_tokens=suite.max_new_tokens))}) for suite in suites]
    asked = {f"{sheet.suite.name} {item.id}": (sheet, item)
             for sheet in sheets for item in sheet.suite.items if item.id not in sheet.lines}
    requests = [Request(id, encode_prompt(tokenizer, item.messages, chat=chat), sheet.suite.max_new_tokens)
                for id, (sheet, item) in asked.items()]
    total, kept = sum(len(suite.items) for suite in suites), fitting(requests, model.config.context_length, "evaluate")
    with ExitStack() as journals, progress(total=total, desc="evaluate", unit="item") as bar:
        for sheet in sheets:
            journals.enter_context(sheet.journal)
        for request in requests:
            if request not in kept:
                sheet, item = asked[request.id]
                sheet.keep(item)
        bar.update(total - len(kept))
        for output in stream(model, tokenizer, kept, sampling, batch_size):
            sheet, item = asked[output.id]
            sheet.keep(item, output.text, len(output.tokens), output.finish)
            bar.update()
    return {sheet.suite.name: [sheet.lines[item.id] for item in sheet.suite.items] for sheet in sheets}


def _scores(lines: Sequence[AnswerLine]) -> list[float]:
    return [line["score"] for line in lines if line["score"] is not None]


def summarise(lines: Sequence[AnswerLine], seed: int = 0) -> ScoreSummary:
    """The mean score of a scored suite with its 95 % interval, and the mean length of the outputs."""
    mean, low, high = bootstrap_mean(_scores(lines), seed)
    return {"mean": mean, "low": low, "high": high, "n": len(lines),
            "tokens_mean": fmean(line["tokens"] for line in lines)}


def against(lines: Sequence[AnswerLine], references: Sequence[AnswerLine], seed: int = 0) -> Comparison:
    """The mean of score − reference's score over the same items, with its 95 % interval and a two-sided p-value."""
    a, b = (_scores(side) for side in by_same_id(lines, references))
    return compare_scores(a, b, seed)


def compare_scores(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """The mean of a − b over the same items, with its 95 % interval and a two-sided p-value."""
    difference, low, high = paired_difference(a, b, seed)
    binary = {*a, *b} <= {0, 1}                                 # right or wrong
    p = mcnemar(a, b) if binary else sign_flip([x - y for x, y in zip(a, b, strict=True)], seed)
    return {"difference": difference, "low": low, "high": high, "n": len(a), "p": p,
            "test": "McNemar" if binary else "sign-flip"}


def by_same_id(lines: Sequence[Line], references: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Both in the order of `lines`, joined by "id" (SdftError where the two do not hold the same ids)."""
    by_id = {line["id"]: line for line in references}
    unmatched = {line["id"] for line in lines} ^ by_id.keys()
    if unmatched:
        raise SdftError(f"expected answers to the same items, but {len(unmatched)} are on one side only (one is "
                        f"{min(unmatched)}); evaluate both on one suite")
    return list(lines), [by_id[line["id"]] for line in lines]
