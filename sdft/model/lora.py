"""LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen linear layer W plus a low-rank change, y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ.

           ┌──────── W (O, D), frozen ────────┐
    x (N, D)                                   + → y (N, O)        ΔW = s·B·A,   s = α/R   (rank-stabilised: α/√R)
           └── A (R, D) ─→ (N, R) ─→ B (O, R) ─┘ · s

B starts at zero, so an adapter changes nothing until it is trained. A and B are fp32, whatever the dtype of W.
An adapted layer keeps the weight of the layer that it replaces, with the same name. So turning the adapter off gives
the base model, without a copy.

    add_lora(model, rank=8, alpha=16, targets=("q_proj", "v_proj"))
    with adapter_off(model): …                  # the base model
"""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.errors import SdftError, nearest
from sdft.kernels.lora_linear import lora_linear
from sdft.model.llama import Llama


class LoRALinear(nn.Linear):
    """A linear layer with an adapter; the weight and bias are the replaced layer's own parameters."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False):
        nn.Module.__init__(self)                                    # nn.Linear's would allocate a weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        fp32, device = torch.float32, base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features, dtype=fp32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=fp32, device=device))
        self.rank, self.alpha, self.rslora, self.dropout = rank, alpha, rslora, dropout
        self.scale = lora_scale(rank, alpha, rslora)
        self.enabled = True
        self.unmerged: Tensor | None = None                         # the base weight while `weight` is merged

    def forward(self, x: Tensor) -> Tensor:
        if self.unmerged is not None:
            return F.linear(x, self.weight if self.enabled else self.unmerged, self.bias)
        if not self.enabled:
            return F.linear(x, self.weight, self.bias)
        if self.dropout and self.training:                          # the adapter sees x with dropout, W without
            low = F.linear(F.dropout(x, self.dropout), self.lora_A.to(x.dtype))              # (N, D) → (N, R)
            return F.linear(x, self.weight, self.bias) + self.scale * F.linear(low, self.lora_B.to(x.dtype))
        return lora_linear(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scale)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return ΔW = s·B·A, fp32 (O, D)."""
        return self.scale * (self.lora_B @ self.lora_A)


def lora_scale(rank: int, alpha: float, rslora: bool) -> float:
    """Return s of ΔW = s·B·A: α/R, or rank-stabilised α/√R (Kalajdzievski 2023, arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def inner_product(A: Tensor, B: Tensor, other_A: Tensor, other_B: Tensor) -> Tensor:
    """Return ⟨B·A, B′·A′⟩ = Σ[(BᵀB′) ⊙ (A·A′ᵀ)], given the factors of two adapters of one layer; 0-d, with a gradient.

    No (O, D) product is formed. The result is fp64, since the sum cancels while B is small.
    """
    A, B, other_A, other_B = A.double(), B.double(), other_A.double(), other_B.double()
    return ((B.t() @ other_B) * (A @ other_A.t())).sum()            # (R, R′) each


def add_lora(model: Llama, rank: int = 8, alpha: float = 16, targets: Sequence[str] = ("q_proj", "v_proj"),
             dropout: float = 0.0, rslora: bool = False, seed: int = 0) -> list[str]:
    """Freeze the model and add an adapter to every linear layer that `targets` name; return the layers' names.

    A target is the last part of a name ("q_proj"), a whole name, or a pattern ("model.layers.1?.mlp.*"). As in PEFT, A
    is Kaiming uniform (a = √5), drawn from `seed` layer by layer. Raises SdftError for a target that names no linear
    layer of the decoder, for an impossible rank or dropout, and if the model already has an adapter.
    """
    if lora_layers(model):
        raise SdftError("the model has an adapter already: call sdft.remove_lora(model) first; merge(model) keeps it")
    if rank < 1 or not 0 <= dropout < 1:
        raise SdftError(f"expected a LoRA rank of at least 1 and a dropout in [0, 1), got {rank} and {dropout}")
    names = match_targets(model, targets, rank)
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in names:
        layer = adapt(model, name, rank, alpha, dropout, rslora)
        drawn = torch.empty(layer.lora_A.shape)                     # on the CPU: the same values for every device
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        layer.lora_A.data.copy_(drawn)
    return names


def match_targets(model: Llama, targets: Sequence[str], rank: int = 1) -> list[str]:
    """Return the decoder's linear layers that match `targets` (SdftError for no match, or a rank above full rank)."""
    linear = {name: module for name, module in model.named_modules()
              if isinstance(module, nn.Linear) and name != "lm_head"}
    chosen = matching(targets, linear,
                      "LoRA target {!r} names no linear layer{}; expected {}, a layer's whole name, or a pattern of it")
    names = [name for name in linear if name in chosen]
    for name in names:
        if rank > (largest := min(linear[name].weight.shape)):
            raise SdftError(f"rank: expected at most {largest}, the full rank of {name}, got {rank}")
    return names


def matching(patterns: Sequence[str], names: Collection[str], refusal: str) -> set[str]:
    """Return the names that match `patterns`: by last part ("q_proj"), whole name or pattern ("model.layers.0.*").

    SdftError for a pattern without a match: `refusal`, formatted with it, the nearest last part, and all last parts.
    """
    chosen = set()
    for pattern in patterns:
        matched = [name for name in names if name.rpartition(".")[2] == pattern or fnmatch(name, pattern)]
        if not matched:
            known = dict.fromkeys(name.rpartition(".")[2] for name in names)
            raise SdftError(refusal.format(pattern, nearest(pattern, known), ", ".join(known)))
        chosen.update(matched)
    return chosen


def adapt(model: Llama, name: str, rank: int, alpha: float, dropout: float, rslora: bool) -> LoRALinear:
    """Replace the linear layer `name` by one with an adapter, and return it."""
    base, (parent, _, leaf) = model.get_submodule(name), name.rpartition(".")
    assert isinstance(base, nn.Linear)
    layer = LoRALinear(base, rank, alpha, dropout, rslora).train(model.training)
    setattr(model.get_submodule(parent), leaf, layer)
    return layer


def lora_layers(model: Llama) -> dict[str, LoRALinear]:
    """Return the adapted layers by name; {} if there is no adapter."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def adapter_off(model: Llama) -> Iterator[Llama]:
    """Turn the adapter off inside the `with`: the model computes what the base model does."""
    layers = [layer for layer in lora_layers(model).values() if layer.enabled]
    for layer in layers:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer in layers:
            layer.enabled = True


def remove_lora(model: Llama) -> None:
    """Remove the adapter; the model is then the base model, bit for bit."""
    unmerge(model)
    for name, layer in lora_layers(model).items():
        with torch.device("meta"):                                  # allocates no weight
            base = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        base.weight, base.bias = layer.weight, layer.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, base)


@torch.no_grad()
def merge(model: Llama) -> dict[str, float]:
    """Replace W by W + s·B·A, summed in fp32 and rounded once to W's dtype; return the rounding error.

    Over all layers, `delta_norm` is the exact ‖ΔW‖_F, `rounding_norm` is ‖round(W + ΔW) − (W + ΔW)‖_F, `relative` is
    rounding_norm / delta_norm, and `changed` is the share of the adapted weights whose stored value changed. `relative`
    is about 1e-7 in fp32; it can be large in bf16.
    """
    delta_square = rounding_square = 0.0
    changed = total = 0
    for layer in lora_layers(model).values():
        if layer.unmerged is not None:
            continue
        delta = layer.delta()                                       # (O, D)
        exact = layer.weight.double() + delta.double()
        merged = (layer.weight.float() + delta).to(layer.weight.dtype)
        delta_square += delta.double().square().sum().item()
        rounding_square += (merged.double() - exact).square().sum().item()
        changed += int((merged != layer.weight).sum())
        total += merged.numel()
        layer.unmerged, layer.weight.data = layer.weight.data, merged
    norm, rounding = math.sqrt(delta_square), math.sqrt(rounding_square)
    return {"delta_norm": norm, "rounding_norm": rounding, "relative": rounding / norm if norm else 0.0,
            "changed": changed / total if total else 0.0}


def unmerge(model: Llama) -> None:
    """Undo `merge`: restore the base weights bit for bit; the adapter is applied separately again."""
    for layer in lora_layers(model).values():
        if layer.unmerged is not None:
            layer.weight.data, layer.unmerged = layer.unmerged, None


def squared_shift(layers: Mapping[str, LoRALinear]) -> Tensor:
    """Return Σ ‖s·B·A‖²_F over the layers, from the factors' R × R Gram matrices; fp64, with a gradient."""
    factors = [(layer.scale, layer.lora_A, layer.lora_B) for layer in layers.values()]
    return sum((scale**2 * inner_product(A, B, A, B) for scale, A, B in factors), torch.zeros((), dtype=torch.float64))


@torch.no_grad()
def shift_norm(layers: Mapping[str, LoRALinear]) -> Tensor:
    """Return √Σ ‖s·B·A‖²_F over the layers, fp64: `squared_shift` with all layers of one shape in one product.

    On a GPU these are some twenty kernels instead of twenty a layer. The sums are in another order.
    """
    alike: dict[tuple[torch.Size, torch.Size, float], list[LoRALinear]] = defaultdict(list)
    for layer in layers.values():
        alike[layer.lora_A.shape, layer.lora_B.shape, layer.scale].append(layer)
    total = torch.zeros((), dtype=torch.float64)
    for (_, _, scale), group in alike.items():
        A = torch.stack([layer.lora_A for layer in group]).double()                  # (n, R, D)
        B = torch.stack([layer.lora_B for layer in group]).double()                  # (n, O, R)
        total = total + scale**2 * ((B.mT @ B) * (A @ A.mT)).sum()                  # of (n, R, R)
    return total.clamp_min(0).sqrt()
