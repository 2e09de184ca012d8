"""A copy of a model's weights laid out for decoding on the CPU: few operations a layer, each near the machine's peak.

    x ─RMSNorm─ [q│k│v] ─rope q,k─ attend ─ o_proj + x ─RMSNorm─ silu(gate) ─ up · gate ─ down_proj + x

What stands in brackets is one product. The weights are reordered once into the blocks that oneDNN multiplies by; F.linear
reorders them at every call, which costs a third of a product with few rows. The residual sum, silu and the product with
the gate happen while the result is still in registers. All of it is checked against `sdft.model.llama`.

Adapters that are switched on stay factors, as in training: x·Wᵀ + s·(x·Aᵀ)·Bᵀ with A and B rounded to the model's dtype. Merging
them into bf16 weights would round away most of a small change, and evaluate another model than the one that was trained.
A projection's adapters cost two narrow products for the bracket together.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.kernels.rope import rope
from sdft.model.llama import Attend, Llama, RMSNorm
from sdft.model.loading import multiplies_bfloat16
from sdft.model.lora import LoRALinear

LARGEST = 2 * 2**30            # bytes of weights: a larger model is not copied, its products are long enough as they are


class Product:
    """Linear layers that read the same x, as one: x (N, D) → (N, ΣO)."""

    def __init__(self, layers: Sequence[nn.Linear]):
        dtype = layers[0].weight.dtype
        weights = [_weight(layer) for layer in layers]
        self.weight = torch.ops.mkldnn._reorder_linear_weight(torch.cat(weights) if len(weights) > 1 else weights[0], None)
        biases = [weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
                  for layer, weight in zip(layers, weights, strict=True)]
        self.bias = torch.cat(biases) if any(layer.bias is not None for layer in layers) else None
        adapted = [layer for layer in layers if _adapter_on(layer)]
        self.A = self.B = None
        if adapted:
            self.A = torch.cat([layer.lora_A.detach().to(dtype) for layer in adapted])                  # (ΣR, D)
            self.B = torch.block_diag(*(_rise(layer) for layer in layers)).to(dtype)                    # (ΣO, ΣR)

    def __call__(self, x: Tensor, operation: str = "none") -> Tensor:
        """x·Wᵀ + b, with `operation` ("none" or "swish") applied to the result."""
        if self.A is None:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, operation, [], "")
        y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        y.addmm_(x @ self.A.t(), self.B.t())                                                            # (N, ΣR)·(ΣR, ΣO)
        return F.silu(y) if operation == "swish" else y

    def combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        """`operation` ("add" or "mul") of x·Wᵀ + b and other (N, O)."""
        if self.A is None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, operation)
        y = self(x)
        return y.add_(other) if operation == "add" else y.mul_(other)


def _adapter_on(layer: nn.Linear) -> bool:
    return isinstance(layer, LoRALinear) and layer.enabled and layer.unmerged is None


def _weight(layer: nn.Linear) -> Tensor:
    """The weight that the layer computes with: of a merged adapter that is switched off, the seed's."""
    off = isinstance(layer, LoRALinear) and layer.unmerged is not None and not layer.enabled
    return layer.unmerged if off else layer.weight.detach()


def _rise(layer: nn.Linear) -> Tensor:
    """s·B (O, R) of an adapted layer; (O, 0) of any other."""
    if _adapter_on(layer):
        return layer.scale * layer.lora_B.detach()
    return layer.weight.new_zeros(layer.out_features, 0, dtype=torch.float32)


class PackedLayer:
    def __init__(self, layer: nn.Module, config):
        attention, mlp = layer.self_attn, layer.mlp
        self.attention, self.config = attention, config
        self.norm1, self.norm2 = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o, self.gate, self.up, self.down = (
            Product([linear]) for linear in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj))

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        H, K = self.config.num_attention_heads, self.config.num_key_value_heads
        heads = self.qkv(norm(self.norm1, x)).view(len(x), H + 2 * K, -1)       # (N, D) → (N, (H + 2K)·C) → (N, H + 2K, C)
        if self.attention.q_norm is None:
            turned = rope(heads[:, : H + K], cos, sin)                          # q and k at once
            q, k = turned[:, :H], turned[:, H:]
        else:
            q = rope(norm(self.attention.q_norm, heads[:, :H]), cos, sin)
            k = rope(norm(self.attention.k_norm, heads[:, H : H + K]), cos, sin)
        o = attend(self.attention.layer, q, k, heads[:, H + K :]).flatten(1)    # (N, H, C) → (N, H·C)
        if rows is not None:
            o, x = o[rows], x[rows]                                             # (n, …) from here on
        x = self.o.combined(o, x, "add")                                        # (N, H·C) → (N, D)
        y = norm(self.norm2, x)
        gated = self.up.combined(y, self.gate(y, "swish"), "mul")               # (N, D) → (N, F)
        return self.down.combined(gated, x, "add")                              # (N, F) → (N, D)


class PackedLlama:
    """The weights as they are now; later changes to the model do not reach it. `hidden` and `head` are Llama's."""

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
        return norm(self.model.model.norm, x[:n])

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


def norm(module: RMSNorm, x: Tensor) -> Tensor:
    """RMSNorm as the model computes it, with fewer arrays; F.rms_norm takes twice as long on many rows."""
    wide = x.to(torch.float32, copy=True)
    rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().mul_(1 / x.shape[-1]).add_(module.eps)
    return wide.mul_(rms.rsqrt_()).to(x.dtype).mul_(module.weight)


def packed(model: Llama) -> Llama | PackedLlama:
    """The model as generation computes with it: packed on a CPU whose oneDNN knows its dtype, else the model itself."""
    known = model.dtype == torch.float32 or (
        model.dtype == torch.bfloat16 and multiplies_bfloat16())
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if model.device.type != "cpu" or not known or not torch.backends.mkldnn.is_available() or size > LARGEST:
        return model
    with torch.inference_mode():
        return PackedLlama(model)
