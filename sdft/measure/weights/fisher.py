"""The shift of the weights as the seed feels it: each change weighted by how much its answers hang on that weight.

    Σ_i F_i·(θ_i − θ₀_i)²                                                                 arXiv 2509.04259, section 6
    F_i = mean over answers y of (∂ Σ_t log π₀(v_t | x, y_<t) / ∂θ_i)²,   v_t ~ π₀(· | x, y_<t)

y are answers of the seed, as it decoded them (greedily, unless the settings say otherwise); at every place of one a
label v_t is drawn anew, once (sdft/objectives/fisher.py). The sum is a squared shift in which a weight counts by how much
the seed's answers hang on it, so that moves which change no output weigh little. It is no KL: half of it would be
KL(π₀ ‖ π) in nats per answer, to second order, were F the whole Fisher matrix and not its diagonal. Training moves
many weights together, and what they do together stands beside the diagonal. Of the adapters in benchmarks/studies half
the sum was 8 to 37 times (median 18) below the KL per general answer that was measured; halving a change (wise-ft)
quartered both within 4 %, so the second order holds and the diagonal misses the rest. Compare it between arms only.

    sdft measure fisher --adapter runs/mine/sdft
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sdft.errors import SdftError
from sdft.measure.weights.shift import AT_ONCE, Row, adapted_layers, grouped, place
from sdft.model.llama import Llama
from sdft.model.lora import LoRALinear


@torch.no_grad()
def fisher_shift(model: Llama, fisher: Mapping[str, Tensor], base: Llama | None = None) -> Row:
    """Σ F·ΔW² of an adapted model, or with `seed` given, of the weights that `fisher` holds against that model's.

    fisher: layer name → F (O, D), in nats² per weight² and answer. total; modules: name, layer, kind, shift; layers and
    kinds: the sums of theirs; all in nats² per answer. ΔW comes from the factors in fp64, some rows at a time.

    What `fisher` does not hold (embedding, head and norms of a model that was trained whole) does not count.

    Raises SdftError where `fisher` lacks an adapted layer, or has another shape for one.
    """
    names = adapted_layers(model) if base is None else fisher
    modules = []
    for name in names:
        layer = model.get_submodule(name)
        F = fisher.get(name)
        if F is None or F.shape != layer.weight.shape:
            raise SdftError(f"fisher: expected {tuple(layer.weight.shape)} for {name}, got "
                            f"{'nothing' if F is None else tuple(F.shape)}; compute it for the layers that are trained")
        changes = _from_factors(layer) if base is None else _from_weights(layer, base.get_submodule(name))
        parts = F.split(_rows(layer.weight))
        modules.append({**place(name), "shift": math.fsum((part.double() * change.square()).sum().item()
                                                          for part, change in zip(parts, changes, strict=True))})
    return {"total": _sum(modules)["shift"], "modules": modules, "layers": grouped(modules, "layer", _sum),
            "kinds": grouped(modules, "kind", _sum)}


def _rows(weight: Tensor) -> int:
    return max(1, AT_ONCE // weight.shape[1])


def _from_factors(layer: LoRALinear) -> Iterator[Tensor]:
    """ΔW (O, D) in fp64, some rows at a time."""
    for B in layer.lora_B.split(_rows(layer.weight)):
        yield layer.scale * (B.double() @ layer.lora_A.double())


def _from_weights(layer: nn.Linear, before: nn.Linear) -> Iterator[Tensor]:
    rows = _rows(layer.weight)
    for new, old in zip(layer.weight.split(rows), before.weight.split(rows), strict=True):
        yield new.double() - old.double()


def _sum(modules: Sequence[Row]) -> Row:
    return {"shift": math.fsum(module["shift"] for module in modules)}
