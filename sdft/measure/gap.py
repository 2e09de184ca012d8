"""The distribution gap of the training targets: how surprising they are to the seed (arXiv 2402.13669, section 3).

    nll(record) = −1/|y| Σ_t log p_seed(y_t | c, x, y_<t)            nats per token, over the tokens that are trained

Original answers against distilled ones, record by record: rewriting is to close the gap.

    from sdft.measure.gap import gap
    print(gap(model, examples)["nll"])                              # the model as it is: the seed before training
"""
from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdft.kernels.attention import DocumentAttention
from sdft.model.llama import Llama
from sdft.progress import progress
from sdft.text.chat import Example
from sdft.train.batches import Batch, pack_within, trainable

PACK = 4096          # tokens of one forward pass
ROWS = 128           # rows of logits at a time: 128 × 49152 in fp32 are 25 MB


def gap(model: Llama, examples: Sequence[Example], desc: str = "gap") -> dict[str, Any]:
    """nll: nats per token over all targets; perplexity: its exponential; tokens: how many; records: `target_nll`."""
    records = target_nll(model, examples, desc)
    tokens = sum(record["tokens"] for record in records)
    nll = math.fsum(record["nll"] * record["tokens"] for record in records) / tokens
    return {"nll": nll, "perplexity": math.exp(nll), "tokens": tokens, "records": records}


@torch.inference_mode()
def target_nll(model: Llama, examples: Sequence[Example], desc: str = "gap") -> list[dict[str, Any]]:
    """The mean negative log-likelihood of every example's target tokens: id, nll (nats per token), tokens.

    An example that does not fit the context, or has no target, is told on stderr and has no row.
    """
    rows = []
    for batch in packed(model, examples, desc):
        x = target_hidden(model, batch)                                             # (n, D)
        labels = batch.labels[batch.rows]                                           # (n,)
        nll = torch.cat([token_nll(model.head(x_rows), y_rows)
                         for x_rows, y_rows in zip(x.split(ROWS), labels.split(ROWS), strict=True)])        # (n,)
        for id, own in zip(batch.ids, nll.split(target_counts(batch)), strict=True):
            rows.append({"id": id, "nll": own.double().mean().item(), "tokens": len(own)})
    return rows


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(logits)[label], fp32 (n,), of logits (n, V) and labels (n,)."""
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def packed(model: Llama, examples: Sequence[Example], desc: str) -> Iterator[Batch]:
    """The examples in packs of about PACK tokens on the model's device, with a progress bar in tokens."""
    kept, left_out = trainable(examples, model.config.context_length)
    for reason, count in left_out.items():
        print(f"{desc}: left out {count} of {len(examples)} records: {reason}", file=sys.stderr)
    with progress(total=sum(len(example.tokens) for example in kept), desc=desc, unit="token") as bar:
        for batch in pack_within(kept, PACK):
            yield batch.to(model.device)
            bar.update(len(batch.tokens))


def target_hidden(model: Llama, batch: Batch) -> Tensor:
    """The last hidden states (n, D) of the rows whose next token is a target; only they need the head."""
    return model.hidden(batch.tokens, batch.positions, DocumentAttention(batch.lengths))[batch.rows]


def target_counts(batch: Batch) -> list[int]:
    """How many targets each document of the batch has."""
    ends = torch.tensor(batch.lengths).cumsum(0)
    before = torch.searchsorted(batch.rows.cpu(), ends)                             # targets up to each document's end
    return torch.diff(before, prepend=torch.zeros(1, dtype=before.dtype)).tolist()
