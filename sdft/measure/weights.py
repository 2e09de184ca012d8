"""The shift of the weights: how far training moved them, from the adapter's factors or from two sets of weights.

    ΔW = s·B·A,    ‖ΔW‖_F² = s²·Σ[(BᵀB) ⊙ (AAᵀ)],    relative = ‖ΔW‖_F / ‖W₀‖_F

B·A (O, D) is never formed: both Gram matrices are (R, R). Everything is in fp64; two bf16 weights are never subtracted
to get an adapter's ΔW, for their rounding can be larger than it. arXiv 2402.13669 reports a parameter shift
whose formula and code were not published, so no fidelity to its figures is claimed.

    sdft measure shift --adapter runs/mine/sdft
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.model.llama import Llama
from sdft.model.lora import lora_layers

_AT_ONCE = 1 << 22          # values taken to fp64 at a time: 32 MB
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def shift(model: Llama, seed: Llama | None = None) -> dict[str, Any]:
    """The shift of an adapted model from its seed, or with `seed` given, of all weights of `model` from that model's.

    total: √Σ‖ΔW‖_F² over the modules that were trained, in the weights' own unit; relative: total over √Σ‖W₀‖_F² of the
    same modules; modules: name, layer (None outside the layers), kind ("q_proj"), norm, relative, base (‖W₀‖_F); layers
    and kinds: norm and relative of their modules together.
    """
    return summed_up(_of_weights(model, seed) if seed is not None else _of_adapter(model))


def factor_norm(A: Tensor, B: Tensor, scale: float) -> float:
    """‖s·B·A‖_F from A (R, D) and B (O, R), by Gram matrices in fp64; clamped where rounding makes it negative."""
    A, B = A.detach().double(), B.detach().double()
    square = ((B.t() @ B) * (A @ A.t())).sum()                      # (R, R) each
    return abs(scale) * square.clamp_min(0).sqrt().item()


def _of_adapter(model: Llama) -> list[dict[str, Any]]:
    layers = lora_layers(model)
    if not layers:
        raise SdftError("the model has no adapter to measure the shift of; load one, or give the seed model to compare "
                        "with")
    return [module_shift(name, factor_norm(layer.lora_A, layer.lora_B, layer.scale),
                         _norm(layer.weight if layer.unmerged is None else layer.unmerged))
            for name, layer in layers.items()]


def _of_weights(model: Llama, seed: Llama) -> list[dict[str, Any]]:
    tuned, before = (dict(each.named_parameters()) for each in (model, seed))
    shapes, others = ({name: weight.shape for name, weight in each.items()} for each in (tuned, before))
    if shapes != others:
        raise SdftError("expected two models of the same weights to compare, but their names or shapes differ")
    return [module_shift(name, *distance(before[name], weight)[:2]) for name, weight in tuned.items()]


@torch.no_grad()
def distance(before: Tensor, after: Tensor) -> tuple[float, float, float]:
    """‖after − before‖_F, ‖before‖_F, and the share of values that differ; in fp64, some at a time."""
    moved = base = changed = 0.0
    for old, new in zip(before.flatten().split(_AT_ONCE), after.flatten().split(_AT_ONCE), strict=True):
        old, new = old.double(), new.double()
        moved += (new - old).square().sum().item()
        base += old.square().sum().item()
        changed += (new != old).sum().item()
    return math.sqrt(moved), math.sqrt(base), changed / max(1, before.numel())


def _norm(weight: Tensor) -> float:
    return distance(weight, weight)[1]


def module_shift(name: str, norm: float, base: float) -> dict[str, Any]:
    """The row of one module, whose weights of norm `base` moved by `norm`."""
    name, layer = name.removesuffix(".weight"), _LAYER.search(name)
    return {"name": name, "layer": int(layer[1]) if layer else None, "kind": name.rpartition(".")[2], "norm": norm,
            "relative": norm / base if base else 0.0, "base": base}


def summed_up(modules: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of all modules with what they make together: see `shift`."""
    total = _together(modules)
    in_order = sorted(modules, key=lambda module: -1 if module["layer"] is None else module["layer"])
    return {"total": total["norm"], "relative": total["relative"], "modules": modules,
            "layers": _grouped(in_order, "layer"), "kinds": _grouped(modules, "kind")}


def _grouped(modules: Iterable[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for module in modules:
        groups.setdefault(module[key], []).append(module)
    return [{key: value, **_together(group)} for value, group in groups.items()]


def _together(modules: list[Mapping[str, Any]]) -> dict[str, float]:
    norm, base = _root(module["norm"] for module in modules), _root(module["base"] for module in modules)
    return {"norm": norm, "relative": norm / base if base else 0.0}


def _root(norms: Iterable[float]) -> float:
    return math.sqrt(math.fsum(norm**2 for norm in norms))
