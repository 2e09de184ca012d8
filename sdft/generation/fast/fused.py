"""What both ways to generate fast share: linear layers that read the same x, as one product, and a layer made of those.

    x ─RMSNorm─ [q│k│v] ─rope q,k─ attend ─ o_proj ─ …          what stands in brackets is one product

Adapters that are switched on stay factors, as in training: x·Wᵀ + s·(x·Aᵀ)·Bᵀ with A and B rounded to the model's dtype. Merging
them into bf16 weights would round away most of a small change, and evaluate another model than the one that was trained.
A projection's adapters cost two narrow products for the bracket together.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdft.kernels.rope import rope
from sdft.model.llama import Attend, Llama
from sdft.model.lora import LoRALinear

LARGEST = 2 * 2**30            # bytes of weights: a larger model is not copied, its products are long enough as they are


def worth_copying(model: Llama) -> bool:
    """Whether the model is so small that its weights are laid out once more."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) <= LARGEST


class Joined:
    """x·Wᵀ + b of several linear layers, their outputs behind one another; weights and adapters as they are now."""

    def __init__(self, layers: Sequence[nn.Linear]):
        dtype = layers[0].weight.dtype
        weights = [_weight(layer) for layer in layers]
        self.weight = weights[0] if len(weights) == 1 else torch.cat(weights)                           # (ΣO, D)
        self.bias = self.A = self.B = None
        if any(layer.bias is not None for layer in layers):
            self.bias = torch.cat([weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
                                   for layer, weight in zip(layers, weights, strict=True)])             # (ΣO,)
        adapted = [layer for layer in layers if _adapter_on(layer)]
        if adapted:
            self.A = torch.cat([layer.lora_A.detach().to(dtype) for layer in adapted])                  # (ΣR, D)
            self.B = torch.block_diag(*(_rise(layer) for layer in layers)).to(dtype)                    # (ΣO, ΣR)

    def adapt(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the adapters' share to y (N, ΣO), in place."""
        return y if self.A is None else y.addmm_(x @ self.A.t(), self.B.t())                            # (N, ΣR)·(ΣR, ΣO)


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


class JoinedLayer:
    """A layer up to its attention; `product` is the kind of `Joined` that it is made of."""

    product: type[Joined]

    def __init__(self, layer: nn.Module, config):
        attention = layer.self_attn
        self.attention, self.config = attention, config
        self.norm1, self.norm2 = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = self.product([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o, self.down = self.product([attention.o_proj]), self.product([layer.mlp.down_proj])

    def attended(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """What attention makes of x (N, D): (N, H·C)."""
        H, K = self.config.num_attention_heads, self.config.num_key_value_heads
        heads = self.qkv(self.norm1(x)).view(len(x), H + 2 * K, -1)             # (N, D) → (N, (H + 2K)·C) → (N, H + 2K, C)
        if self.attention.q_norm is None:
            turned = rope(heads[:, : H + K], cos, sin)                          # q and k at once
            q, k = turned[:, :H], turned[:, H:]
        else:
            q = rope(self.attention.q_norm(heads[:, :H]), cos, sin)
            k = rope(self.attention.k_norm(heads[:, H : H + K]), cos, sin)
        return attend(self.attention.layer, q, k, heads[:, H + K :]).flatten(1)
