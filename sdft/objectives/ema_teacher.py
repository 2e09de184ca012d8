"""The teacher of on-policy self-distillation: the base model, or an exponential moving average (EMA) of the student.

    ā ← d·ā + (1 − d)·a     after every optimiser step, for both factors of every adapted layer; ā starts equal to a

With decay d = 0 no average is kept: the teacher is the model with its adapter off. The average is part of a saved
state, so a resumed run has the same teacher (mean teacher, Tarvainen & Valpola 2017, arXiv 1703.01780).
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from sdft.model.llama import Llama
from sdft.model.lora import adapter_off


class EmaTeacher:
    """An exponential moving average of named parameters, in `tensors` ({} where decay is 0)."""

    def __init__(self, model: Llama, parameters: Mapping[str, Tensor], decay: float):
        self.model, self.parameters, self.decay = model, parameters, decay
        self.tensors = {name: value.detach().clone() for name, value in parameters.items()} if decay else {}

    @torch.no_grad()
    def follow(self) -> None:
        """Update the average; call it after every optimiser step."""
        for name, value in self.tensors.items():
            value.lerp_(self.parameters[name], 1 - self.decay)

    @contextmanager
    def teaching(self) -> Iterator[Llama]:
        """Inside the `with`, the model computes as the teacher, without gradient and dropout."""
        training, student = self.model.training, {name: self.parameters[name].data for name in self.tensors}
        self.model.eval()
        try:
            for name, average in self.tensors.items():
                self.parameters[name].data = average
            with torch.no_grad(), nullcontext() if self.tensors else adapter_off(self.model):
                yield self.model
        finally:
            for name, value in student.items():
                self.parameters[name].data = value
            self.model.train(training)
