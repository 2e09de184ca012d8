"""Fisher-weighted weight shift: each squared change is weighted by how sensitive the base model's answers are to it.

    Σ_i F_i·(θ_i − θ₀_i)²                                                                 arXiv 2509.04259, section 6
    F_i = mean over answers y of (∂ Σ_t log π₀(v_t | x, y_<t) / ∂θ_i)²,   v_t ~ π₀(· | x, y_<t)

y are answers of the base model; at every position of one a label v_t is drawn once (sdft/objectives/fisher.py). With
the whole Fisher matrix, half the sum would be KL(π₀ ‖ π) in nats per answer, to second order. The diagonal alone
ignores what weights do together, and can be tens of times below that KL. So compare it between arms only.

    sdft measure fisher --adapter runs/mine/sdft
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sdft.errors import SdftError
from sdft.measure.weights.shift import AT_ONCE, adapted_layers, grouped, module_of
from sdft.model.llama import Llama
from sdft.model.lora import LoRALinear
from sdft.results import FisherShift, PartFisher


@torch.no_grad()
def fisher_shift(model: Llama, fisher: Mapping[str, Tensor], base: Llama | None = None) -> FisherShift:
    """Σ F·ΔW² of the adapter of `model`, or of its weights against those of `base`, in nats² per answer.

    fisher: layer name → F (O, D), in nats² per weight² and answer. With `base` only the layers in `fisher` count, so
    embedding, head and norms do not. Raises SdftError where `fisher` lacks an adapted layer, or has another shape.
    """
    modules: list[PartFisher] = []
    for name in adapted_layers(model) if base is None else fisher:
        layer, F = cast(nn.Linear, model.get_submodule(name)), fisher.get(name)
        if F is None or F.shape != layer.weight.shape:
            raise SdftError(f"fisher: expected {tuple(layer.weight.shape)} for {name}, got "
                            f"{'nothing' if F is None else tuple(F.shape)}; compute it for the layers that are trained")
        rows = max(1, AT_ONCE // layer.weight.shape[1])
        changes = _changes(layer, None if base is None else cast(nn.Linear, base.get_submodule(name)), rows)
        shift = math.fsum((F_part.double() * change.square()).sum().item()
                          for F_part, change in zip(F.split(rows), changes, strict=True))
        modules.append({**module_of(name), "shift": shift})
    layers, kinds = grouped(modules, _together)
    return {"total": _together(modules)["shift"], "modules": modules, "layers": layers, "kinds": kinds}


def _changes(layer: nn.Linear, base: nn.Linear | None, rows: int) -> Iterator[Tensor]:
    """ΔW (O, D) in fp64, some rows at a time."""
    if base is None:
        layer = cast(LoRALinear, layer)
        return (layer.scale * (B.double() @ layer.lora_A.double()) for B in layer.lora_B.split(rows))
    both = zip(layer.weight.split(rows), base.weight.split(rows), strict=True)
    return (after.double() - before.double() for after, before in both)


def _together(modules: Sequence[PartFisher]) -> PartFisher:
    return {"shift": math.fsum(module["shift"] for module in modules)}
