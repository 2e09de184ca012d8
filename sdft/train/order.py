"""The order of the training examples: those held out, and those of each optimiser step.

The order depends only on the seed and the epoch, so the number of the step *is* the position in the data.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.model.batches import Batch, pack_within


def hold_out(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split examples at random into training and validation; validation gets `share` of them, at least one."""
    if not share:
        return list(examples), []
    count = max(1, round(share * len(examples)))
    if count >= len(examples):
        raise SdftError(f"validation: holding out {share:.0%} of {len(examples)} records leaves none to train on")
    held = set(np.random.default_rng([seed, 1]).permutation(len(examples))[:count].tolist())
    return ([example for index, example in enumerate(examples) if index not in held],
            [example for index, example in enumerate(examples) if index in held])


def steps_per_epoch(examples: Sequence[Example], batch_size: int) -> int:
    """Optimiser steps in one pass over the examples; the last step may be smaller."""
    return -(-len(examples) // batch_size)


def step_examples(examples: Sequence[Example], step: int, batch_size: int, seed: int) -> list[Example]:
    """The examples of optimiser step `step` (from 0, through all epochs)."""
    epoch, index = divmod(step, steps_per_epoch(examples, batch_size))
    order = np.random.default_rng([seed, 0, epoch]).permutation(len(examples))
    return [examples[i] for i in order[index * batch_size : (index + 1) * batch_size].tolist()]


def step_batches(examples: Sequence[Example], step: int, batch_size: int, limit: int, seed: int,
                 share: bool = False) -> list[Batch]:
    """The micro-batches of optimiser step `step`."""
    return pack_within(step_examples(examples, step, batch_size, seed), limit, share)
