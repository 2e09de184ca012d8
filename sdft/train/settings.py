"""The settings of training, checked once.

The defaults are the paper's (arXiv 2402.13669): cosine to 0, no warm-up, batch 8, AdamW, clipping at 1.0, LoRA of rank
8 and α 16 on the query and value projections. Only lr differs: 1e-4 there for a 7B model, 5e-4 here for one of 135M.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sdft.errors import SdftError, nearest

METHODS = ("lora", "full")
SCHEDULES = ("cosine", "constant")
MICRO_TOKENS, GPU_MICRO_TOKENS = 2048, 16384    # a GPU takes as long for few tokens: launching kernels bounds it
LARGEST_SEED = 2**32 - 1            # the loop multiplies it to seed every step, and torch must accept the product
# Settings that may change when a run resumes: they do not change the gradient, up to rounding of micro_tokens' sums.
FREE = ("save_every", "micro_tokens", "gradient_checkpointing", "deterministic")
RANGES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (              # settings, what is expected, the condition
    ("epochs batch_size save_every lora_rank", "at least 1", lambda value: value >= 1),
    ("steps", "at least 1", lambda value: value is None or value >= 1),
    ("max_length", "at least 2", lambda value: value >= 2),
    ("lr lora_alpha", "a positive number up to a million", lambda value: 0 < value <= 1e6),
    ("micro_tokens", "at least 1, or 0 for the device's default", lambda value: value >= 0),
    ("warmup weight_decay max_grad_norm", "0 or more", lambda value: 0 <= value < math.inf),
    ("seed", f"a whole number from 0 to {LARGEST_SEED}", lambda value: 0 <= value <= LARGEST_SEED),
    ("penalty_weight", "0 or more", lambda value: value is None or 0 <= value < math.inf),
    ("stm_threshold", "a probability above 0", lambda value: 0 < value <= 1),
    ("lora_dropout validation teacher_ema", "at least 0 and below 1", lambda value: 0 <= value < 1))


def option(default: Any, text: str) -> Any:
    """A field with its default and its help text on the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Raises SdftError for an impossible value."""

    method: str = option("lora", "Weights to train: lora (low-rank adapters on the frozen base model) or full "
                                 "(every weight, with fp32 masters).")
    objective: str = option("cross_entropy", "Loss to minimise: cross_entropy, or that of a baseline: dft, stm, flow, "
                                             "kl, l2-sp; in a run also ewc, onpolicy, onpolicy-reverse.")
    penalty_weight: float | None = option(None, "Penalty weight λ of kl, l2-sp and ewc (default: 0.5, 1, 10).")
    stm_threshold: float = option(0.4, "stm trains only on targets of at least this probability under the base model.")
    teacher_ema: float = option(0.0, "Decay of the onpolicy teacher, a moving average of the student, such as 0.99; "
                                     "with 0 the teacher is the base model.")
    lr: float = option(5e-4, "Peak learning rate.")
    epochs: int = option(2, "Passes over the training records.")
    steps: int | None = option(None, "Number of optimiser steps; overrides epochs.")
    batch_size: int = option(8, "Records per optimiser step.")
    micro_tokens: int = option(0, "Maximum tokens per micro-batch; smaller uses less memory and gives the same "
                                  "gradient. A longer record is a micro-batch of its own. 0 is 2048 on a CPU and "
                                  "16384 on a GPU.")
    warmup: int = option(0, "Steps over which the learning rate rises from 0.")
    schedule: str = option("cosine", "Learning rate after the warm-up: cosine (falls to 0 at the end) or constant.")
    weight_decay: float = option(0.0, "Decoupled weight decay of AdamW.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0 turns clipping off.")
    max_length: int = option(1024, "Maximum tokens per record; longer records are skipped, and counted.")
    lora_rank: int = option(8, "Rank of LoRA.")
    lora_alpha: float = option(16.0, "LoRA's update is scaled by lora_alpha / lora_rank.")
    lora_dropout: float = option(0.0, "Dropout on the input of the adapters.")
    rslora: bool = option(False, "Scale by lora_alpha / sqrt(lora_rank) instead (rank-stabilised LoRA).")
    lora_targets: tuple[str, ...] = option(("q_proj", "v_proj"), "Names or patterns of the linear layers to adapt.")
    gradient_checkpointing: bool = option(False, "Keep only the inputs of the layers, and recompute the rest in the "
                                                 "backward pass; this saves memory and costs time.")
    validation: float = option(0.0, "Share of the records held out; their loss is logged after every epoch.")
    deterministic: bool = option(False, "On a GPU, compute gradients with slower kernels that add in a fixed order, so "
                                        "that a resumed run equals an uninterrupted one bit for bit; on a CPU it "
                                        "always does.")
    save_every: int = option(20, "Steps between saved states.")
    seed: int = option(42, "Random seed of the adapter, of the order of the records and of the dropout.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        for name, known in (("method", METHODS), ("schedule", SCHEDULES)):
            value = getattr(self, name)
            if value not in known:
                raise SdftError(f"{name}: expected one of {', '.join(known)}, got {value!r}"
                                f"{nearest(str(value), known)}")
        for names, expected, holds in RANGES:
            for name in names.split():
                if not holds(value := getattr(self, name)):
                    raise SdftError(f"{name}: expected {expected}, got {value}")
        if not self.lora_targets:
            raise SdftError("lora_targets: expected at least one name of a linear layer, such as q_proj; got none")

    def resolved(self, device: object) -> TrainSettings:
        """The settings with those that the device ("cuda:1", or torch's) decides: `micro_tokens`, where it is 0."""
        default = GPU_MICRO_TOKENS if str(device).startswith("cuda") else MICRO_TOKENS
        return replace(self, micro_tokens=self.micro_tokens or default)
