"""A copy of a model's weights laid out for decoding on the CPU: few operations a layer, each near the machine's peak.

    x ─RMSNorm─ [q│k│v] ─rope q,k─ attend ─ o_proj + x ─RMSNorm─ silu(gate) ─ up · gate ─ down_proj + x

The weights are reordered once into the blocks that oneDNN multiplies by; F.linear reorders them at every call, which costs
a third of a product with few rows. The residual sum, silu and the product with the gate happen while the result is still
in registers. All of it is checked against `sdft.model.llama`.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.generation.fast.fused import Joined, JoinedLayer, worth_copying
from sdft.model.io.loading import multiplies_bfloat16
from sdft.model.llama import Attend, Llama


class Product(Joined):
    """`Joined`, multiplied by oneDNN: x (N, D) → (N, ΣO)."""

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__(layers)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor, operation: str = "none") -> Tensor:
        """x·Wᵀ + b, with `operation` ("none" or "swish") applied to the result."""
        if self.A is None:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, operation, [], "")
        y = self.adapt(torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], ""), x)
        return F.silu(y) if operation == "swish" else y

    def combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """`operation` ("add" or "mul") of x·Wᵀ + b and other (N, O)."""
        if self.A is None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, operation)
        y = self(x)
        return y.add_(other) if operation == "add" else y.mul_(other)


class PackedLayer(JoinedLayer):
    product = Product

    def __init__(self, layer: nn.Module, config):
        super().__init__(layer, config)
        self.gate, self.up = Product([layer.mlp.gate_proj]), Product([layer.mlp.up_proj])

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        o = self.attended(x, cos, sin, attend)                                  # (N, D) → (N, H·C)
        if rows is not None:
            o, x = o[rows], x[rows]                                             # (n, …) from here on
        x = self.o.combined(o, x, "add")                                        # (N, H·C) → (N, D)
        y = self.norm2(x)
        gated = self.up.combined(y, self.gate(y, "swish"), "mul")               # (N, D) → (N, F)
        return self.down.combined(gated, x, "add")                              # (N, F) → (N, D)


class PackedLlama:
    """The weights as they are now: make a new one when the model has changed. `hidden` and `head` are Llama's."""

    def __init__(self, model: Llama):
        self.model = model
        self.layers = [PackedLayer(layer, model.config) for layer in model.model.layers]
        self._head = torch.ops.mkldnn._reorder_linear_weight(model.head_weight.detach(), None)

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """The last hidden states (N, D), after the final norm, of tokens (N,) at positions (N,); of `rows`, (n, D)."""
        N, n = len(tokens), len(tokens if rows is None else rows)
        x = self.model.model.embed_tokens(filled(tokens))                       # (N,) → (N', D), N' ≥ N
        cos, sin = self.model.rotation(filled(positions))                       # (N', C) each

        def attend_first(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return filled(attend(layer, q[:N], k[:N], v[:N]))

        for layer in self.layers:
            x = layer(x, cos, sin, attend_first, filled(rows) if layer is self.layers[-1] and rows is not None else None)
        return self.model.model.norm(x[:n])

    def head(self, x: Tensor) -> Tensor:
        """Logits (n, V) of hidden states (n, D)."""
        return torch.ops.mkldnn._linear_pointwise(filled(x), self._head, None, "none", [], "")[: len(x)]


def filled(x: Tensor) -> Tensor:
    """x (N, …) with rows of zeros behind it up to one of few lengths.

    oneDNN compiles a product anew for every shape that it has not seen, which takes as long as some twenty products.
    """
    n = len(x)
    unit = 1 if n <= 4 else 8 if n <= 64 else 16 if n <= 256 else 64
    more = -n % unit
    return torch.cat((x, x.new_zeros(more, *x.shape[1:]))) if more else x


def packed(model: Llama) -> Llama | PackedLlama:
    """The model as generation computes with it: packed on a CPU whose oneDNN knows its dtype, else the model itself."""
    known = model.dtype == torch.float32 or (
        model.dtype == torch.bfloat16 and multiplies_bfloat16())
    if model.device.type != "cpu" or not known or not torch.backends.mkldnn.is_available() or not worth_copying(model):
        return model
    with torch.inference_mode():
        return PackedLlama(model)
