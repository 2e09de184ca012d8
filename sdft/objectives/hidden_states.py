"""The interface of all objectives, and the first of them. An objective is one function of a batch and two views of it:

    objective(batch, views) -> a scalar, *summed* over the batch's targets

The loop divides by the targets of the whole optimiser step, so a sum is all that an objective knows of. The views are
hidden states rather than logits, so that an objective can take the head a few rows at a time; `views.seed` is computed
only when an objective asks for it, from the same weights with the adapter off.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.kernels.linear_cross_entropy import linear_cross_entropy
from sdft.model.batches import Batch
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off, lora_layers
from sdft.objectives.ema_teacher import EmaTeacher


class HiddenStates:
    """The last hidden states at the n target rows of a batch, (n, D), and the head (V, D) that makes them logits."""

    def __init__(self, model: Llama, batch: Batch, checkpoint: bool = False):
        self.model, self.batch, self.checkpoint = model, batch, checkpoint

    @cached_property
    def trained(self) -> Tensor:
        """Of the model as it is, with a gradient."""
        batch = self.batch.filled()
        x = self.model.hidden(batch.tokens, batch.positions, batch.attention(), batch.rows, self.checkpoint)
        return x[: self.batch.targets]

    @cached_property
    def base(self) -> Tensor:
        """Of the seed model, without a gradient. Raises SdftError for a model without an adapter to turn off."""
        if not lora_layers(self.model):
            raise SdftError("this objective compares with the seed, which is the model with its adapter off: train "
                            "with method = lora")
        with torch.no_grad(), adapter_off(self.model):
            return HiddenStates(self.model, self.batch).trained

    @property
    def head(self) -> Tensor:
        return self.model.head_weight

    @property
    def labels(self) -> Tensor:
        return self.batch.labels[self.batch.rows]                               # (n,)


Objective = Callable[[Batch, HiddenStates], Tensor]
Sample = Callable[[Llama, Sequence[Example], int], list[Example]]       # (model, the step's examples, step) → examples


@dataclass(frozen=True)
class ObjectiveInputs:
    """What some objectives need beside the examples; the arms of an experiment make it (sdft/experiment/arms.py)."""

    base_text: Sequence[Example] = ()           # ewc: texts whose targets the seed wrote
    shown: Sequence[Example] = ()               # onpolicy: each record's prompt with its demonstration, without targets
    sample: Sample | None = None                # onpolicy: puts the model's own answers in place of a step's targets
    sampling: str = ""                          # how `sample` draws, for the saved state


class ObjectiveSettings(Protocol):
    """The training settings that objectives read; TrainSettings has them all."""

    @property
    def method(self) -> str: ...
    @property
    def objective(self) -> str: ...
    @property
    def penalty_weight(self) -> float | None: ...
    @property
    def stm_threshold(self) -> float: ...
    @property
    def micro_tokens(self) -> int: ...


@dataclass(frozen=True)
class Start:
    """What an objective may be prepared from, once, while `model` computes as the seed: its adapter is still zero."""

    model: Llama
    examples: Sequence[Example]                 # all that will be trained on
    settings: ObjectiveSettings
    folder: Path | None                         # of this training; None: nothing is written
    teacher: EmaTeacher                            # onpolicy: the teacher
    inputs: ObjectiveInputs = field(default_factory=ObjectiveInputs)

    def strength(self, default: float) -> float:
        """λ as set, or the objective's own default."""
        return default if self.settings.penalty_weight is None else self.settings.penalty_weight


def cross_entropy(batch: Batch, hidden: HiddenStates) -> Tensor:
    """−Σ log p(target): the negative log-likelihood in nats, step 3 of the method."""
    return linear_cross_entropy(hidden.trained, hidden.head, hidden.labels)
