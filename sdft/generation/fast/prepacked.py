"""Prepacked weights. With fused.py they save 6 % of a run in bf16 and 18 % in fp32 (two CPU cores, estimated).

oneDNN multiplies by weights in blocks of its own layout. F.linear reorders the weights at every call, which takes a
third of a product with few tokens. Here they are reordered once. The residual sum, silu and the product with the gate
are computed while a result is still in registers. In all else the layers are those of fused.py.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.generation.fast.fused import FusedLayer, FusedLinear, FusedLlama, worth_copying
from sdft.model.io.checkpoints import multiplies_bfloat16
from sdft.model.llama import Attend, Llama


class PrepackedLinear(FusedLinear):
    """`FusedLinear` with weights in oneDNN's layout."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__(layers)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """x·Wᵀ + b with the adapters, then `activation` ("none" or "swish"): x (N, D) → (N, ΣO)."""
        if self.A is None:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "")
        y = self._adapt(torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], ""), x)
        return F.silu(y) if activation == "swish" else y

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return self._combine(x, residual, "add")

    def multiply(self, gate: Tensor, x: Tensor) -> Tensor:
        """`gate` · (x·Wᵀ + b): (N, O)."""
        return self._combine(x, gate, "mul")

    def _combine(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        if self.A is None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, operation)
        y = self(x)
        return y.add_(other) if operation == "add" else y.mul_(other)


class PrepackedLayer(FusedLayer):
    linear = PrepackedLinear

    def set_gate_up(self, gate: nn.Linear, up: nn.Linear) -> None:
        self.gate, self.up = PrepackedLinear([gate]), PrepackedLinear([up])

    def gated(self, x: Tensor) -> Tensor:
        return self.up.multiply(self.gate(x, "swish"), x)                       # (N, D) → (N, F)


class PrepackedLlama(FusedLlama):
    """`FusedLlama` in oneDNN's layout."""

    layer = PrepackedLayer

    def __init__(self, model: Llama):
        super().__init__(model)
        self._head = torch.ops.mkldnn._reorder_linear_weight(model.head_weight.detach(), None)

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        N, n = len(tokens), len(tokens if rows is None else rows)

        def attend_unpadded(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return padded(attend(layer, q[:N], k[:N], v[:N]))

        rows = None if rows is None else padded(rows)
        return super().hidden(padded(tokens), padded(positions), attend_unpadded, rows)[:n]

    def head(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(padded(x), self._head, None, "none", [], "")[: len(x)]


def padded(x: Tensor) -> Tensor:
    """x (N, …), padded with zeros to one of a few lengths.

    oneDNN compiles a product for every new shape, which takes as long as about twenty products.
    """
    n = len(x)
    unit = 1 if n <= 4 else 8 if n <= 64 else 16 if n <= 256 else 64
    missing = -n % unit
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x


def prepacked(model: Llama) -> Llama | PrepackedLlama:
    """The form in which a CPU generates: prepacked where oneDNN has the dtype and the model is small."""
    known = model.dtype == torch.float32 or (model.dtype == torch.bfloat16 and multiplies_bfloat16())
    if model.device.type != "cpu" or not known or not torch.backends.mkldnn.is_available() or not worth_copying(model):
        return model
    with torch.inference_mode():
        return PrepackedLlama(model)
