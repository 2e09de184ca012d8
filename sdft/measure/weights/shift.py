"""The shift of the weights: how far training moved them, from the adapter's factors or from two sets of weights.

    ΔW = s·B·A,    ‖ΔW‖_F² = s²·Σ[(BᵀB) ⊙ (AAᵀ)],    relative = ‖ΔW‖_F / ‖W₀‖_F

B·A (O, D) is never formed: both Gram matrices are (R, R). Everything is in fp64; two bf16 weights are never subtracted
to get an adapter's ΔW, for their rounding can be larger than it. arXiv 2402.13669 reports a parameter shift
whose formula and code were not published, so no fidelity to its figures is claimed.

    from sdft.measure.weights.shift import shift
    print(shift(model)["total"])                # `sdft measure shift --adapter DIR` tells more: modules.py
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.model.llama import Llama
from sdft.model.lora import LoRALinear, inner_product, lora_layers

AT_ONCE = 1 << 22           # values taken to fp64 at a time: 32 MB
_LAYER = re.compile(r"\.layers\.(\d+)\.")

Row = dict[str, Any]
Together = Callable[[Sequence[Row]], Row]       # the rows of several modules → what they make together


def shift(model: Llama, base: Llama | None = None) -> dict[str, Any]:
    """The shift of an adapted model from its seed, or with `seed` given, of all weights of `model` from that model's.

    total: √Σ‖ΔW‖_F² over the modules that were trained, in the weights' own unit; relative: total over √Σ‖W₀‖_F² of the
    same modules; modules: name, layer (None outside the layers), kind ("q_proj"), norm, relative, base (‖W₀‖_F); layers
    and kinds: norm and relative of their modules together.
    """
    if base is not None:
        return summed_up([module_shift(name, *distance(before, after)[:2])
                          for name, before, after in weights_of_both(model, base)])
    return summed_up([module_shift(name, factor_norm(layer.lora_A, layer.lora_B, layer.scale), _norm(layer))
                      for name, layer in adapted_layers(model).items()])


def factor_norm(A: Tensor, B: Tensor, scale: float) -> float:
    """‖s·B·A‖_F from A (R, D) and B (O, R), by Gram matrices in fp64; clamped where rounding makes it negative."""
    A, B = A.detach(), B.detach()
    return abs(scale) * inner_product(A, B, A, B).clamp_min(0).sqrt().item()


def adapted_layers(model: Llama) -> dict[str, LoRALinear]:
    """The adapted layers by name (SdftError where there is no adapter)."""
    layers = lora_layers(model)
    if not layers:
        raise SdftError("the model has no adapter to measure the shift of; load one, or give the seed model to compare "
                        "with")
    return layers


def base_weight(layer: LoRALinear) -> Tensor:
    """W₀ (O, D) of an adapted layer, merged or not."""
    return layer.weight.detach() if layer.unmerged is None else layer.unmerged


def weights_of_both(model: Llama, base: Llama) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every weight's name, the seed's and the model's (SdftError where the two models are not of one architecture)."""
    tuned, before = (dict(each.named_parameters()) for each in (model, base))
    shapes, others = ({name: weight.shape for name, weight in each.items()} for each in (tuned, before))
    if shapes != others:
        raise SdftError("expected two models of the same weights to compare, but their names or shapes differ")
    for name, weight in tuned.items():
        yield name, before[name].detach(), weight.detach()


@torch.no_grad()
def distance(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """‖after − before‖_F, ‖before‖_F, and the share of weights whose values differ once both are rounded to bf16.

    In bf16 most values can be equal although training moved their fp32 masters (arXiv 2505.11711): the share tells what
    a bf16 checkpoint shows of the change. Everything in fp64, some values at a time.
    """
    moved = base = changed = 0.0
    for old, new in zip(before.flatten().split(AT_ONCE), after.flatten().split(AT_ONCE), strict=True):
        changed += (new.bfloat16() != old.bfloat16()).sum().item()
        old, new = old.double(), new.double()
        moved += (new - old).square().sum().item()
        base += old.square().sum().item()
    return math.sqrt(moved), math.sqrt(base), changed / max(1, before.numel())


def _norm(layer: LoRALinear) -> float:
    return distance(base_weight(layer), base_weight(layer))[1]


def place(name: str) -> Row:
    """Where a weight stands, from its name: name (without .weight), layer (None outside the layers), kind."""
    name, layer = name.removesuffix(".weight"), _LAYER.search(name)
    return {"name": name, "layer": int(layer[1]) if layer else None, "kind": name.rpartition(".")[2]}


def module_shift(name: str, norm: float, base: float) -> Row:
    """The row of one module, whose weights of norm `base` moved by `norm` (SdftError where these are not finite)."""
    if not math.isfinite(norm + base):
        raise SdftError(f"{name}: expected finite weights, but its norm is {base} and that of its change {norm}: a NaN "
                        "or infinity stands in it")
    return {**place(name), "norm": norm, "relative": norm / base if base else 0.0, "base": base}


def norms_together(modules: Sequence[Row]) -> Row:
    """norm and relative of several modules as of one vector."""
    norm, base = (root_of_squares(module[key] for module in modules) for key in ("norm", "base"))
    return {"norm": norm, "relative": norm / base if base else 0.0}


def root_of_squares(norms: Iterable[float]) -> float:
    """√Σ norm²: the norm of several vectors laid behind one another."""
    return math.sqrt(math.fsum(norm**2 for norm in norms))


def summed_up(modules: list[Row], together: Together = norms_together) -> Row:
    """The rows of all modules with what they make together: see `shift`."""
    total = together(modules)
    in_order = sorted(modules, key=lambda module: -1 if module["layer"] is None else module["layer"])
    return {"total": total.pop("norm"), **total, "modules": modules, "layers": grouped(in_order, "layer", together),
            "kinds": grouped(modules, "kind", together)}


def grouped(modules: Iterable[Row], key: str, together: Together) -> list[Row]:
    """What the modules of the same `key` make together, group by group."""
    groups: dict[Any, list[Row]] = {}
    for module in modules:
        groups.setdefault(module[key], []).append(module)
    return [{key: value, **together(group)} for value, group in groups.items()]
