"""Every knob of training, checked once. Section "Per data set" of the paper's settings gives the defaults' origin:

lr 1e-4 there for a 7B model, 5e-4 here for the built-in one of 135M; cosine to 0, no warm-up, batch 8, AdamW, clip 1.0,
LoRA of rank 8 and α 16 on the query and value projections.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sdft.errors import SdftError, nearest

METHODS = ("lora", "full")
SCHEDULES = ("cosine", "constant")
LARGEST_SEED = 2**32 - 1            # the loop makes a seed of its own for every step of it, which torch must take
# What may change in mid-run: the gradient does not depend on it; micro_tokens only rounds its sums anew.
FREE = ("save_every", "micro_tokens", "gradient_checkpointing")


def option(default: Any, text: str) -> Any:
    """A field with its default and the text that the command line shows for it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Raises SdftError for an impossible value."""

    method: str = option("lora", "lora: low-rank adapters on a frozen base; full: every weight, with fp32 masters")
    objective: str = option("cross_entropy", "what is minimised: cross_entropy; the rivals' are dft, stm, flow, kl, "
                                             "l2-sp, and in a run ewc, onpolicy, onpolicy-reverse")
    penalty_weight: float | None = option(None, "λ of kl, l2-sp and ewc (default: 0.5, 1, 10)")
    stm_threshold: float = option(0.4, "stm: targets less probable than this under the seed are not learned")
    teacher_ema: float = option(0.0, "onpolicy: the teacher follows the student by this decay, such as 0.99; 0: it is the seed")
    lr: float = option(5e-4, "peak learning rate")
    epochs: int = option(2, "passes over the training records")
    steps: int | None = option(None, "optimiser steps, in place of epochs")
    batch_size: int = option(8, "records per optimiser step")
    micro_tokens: int = option(2048, "a step runs in packs of at most this many tokens, one record at the least; less "
                                    "memory for less, the same gradient")
    warmup: int = option(0, "steps in which the learning rate rises from 0")
    schedule: str = option("cosine", "cosine: falls to 0 at the end; constant")
    weight_decay: float = option(0.0, "AdamW's decoupled weight decay")
    max_grad_norm: float = option(1.0, "largest norm of the gradient; 0 turns clipping off")
    max_length: int = option(1024, "a longer record is left out, counted and told")
    lora_rank: int = option(8, "LoRA rank")
    lora_alpha: float = option(16.0, "LoRA alpha: the update is scaled by alpha / rank")
    lora_dropout: float = option(0.0, "dropout on what enters an adapter")
    rslora: bool = option(False, "scale by alpha / sqrt(rank) instead")
    lora_targets: tuple[str, ...] = option(("q_proj", "v_proj"), "names or patterns of the linear layers to adapt")
    gradient_checkpointing: bool = option(False, "keep only the layers' inputs and compute the rest again in the backward")
    validation: float = option(0.0, "share of the records held out; their loss is logged after every epoch")
    save_every: int = option(20, "steps between saved states")
    seed: int = option(42, "seeds the adapter, the order of the records and the dropout")

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        for name, known in (("method", METHODS), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            if value not in known:
                raise SdftError(f"{name}: expected one of {', '.join(known)}, got {value!r}"
                                f"{nearest(str(value), known)}")
        for name in ("epochs", "batch_size", "micro_tokens", "save_every", "lora_rank"):
            self._check(name, lambda value: value >= 1, "at least 1")
        self._check("steps", lambda value: value is None or value >= 1, "at least 1")
        self._check("max_length", lambda value: value >= 2, "at least 2")
        for name in ("lr", "lora_alpha"):
            self._check(name, lambda value: 0 < value <= 1e6, "a positive number up to a million")
        for name in ("warmup", "weight_decay", "max_grad_norm"):
            self._check(name, lambda value: 0 <= value < float("inf"), "0 or more")
        self._check("seed", lambda value: 0 <= value <= LARGEST_SEED, f"a whole number from 0 to {LARGEST_SEED}")
        self._check("penalty_weight", lambda value: value is None or 0 <= value < float("inf"), "0 or more")
        self._check("stm_threshold", lambda value: 0 < value <= 1, "a probability above 0")
        for name in ("lora_dropout", "validation", "teacher_ema"):
            self._check(name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        if not self.lora_targets:
            raise SdftError("lora_targets: expected at least one name of a linear layer, such as q_proj; got none")

    def _check(self, name: str, holds: Callable[[Any], bool], expected: str) -> None:
        if not holds(getattr(self, name)):
            raise SdftError(f"{name}: expected {expected}, got {getattr(self, name)}")
