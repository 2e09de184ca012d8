"""The distribution gap of the training targets: how much they surprise the base model (arXiv 2402.13669, section 3).

    nll   −log p(y_t | c, x, y_<t)                nats; of a record the mean over its |y| target tokens
    rank  number of tokens v with p(v | …) > p(y_t | …)         0: the target is the most probable token
    low   share of target tokens with p(y_t | …) < 0.4, an NLL above 0.92 nats: training on such tokens causes
          forgetting, and rewriting avoids them (arXiv 2501.14315)

Rewriting is meant to close the gap, so originals and rewrites are compared record by record, over whole targets and
over equally many tokens.

    from sdft.measure.outputs.gap import gaps
    print(gaps(model, {"original": originals, "distilled": rewritten})["distilled"]["paired"])
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from sdft.data.chat import Example, training_example
from sdft.data.records import Record
from sdft.data.templates import get_template
from sdft.kernels.divergence import few_at_a_time, label_nll
from sdft.measure.passes import ROWS, fitting, micro_batches, target_hidden
from sdft.measure.statistics import by_position, paired_difference
from sdft.model.llama import Llama
from sdft.results import Gap, GapDifference, PairedGap, RecordGap, TokenMap, TokenMapText
from sdft.tokenizers.tokenizer import Tokenizer

LOW = -math.log(0.4)        # nats; a target token above this NLL is a low-probability token: arXiv 2501.14315


@dataclass(frozen=True)
class Targets:
    """The n target tokens of one record under the model, in order, those of all trained turns."""

    id: str
    tokens: list[int]           # (n,)
    nll: np.ndarray             # (n,) nats, fp64
    rank: np.ndarray            # (n,) whole numbers

    def first(self, count: int) -> Targets:
        return Targets(self.id, self.tokens[:count], self.nll[:count], self.rank[:count])


def measure_gap(model: Llama, tokenizer: Tokenizer, records: Sequence[Record], template: str = "plain",
                chat: str | None = None) -> Gap:
    """How surprising the responses of `records` are to `model` as it is, with an adapter that is on.

    Call it before training, or inside `with adapter_off(model)`: the gap is that of the base model. `template` is the
    prompt of training, `chat` the chat format (None: the model's own).
    """
    form = get_template(template)
    return gap(model, [training_example(tokenizer, record, form, chat) for record in records])


def gap(model: Llama, examples: Sequence[Example], desc: str = "gap") -> Gap:
    """The gap of one set of targets. Raises SdftError where no example fits the context and has a target."""
    return _summary(list(targets(model, fitting(model, examples, desc), desc)))


def gaps(model: Llama, sets: Mapping[str, Sequence[Example]], desc: str = "gap") -> dict[str, Gap]:
    """`gap` of several sets of targets for the same records; the prompts that they share are computed once.

    Every set but the first has the result of `paired` with the first, where any record's target differs.
    """
    kept = {name: fitting(model, examples, f"{desc}, {name}") for name, examples in sets.items()}
    side_by_side = zip_longest(*([(name, example) for example in examples] for name, examples in kept.items()))
    named = [pair for pair in chain(*side_by_side) if pair is not None]
    measured: dict[str, list[Targets]] = {name: [] for name in sets}
    for (name, _), record in zip(named, targets(model, [example for _, example in named], desc), strict=True):
        measured[name].append(record)
    first = next(iter(measured))
    results = {name: _summary(records) for name, records in measured.items()}
    for name, records in measured.items():
        if name != first and (pairing := paired(records, measured[first], first)):
            results[name]["paired"] = pairing
    return results


def paired(records: Sequence[Targets], references: Sequence[Targets], name: str) -> PairedGap | None:
    """Compare records' targets with those in `references`, a set called `name`; None where no target differs.

    Every record weighs alike: its own mean is taken first. `length_matched` compares only the first min(|a|, |b|)
    target tokens of each pair. So a difference there cannot come from length: late tokens have more context and are
    less surprising. It does not control the content: a rewrite may open with a stock phrase.
    """
    by_id = {record.id: record for record in references}
    pairs = [(a, b) for a in records if (b := by_id.get(a.id)) and a.tokens != b.tokens]
    if not pairs:
        return None
    matched = [(a.first(len(b.tokens)), b.first(len(a.tokens))) for a, b in pairs]
    return {"with": name, **_compared(pairs), "length_matched": _compared(matched)}


def _compared(pairs: Sequence[tuple[Targets, Targets]]) -> GapDifference:
    a, b = ([_record(record) for record in side] for side in zip(*pairs, strict=True))
    (nll, rank, rank0, low_share), (nll_b, rank_b, rank0_b, low_share_b) = (
        (fmean(record["nll"] for record in side), fmean(record["rank"] for record in side),
         fmean(record["rank0"] for record in side), fmean(record["low"] for record in side)) for side in (a, b))
    difference, low, high = paired_difference([record["nll"] for record in a], [record["nll"] for record in b])
    return {"n": len(pairs), "nll": nll, "nll_with": nll_b, "perplexity": math.exp(nll),
            "perplexity_with": math.exp(nll_b), "rank_mean": rank, "rank_mean_with": rank_b, "rank0": rank0,
            "rank0_with": rank0_b, "low_share": low_share, "low_share_with": low_share_b,
            "tokens": sum(record["tokens"] for record in a), "tokens_with": sum(record["tokens"] for record in b),
            "difference": difference, "low": low, "high": high}


def token_map(model: Llama, tokenizer: Tokenizer, sets: Mapping[str, Sequence[Example]], ids: Sequence[str],
              desc: str = "token map") -> list[TokenMap]:
    """NLL and rank of every target token of the records `ids`, in every set that holds the record and where it fits."""
    texts: dict[str, dict[str, TokenMapText]] = {id: {} for id in ids}
    for name, examples in sets.items():
        chosen, what = [example for example in examples if example.id in texts], f"{desc}, {name}"
        for record in targets(model, fitting(model, chosen, what), what) if chosen else ():
            texts[record.id][name] = {"pieces": [tokenizer.piece(token) for token in record.tokens],
                                      "nll": [round(nll, 3) for nll in record.nll.tolist()],
                                      "rank": record.rank.tolist()}
    return [{"id": id, "texts": by_set} for id, by_set in texts.items() if by_set]


def _summary(records: Sequence[Targets]) -> Gap:
    nll, rank = (np.concatenate([getattr(record, name) for record in records]) for name in ("nll", "rank"))
    mean = math.fsum(nll) / len(nll)
    return {"nll": mean, "perplexity": math.exp(mean), "rank_mean": float(rank.mean()),
            "rank_median": float(np.median(rank)), "rank0": float((rank == 0).mean()),
            "low": float((nll > LOW).mean()), "tokens": len(nll),
            "by_position": by_position([record.nll.tolist() for record in records], "nll"),
            "records": [_record(record) for record in records]}


def _record(record: Targets) -> RecordGap:
    return {"id": record.id, "nll": float(record.nll.mean()), "low": float((record.nll > LOW).mean()),
            "rank": float(record.rank.mean()), "rank0": float((record.rank == 0).mean()), "tokens": len(record.nll)}


@torch.inference_mode()
def targets(model: Llama, examples: Sequence[Example], desc: str) -> Iterator[Targets]:
    """The target tokens of every example, in order; all examples must fit and have some (see `fitting`)."""
    for batch in micro_batches(model, examples, desc):
        x = target_hidden(model, batch)                                             # (n, D)
        labels = batch.labels[batch.rows]                                           # (n,)
        parts = [few_at_a_time(lambda z, y: (label_nll(z, y), token_rank(z, y)), model.head(x_part), part)
                 for x_part, part in zip(x.split(ROWS), labels.split(ROWS), strict=True)]
        columns = (torch.cat(part).cpu().split(batch.counts) for part in zip(*parts, strict=True))
        for id, tokens, nll, rank in zip(batch.ids, labels.cpu().split(batch.counts), *columns, strict=True):
            yield Targets(id, tokens.tolist(), nll.double().numpy(), rank.numpy())


def token_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """The number of tokens with a larger logit than the label's (n,), from logits (n, V); ties do not count."""
    return (logits > logits.gather(1, labels.unsqueeze(1))).sum(-1)
