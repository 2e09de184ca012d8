"""The distribution gap of the training targets: how surprising they are to the seed (arXiv 2402.13669, section 3).

    nll   −log p(y_t | c, x, y_<t)                  nats; of a record the mean over its |y| target tokens
    rank  how many tokens of the vocabulary have p > p(y_t | …)         0: the target is the most probable token
    low   share of the target tokens with p(y_t | …) < 0.4, an NLL above 0.92 nats: training on such tokens is what
          makes a model forget, and rewriting spares it them (arXiv 2501.14315)

p is the model's as it is: the seed's before training. Originals are set against rewrites record by record, and also
over equally many tokens: rewriting is to close the gap.

    from sdft.measure.outputs.gap import gap, gaps
    print(gap(model, examples)["nll"])
    print(gaps(model, {"original": examples, "distilled": others})["distilled"]["paired"])   # prompts computed once
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdft.data.chat import Example
from sdft.kernels.divergence import few_at_a_time, label_nll
from sdft.measure.passes import ROWS, fitting, packed, target_hidden
from sdft.measure.positions import by_position
from sdft.measure.statistics import paired_difference
from sdft.model.llama import Llama

LOW = 0.4            # a target of less probability is a low-probability token: arXiv 2501.14315


@dataclass(frozen=True)
class Targets:
    """One record's target tokens under the model: n of them, in order, those of all trained turns."""

    id: str
    tokens: list[int]           # (n,)
    nll: np.ndarray             # (n,) nats, fp64
    rank: np.ndarray            # (n,) whole numbers

    def first(self, count: int) -> Targets:
        """The first `count` of them."""
        return Targets(self.id, self.tokens[:count], self.nll[:count], self.rank[:count])


def gap(model: Llama, examples: Sequence[Example], desc: str = "gap") -> dict[str, Any]:
    """The gap of one set of targets.

    Over all target tokens: nll (nats per token), perplexity (its exponential), rank_mean, rank_median, rank0 (share of
    tokens at rank 0), low (share with p < 0.4), tokens (how many). by_position: the NLL by place among the record's
    targets, as {first, last, nll, tokens} with places counted from 1. records: `target_nll`.
    """
    return _summary(list(targets(model, fitting(model, examples, desc), desc)))


def gaps(model: Llama, sets: Mapping[str, Sequence[Example]], desc: str = "gap") -> dict[str, dict[str, Any]]:
    """`gap` of several sets of targets for the same records: what their prompts share is computed once.

    Every set but the first also has `paired`: see `paired`. It is left out where no record's target differs.
    """
    kept = {name: fitting(model, examples, f"{desc}, {name}") for name, examples in sets.items()}
    side_by_side = zip_longest(*([(name, example) for example in examples] for name, examples in kept.items()))
    named = [pair for pair in chain(*side_by_side) if pair is not None]
    measured: dict[str, list[Targets]] = {name: [] for name in sets}
    for (name, _), record in zip(named, targets(model, [example for _, example in named], desc), strict=True):
        measured[name].append(record)
    first, *others = measured
    found = {name: _summary(records) for name, records in measured.items()}
    for name in others:
        if pairing := paired(measured[name], measured[first]):
            found[name]["paired"] = {"with": first, **pairing}
    return found


def paired(own: Sequence[Targets], other: Sequence[Targets]) -> dict[str, Any]:
    """The NLL of the records' own targets less that of their other ones, record by record ({} where none differ).

    Over the n records that have both and where the tokens differ: nll, rank_mean, rank0 and low_share, the mean over
    records of what the tokens of one have on average (nats, rank, share at rank 0, share with p < 0.4: every record
    weighs alike); perplexity, exp(nll); tokens, how many; and the same of the other targets under these names with
    _with behind. difference = nll − nll_with in nats per token, with the 95 % bootstrap interval over records (low,
    high).

    length_matched is the same over the first min(|own|, |other|) target tokens of each pair. Both sides then have
    equally many tokens at the same places, so the difference cannot come from the one being longer (late tokens have
    more context, and are cheaper). It does not control what is said at these places: a rewrite may open with a stock
    phrase, and of the two ends of text only that of the shorter is counted.
    """
    others = {record.id: record for record in other}
    both = [(record, others[record.id]) for record in own if record.id in others]
    pairs = [(a, b) for a, b in both if a.tokens != b.tokens]
    if not pairs:
        return {}
    shortest = [min(len(a.tokens), len(b.tokens)) for a, b in pairs]
    matched = [(a.first(count), b.first(count)) for (a, b), count in zip(pairs, shortest, strict=True)]
    return {**_set_against(pairs), "length_matched": _set_against(matched)}


def _set_against(pairs: Sequence[tuple[Targets, Targets]]) -> dict[str, float]:
    own, other = ([_row(record) for record in side] for side in zip(*pairs, strict=True))
    found = paired_difference([row["nll"] for row in own], [row["nll"] for row in other])
    return {"n": len(pairs), **_means(own), **{f"{name}_with": value for name, value in _means(other).items()},
            **dict(zip(("difference", "low", "high"), found, strict=True))}


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of the rows of records: `low` is called low_share, since beside it low is the end of an interval."""
    nll, rank, rank0, low = (fmean(row[name] for row in rows) for name in ("nll", "rank", "rank0", "low"))
    return {"nll": nll, "perplexity": math.exp(nll), "rank_mean": rank, "rank0": rank0, "low_share": low,
            "tokens": sum(row["tokens"] for row in rows)}


def target_nll(model: Llama, examples: Sequence[Example], desc: str = "gap") -> list[dict[str, Any]]:
    """Every example's target tokens in one row: id, nll (their mean, nats per token), low (the share with p < 0.4),
    rank (their mean), rank0 (the share at rank 0), tokens (how many).

    An example that does not fit the context, or has no target, is told on stderr and has no row.
    """
    return [_row(record) for record in targets(model, fitting(model, examples, desc), desc)]


def token_map(model: Llama, tokenizer, sets: Mapping[str, Sequence[Example]], ids: Sequence[str],
              desc: str = "token map") -> list[dict[str, Any]]:
    """The NLL of single tokens, for the records `ids`: what a heat map shows.

    Per record {id, texts}, texts[name] = {pieces, nll, rank}: the texts of its target tokens in that set, their NLL in
    nats and their rank. A record that a set lacks, or that does not fit, is left out of that set.
    """
    found: dict[str, dict[str, Any]] = {id: {} for id in ids}
    for name, examples in sets.items():
        chosen, what = [example for example in examples if example.id in found], f"{desc}, {name}"
        for record in targets(model, fitting(model, chosen, what), what) if chosen else ():
            found[record.id][name] = {"pieces": [tokenizer.piece(token) for token in record.tokens],
                                      "nll": [round(nll, 3) for nll in record.nll.tolist()],
                                      "rank": record.rank.tolist()}
    return [{"id": id, "texts": texts} for id, texts in found.items() if texts]


def _summary(records: Sequence[Targets]) -> dict[str, Any]:
    nll, rank = (np.concatenate([getattr(record, name) for record in records]) for name in ("nll", "rank"))
    mean = math.fsum(nll) / len(nll)
    return {"nll": mean, "perplexity": math.exp(mean), "rank_mean": float(rank.mean()),
            "rank_median": float(np.median(rank)), "rank0": float((rank == 0).mean()), "low": _low(nll),
            "tokens": len(nll), "by_position": by_position([record.nll.tolist() for record in records], "nll"),
            "records": [_row(record) for record in records]}


def _row(record: Targets) -> dict[str, Any]:
    return {"id": record.id, "nll": float(record.nll.mean()), "low": _low(record.nll),
            "rank": float(record.rank.mean()), "rank0": float((record.rank == 0).mean()), "tokens": len(record.nll)}


def _low(nll: np.ndarray) -> float:
    return float((nll > -math.log(LOW)).mean())


@torch.inference_mode()
def targets(model: Llama, examples: Sequence[Example], desc: str) -> Iterator[Targets]:
    """Every example's targets, token by token; all of them fit and have some (see `fitting`)."""
    for batch in packed(model, examples, desc):
        x = target_hidden(model, batch)                                             # (n, D)
        labels = batch.labels[batch.rows]                                           # (n,)
        parts = [few_at_a_time(_surprise, model.head(x_rows), y_rows)
                 for x_rows, y_rows in zip(x.split(ROWS), labels.split(ROWS), strict=True)]
        columns = (torch.cat(part).cpu().split(batch.counts) for part in zip(*parts, strict=True))
        for id, own, nll, rank in zip(batch.ids, labels.cpu().split(batch.counts), *columns, strict=True):
            yield Targets(id, own.tolist(), nll.double().numpy(), rank.numpy())


def _surprise(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return label_nll(logits, labels), token_rank(logits, labels)


def token_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the V tokens have a larger logit than the label (n,); one as large does not count."""
    return (logits > logits.gather(1, labels.unsqueeze(1))).sum(-1)
