"""The interface of all objectives, and cross-entropy. An objective is a function of a batch and its hidden states:

    objective(batch, hidden) -> a scalar, *summed* over the batch's targets

The loop divides by the targets of the whole optimiser step. Objectives get hidden states instead of logits, so that
they can apply the head to a few positions at a time. `hidden.base`, the base model's, is computed only on demand.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """The last hidden states (n, D) at the n targets of a batch, and the head (V, D) that makes them logits."""

    def __init__(self, model: Llama, batch: Batch, checkpoint: bool = False):
        self.model, self.batch, self.checkpoint = model, batch, checkpoint

    @cached_property
    def trained(self) -> Tensor:
        """The states of the model as it is, with a gradient."""
        batch = self.batch.filled()
        x = self.model.hidden(batch.tokens, batch.positions, batch.attention(), batch.rows, self.checkpoint)
        return x[: self.batch.targets]

    @cached_property
    def base(self) -> Tensor:
        """The states of the base model, without a gradient. Raises SdftError for a model without an adapter."""
        if not lora_layers(self.model):
            raise SdftError("this objective compares with the base model, which is the model with its adapter off: "
                            "train with method = lora")
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
    """What some objectives need besides the examples; the arms of an experiment make it (sdft/experiment/arms.py)."""

    base_text: Sequence[Example] = ()           # ewc: texts whose targets the base model wrote
    shown: Sequence[Example] = ()               # onpolicy: each record's prompt with its demonstration, without targets
    sample: Sample | None = None                # onpolicy: replaces the targets of a step by the model's own answers
    sampling: str = ""                          # the settings of `sample`, for the saved state


class Settings(Protocol):
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
    """What an objective is prepared from, once, before training: `model` still computes as the base model."""

    model: Llama
    examples: Sequence[Example]                 # the training examples
    settings: Settings
    folder: Path | None                         # of this training; None: nothing is written
    teacher: EmaTeacher                         # onpolicy
    inputs: ObjectiveInputs = ObjectiveInputs()

    def strength(self, default: float) -> float:
        """λ: the setting penalty_weight, or the objective's default."""
        return default if self.settings.penalty_weight is None else self.settings.penalty_weight


def cross_entropy(batch: Batch, hidden: HiddenStates) -> Tensor:
    """−Σ log p(target): the negative log-likelihood in nats, step 3 of the method."""
    return linear_cross_entropy(hidden.trained, hidden.head, hidden.labels)
