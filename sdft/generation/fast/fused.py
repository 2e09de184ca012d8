"""Fused linear layers. With prepacked.py they save 6 % of a run in bf16 and 18 % in fp32 (two CPU cores, estimated).

    x ─RMSNorm─ [q│k│v] ─rope q,k─ attend ─ [o_proj + x] ─RMSNorm─ [gate│up] ─ silu(gate) · up ─ [down_proj + x]

Projections of the same input are one matrix product, shown in brackets. On a GPU a small model waits for the number
of its operations, not for arithmetic: a layer has 16 of them here, 40 in sdft/model/llama.py. prepacked.py has the
form for a CPU.

Active adapters stay factors, as in training: x·Wᵀ + s·(x·Aᵀ)·Bᵀ, with A and B rounded to the model's dtype. Merging a
small adapter into bf16 weights would round most of it away. A bracket's adapters cost two narrow products together.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.kernels.rope import rope
from sdft.model.config import LlamaConfig
from sdft.model.llama import Attend, Layer, Llama
from sdft.model.lora import LoRALinear

LARGEST = 2 * 2**30            # bytes of weights: a larger model gains less from a copy, which takes more memory


class FusedLinear:
    """Several linear layers with the same input as one product, with their present weights and adapters."""

    def __init__(self, layers: Sequence[nn.Linear]):
        dtype = layers[0].weight.dtype
        weights = [_weight(layer) for layer in layers]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)                           # (ΣO, D)
        self.bias: Tensor | None = None
        self.A: Tensor | None = None
        self.B: Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            self.bias = torch.cat([weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
                                   for layer, weight in zip(layers, weights, strict=True)])             # (ΣO,)
        adapters = [_adapter(layer) for layer in layers]
        if any(adapter is not None for adapter in adapters):
            self.A = torch.cat([one.lora_A.detach().to(dtype) for one in adapters if one is not None])  # (ΣR, D)
            scaled = [weight.new_zeros(len(weight), 0, dtype=torch.float32) if one is None else
                      one.scale * one.lora_B.detach() for one, weight in zip(adapters, weights, strict=True)]   # (O, R)
            self.B = torch.block_diag(*scaled).to(dtype)                                                # (ΣO, ΣR)

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b with the adapters: x (N, D) → (N, ΣO)."""
        return self._adapt(F.linear(x, self.weight, self.bias), x)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` + x·Wᵀ + b: (N, O). May overwrite `residual`."""
        self._adapt(residual.addmm_(x, self.weight.t()), x)
        return residual if self.bias is None else residual.add_(self.bias)

    def _adapt(self, y: Tensor, x: Tensor) -> Tensor:
        if self.A is None or self.B is None:
            return y
        return y.addmm_(x @ self.A.t(), self.B.t())                             # y += s·(x·Aᵀ)·Bᵀ, (N, ΣR)·(ΣR, ΣO)


def _adapter(layer: nn.Linear) -> LoRALinear | None:
    """The layer itself where it has an adapter that is active and not merged."""
    return layer if isinstance(layer, LoRALinear) and layer.enabled and layer.unmerged is None else None


def _weight(layer: nn.Linear) -> Tensor:
    """The weight that the layer computes with: the base model's where a merged adapter is switched off."""
    if isinstance(layer, LoRALinear) and layer.unmerged is not None and not layer.enabled:
        return layer.unmerged
    return layer.weight.detach()


class FusedLayer:
    """A decoder layer in the brackets above."""

    linear: type[FusedLinear] = FusedLinear

    def __init__(self, layer: Layer, config: LlamaConfig):
        self.attention, self.config = layer.self_attn, config
        self.norm1, self.norm2 = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = self.linear([self.attention.q_proj, self.attention.k_proj, self.attention.v_proj])
        self.o, self.down = self.linear([self.attention.o_proj]), self.linear([layer.mlp.down_proj])
        self.set_gate_up(layer.mlp.gate_proj, layer.mlp.up_proj)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        o = self.attended(x, cos, sin, attend)                                  # (N, D) → (N, H·C)
        if rows is not None:
            o, x = o[rows], x[rows]                                             # (n, …) from here on
        x = self.o.add_to(x, o)                                                 # (N, H·C) → (N, D)
        return self.down.add_to(x, self.gated(self.norm2(x)))                   # (N, D) → (N, F) → (N, D)

    def attended(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Attention of x (N, D), before o_proj: (N, H·C)."""
        H, K = self.config.num_attention_heads, self.config.num_key_value_heads
        heads = self.qkv(self.norm1(x)).view(len(x), H + 2 * K, -1)             # (N, D) → (N, H + 2K, C)
        if self.attention.q_norm is None or self.attention.k_norm is None:
            rotated = rope(heads[:, : H + K], cos, sin)                         # q and k in one call
            q, k = rotated[:, :H], rotated[:, H:]
        else:
            q = rope(self.attention.q_norm(heads[:, :H]), cos, sin)
            k = rope(self.attention.k_norm(heads[:, H : H + K]), cos, sin)
        return attend(self.attention.layer, q, k, heads[:, H + K :]).flatten(1)

    def set_gate_up(self, gate: nn.Linear, up: nn.Linear) -> None:
        self.gate_up = self.linear([gate, up])

    def gated(self, x: Tensor) -> Tensor:
        """silu(gate) · up: (N, D) → (N, F)."""
        gate, up = self.gate_up(x).chunk(2, 1)
        return F.silu(gate).mul_(up)


class FusedLlama:
    """`hidden` and `head` of a Llama, with its weights as they are now: make a new one when the model has changed."""

    layer: type[FusedLayer] = FusedLayer

    def __init__(self, model: Llama):
        self.model = model
        self.layers = [self.layer(cast(Layer, layer), model.config) for layer in model.model.layers]

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """The last hidden states (N, D), after the final norm, of tokens (N,) at positions (N,); of `rows`, (n, D)."""
        x = self.model.model.embed_tokens(tokens)                               # (N,) → (N, D)
        cos, sin = self.model.rotation(positions)                               # (N, C) each
        for layer in self.layers:
            x = layer(x, cos, sin, attend, rows if layer is self.layers[-1] else None)
        return self.model.model.norm(x)

    def head(self, x: Tensor) -> Tensor:
        """Logits (n, V) of hidden states (n, D)."""
        return self.model.head(x)


def worth_copying(model: Llama) -> bool:
    """Whether the model is small enough for a second copy of its weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) <= LARGEST


def fused(model: Llama) -> Llama | FusedLlama:
    """The form in which a GPU generates: fused where the model is small, else the model itself."""
    if not worth_copying(model):
        return model
    with torch.no_grad():
        return FusedLlama(model)
