"""The forward passes that the measures share: examples that fit, micro-batches of them, and their hidden states."""
from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from torch import Tensor

from sdft.data.chat import Example
from sdft.model.batches import Batch, may_share, pack_within, trainable
from sdft.model.llama import Llama
from sdft.progress import progress

PACK = 4096          # tokens of one forward pass
ROWS = 128           # positions whose logits are computed at a time: 128 × 49152 logits are 25 MB in fp32


def fitting(model: Llama, examples: Sequence[Example], desc: str) -> list[Example]:
    """The examples that fit the context and have a target token; the others are skipped, and reported on stderr."""
    kept, left_out = trainable(examples, model.config.context_length)
    for reason, count in left_out.items():
        print(f"{desc}: skipped {count} of {len(examples)} records: {reason}", file=sys.stderr)
    return kept


def micro_batches(model: Llama, examples: Sequence[Example], desc: str) -> Iterator[Batch]:
    """The examples in micro-batches of about PACK tokens on the model's device, with a progress bar in tokens."""
    with progress(total=sum(len(example.tokens) for example in examples), desc=desc, unit="token") as bar:
        for batch in pack_within(examples, PACK, may_share(model.device)):
            yield batch.to(model.device)
            bar.update(sum(batch.lengths))


def target_hidden(model: Llama, batch: Batch) -> Tensor:
    """The last hidden states (n, D) at the positions whose next token is a target; only these need the head."""
    return model.hidden(batch.tokens, batch.positions, batch.attention(), batch.rows)
