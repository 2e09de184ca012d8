"""The shift of the weights: how far training moved them, from an adapter's factors or from two sets of weights.

    ΔW = s·B·A,    ‖ΔW‖_F² = s²·Σ[(BᵀB) ⊙ (AAᵀ)],    relative = ‖ΔW‖_F / ‖W₀‖_F

B·A (O, D) is never formed: both Gram matrices are (R, R). All sums are in fp64. An adapter's ΔW is never taken as the
difference of two bf16 weights, whose rounding can be larger than it. arXiv 2402.13669 reports a parameter shift whose
formula and code were not published, so these numbers do not reproduce its own.

    from sdft.measure.weights.shift import measure_shift
    print(measure_shift(model)["total"])        # `sdft measure shift --adapter DIR` adds spectra: modules.py
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Literal, TypeVar

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.model.llama import Llama
from sdft.model.lora import LoRALinear, inner_product, lora_layers
from sdft.results import Group, GroupShift, Module, ModuleShift, Shift

AT_ONCE = 1 << 22           # values converted to fp64 at a time: 32 MB
Averaged = Literal["stable_rank", "effective_rank", "spectral_shift", "left_cosine", "right_cosine", "intruders"]
MEANS: tuple[Averaged, ...] = ("stable_rank", "effective_rank", "spectral_shift", "left_cosine", "right_cosine",
                               "intruders")
_LAYER = re.compile(r"\.layers\.(\d+)\.")

M = TypeVar("M", bound=Module)
G = TypeVar("G", bound=Group)


def measure_shift(model: Llama, base: Llama | None = None) -> Shift:
    """How far the trained weights of `model` are from those of `base`, or how far its adapter moves them.

    `total` is ‖ΔW‖_F over all trained modules, `relative` its ratio to ‖W₀‖_F of the same modules.
    """
    if base is not None:
        return whole([module_shift(name, *distance(before, after)[:2])
                      for name, before, after in weights_of_both(model, base)])
    return whole([module_shift(name, factor_norm(layer.lora_A, layer.lora_B, layer.scale), _norm(base_weight(layer)))
                  for name, layer in adapted_layers(model).items()])


def factor_norm(A: Tensor, B: Tensor, scale: float) -> float:
    """‖s·B·A‖_F from A (R, D) and B (O, R), by Gram matrices in fp64; clamped where rounding makes it negative."""
    A, B = A.detach(), B.detach()
    return abs(scale) * inner_product(A, B, A, B).clamp_min(0).sqrt().item()


def adapted_layers(model: Llama) -> dict[str, LoRALinear]:
    """The adapted layers by name (SdftError where there is no adapter)."""
    layers = lora_layers(model)
    if not layers:
        raise SdftError("the model has no adapter to measure the shift of; load one, or pass the base model to compare "
                        "with")
    return layers


def base_weight(layer: LoRALinear) -> Tensor:
    """W₀ (O, D) of an adapted layer, merged or not."""
    return layer.weight.detach() if layer.unmerged is None else layer.unmerged


def weights_of_both(model: Llama, base: Llama) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every weight's name, its value in `base` and in `model` (SdftError where the architectures differ)."""
    after, before = (dict(each.named_parameters()) for each in (model, base))
    if {name: weight.shape for name, weight in after.items()} != {name: each.shape for name, each in before.items()}:
        raise SdftError("expected two models of the same weights to compare, but their names or shapes differ")
    for name, weight in after.items():
        yield name, before[name].detach(), weight.detach()


@torch.no_grad()
def distance(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """‖after − before‖_F, ‖before‖_F, and the share of weights whose values differ once both are rounded to bf16.

    In bf16 most values can be equal although training moved their fp32 masters (arXiv 2505.11711): the share is what a
    bf16 checkpoint shows of the change.
    """
    moved = base = changed = 0.0
    for old, new in zip(before.flatten().split(AT_ONCE), after.flatten().split(AT_ONCE), strict=True):
        changed += (new.bfloat16() != old.bfloat16()).sum().item()
        old, new = old.double(), new.double()
        moved += (new - old).square().sum().item()
        base += old.square().sum().item()
    return math.sqrt(moved), math.sqrt(base), changed / max(1, before.numel())


def _norm(weight: Tensor) -> float:
    return distance(weight, weight)[1]


def module_of(name: str) -> Module:
    """A weight's module: name without .weight, layer (None outside the layers), kind."""
    name, layer = name.removesuffix(".weight"), _LAYER.search(name)
    return {"name": name, "layer": int(layer[1]) if layer else None, "kind": name.rpartition(".")[2]}


def module_shift(name: str, norm: float, base: float) -> ModuleShift:
    """The shift of one module whose weights of norm `base` moved by `norm` (SdftError where these are not finite)."""
    if not math.isfinite(norm + base):
        raise SdftError(f"{name}: expected finite weights, but its norm is {base} and that of its change {norm}: it "
                        "holds a NaN or an infinity")
    return {**module_of(name), "norm": norm, "relative": norm / base if base else 0.0, "base": base}


def root_of_squares(norms: Iterable[float]) -> float:
    """√Σ norm²: the norm of the concatenation of several vectors."""
    return math.sqrt(math.fsum(norm**2 for norm in norms))


def together(modules: Sequence[ModuleShift]) -> GroupShift:
    """Several modules as one vector: its norm, the share of all weights changed in bf16, and the means of the rest."""
    norm, base = (root_of_squares(module["norm"] for module in modules),
                  root_of_squares(module["base"] for module in modules))
    group: GroupShift = {"norm": norm, "relative": norm / base if base else 0.0}
    if all("weights" in module for module in modules):
        weights = sum(module["weights"] for module in modules)
        changed = math.fsum(module["changed_bf16"] * module["weights"] for module in modules)
        group["changed_bf16"] = changed / max(1, weights)
    for key in MEANS:
        if values := [module[key] for module in modules if key in module]:
            group[key] = fmean(values)
    return group


def whole(modules: list[ModuleShift]) -> Shift:
    """The shift of all modules: together, one by one, by layer and by kind."""
    group = together(modules)
    layers, kinds = grouped(modules, together)
    shift: Shift = {"total": group["norm"], "relative": group["relative"], "modules": modules, "layers": layers,
                    "kinds": kinds}
    if "changed_bf16" in group:
        shift["changed_bf16"] = group["changed_bf16"]
    for key in MEANS:
        if key in group:
            shift[key] = group[key]
    return shift


def grouped(modules: Sequence[M], combine: Callable[[Sequence[M]], G]) -> tuple[list[G], list[G]]:
    """`combine` the modules of every layer, in the order of layers, and the modules of every kind."""
    layers: dict[int | None, list[M]] = {}
    kinds: dict[str, list[M]] = {}
    for module in sorted(modules, key=lambda module: -1 if module["layer"] is None else module["layer"]):
        layers.setdefault(module["layer"], []).append(module)
    for module in modules:
        kinds.setdefault(module["kind"], []).append(module)
    by_layer, by_kind = ([combine(group) for group in groups] for groups in (layers.values(), kinds.values()))
    for group, layer in zip(by_layer, layers, strict=True):
        group["layer"] = layer
    for group, kind in zip(by_kind, kinds, strict=True):
        group["kind"] = kind
    return by_layer, by_kind
