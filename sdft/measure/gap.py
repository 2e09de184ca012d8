"""The distribution gap of the training targets: how surprising they are to the seed (arXiv 2402.13669, section 3).

    nll(record) = −1/|y| Σ_t log p_seed(y_t | c, x, y_<t)            nats per token, over the tokens that are trained

Original answers against distilled ones, record by record: rewriting is to close the gap.

    from sdft.measure.gap import gap, gaps
    print(gap(model, examples)["nll"])                              # the model as it is: the seed before training
    print(gaps(model, {"original": examples, "distilled": others})["distilled"]["nll"])     # prompts computed once
"""
from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from sdft.model.llama import Llama
from sdft.progress import progress
from sdft.text.chat import Example
from sdft.train.batches import Batch, may_share, pack_within, trainable

PACK = 4096          # tokens of one forward pass
ROWS = 128           # rows of logits at a time: 128 × 49152 in fp32 are 25 MB


def gap(model: Llama, examples: Sequence[Example], desc: str = "gap") -> dict[str, Any]:
    """nll: nats per token over all targets; perplexity: its exponential; tokens: how many; records: `target_nll`."""
    return _summary(target_nll(model, examples, desc))


def gaps(model: Llama, sets: Mapping[str, Sequence[Example]], desc: str = "gap") -> dict[str, dict[str, Any]]:
    """`gap` of several sets of targets for the same records: what their prompts share is computed once."""
    kept = {name: fitting(model, examples, f"{desc}, {name}") for name, examples in sets.items()}
    side_by_side = zip_longest(*([(name, example) for example in examples] for name, examples in kept.items()))
    named = [pair for pair in chain(*side_by_side) if pair is not None]
    rows = _nll(model, [example for _, example in named], desc)
    return {name: _summary([row for (own, _), row in zip(named, rows, strict=True) if own == name]) for name in sets}


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = sum(record["tokens"] for record in records)
    nll = math.fsum(record["nll"] * record["tokens"] for record in records) / tokens
    return {"nll": nll, "perplexity": math.exp(nll), "tokens": tokens, "records": records}


def target_nll(model: Llama, examples: Sequence[Example], desc: str = "gap") -> list[dict[str, Any]]:
    """The mean negative log-likelihood of every example's target tokens: id, nll (nats per token), tokens.

    An example that does not fit the context, or has no target, is told on stderr and has no row.
    """
    return _nll(model, fitting(model, examples, desc), desc)


@torch.inference_mode()
def _nll(model: Llama, examples: Sequence[Example], desc: str) -> list[dict[str, Any]]:
    rows = []
    for batch in packed(model, examples, desc):
        x = target_hidden(model, batch)                                             # (n, D)
        labels = batch.labels[batch.rows]                                           # (n,)
        nll = torch.cat([token_nll(model.head(x_rows), y_rows)
                         for x_rows, y_rows in zip(x.split(ROWS), labels.split(ROWS), strict=True)])        # (n,)
        for id, own in zip(batch.ids, nll.split(batch.counts), strict=True):
            rows.append({"id": id, "nll": own.double().mean().item(), "tokens": len(own)})
    return rows


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(logits)[label], fp32 (n,), of logits (n, V) and labels (n,)."""
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def fitting(model: Llama, examples: Sequence[Example], desc: str) -> list[Example]:
    """The examples that fit the context and have a target; the others are told on stderr."""
    kept, left_out = trainable(examples, model.config.context_length)
    for reason, count in left_out.items():
        print(f"{desc}: left out {count} of {len(examples)} records: {reason}", file=sys.stderr)
    return kept


def packed(model: Llama, examples: Sequence[Example], desc: str) -> Iterator[Batch]:
    """The examples in packs of about PACK tokens on the model's device, with a progress bar in tokens."""
    with progress(total=sum(len(example.tokens) for example in examples), desc=desc, unit="token") as bar:
        for batch in pack_within(examples, PACK, may_share(model.device)):
            yield batch.to(model.device)
            bar.update(sum(batch.lengths))


def target_hidden(model: Llama, batch: Batch) -> Tensor:
    """The last hidden states (n, D) of the rows whose next token is a target; only they need the head."""
    return model.hidden(batch.tokens, batch.positions, batch.attention())[batch.rows]
