"""The forward passes that the measures share: which examples fit, micro-batches of them, and their hidden states."""
from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from torch import Tensor

from sdft.data.chat import Example
from sdft.model.batches import Batch, may_share, pack_within, trainable
from sdft.model.llama import Llama
from sdft.progress import progress

PACK = 4096          # tokens of one forward pass
ROWS = 128           # rows of logits at a time: 128 × 49152 are 13 MB in bf16, 25 MB in fp32


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
    return model.hidden(batch.tokens, batch.positions, batch.attention(), batch.rows)
