"""The shift of the weights: how far training moved them, from an adapter's factors or from two sets of weights.

    ΔW = s·B·A,    ‖ΔW‖_F² = s²·Σ[(BᵀB) ⊙ (AAᵀ)],    relative = ‖ΔW‖_F / ‖W₀‖_F

B·A (O, D) is never formed: both Gram matrices are (R, R). All sums are in fp64. An adapter's ΔW is never taken as the
difference of two bf16 weights, whose rounding can be larger. The formula and code of the parameter shift in arXiv
2402.13669 were not published, so these numbers do not reproduce its own.

    sdft measure shift --adapter runs/mine/sdft --spectra q_proj,v_proj
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.measure.weights.spectrum import Factors, compare_spectra, factor_spectrum, named_by, ranks
from sdft.model.llama import Llama
from sdft.model.lora import LoRALinear, inner_product, lora_layers
from sdft.progress import progress
from sdft.results import Part, PartShift, Shift, Spectra

AT_ONCE = 1 << 22           # values converted to fp64 at a time: 32 MB
Averaged = Literal["stable_rank", "effective_rank", "spectral_shift", "left_cosine", "right_cosine", "intruders"]
MEANS: tuple[Averaged, ...] = get_args(Averaged)
_LAYER = re.compile(r"\.layers\.(\d+)\.")

M = TypeVar("M", bound=Part)
G = TypeVar("G", bound=Part)


def measure_shift(model: Llama, base: Llama | None = None) -> Shift:
    """How far the trained weights of `model` are from those of `base`, or how far its adapter moves them."""
    if base is not None:
        return whole([module_shift(name, *distance(before, after)[:2])
                      for name, before, after in weights_of_both(model, base)])
    return whole([module_shift(name, factor_norm(layer.lora_A, layer.lora_B, layer.scale),
                               distance(base_weight(layer), base_weight(layer))[1])
                  for name, layer in adapted_layers(model).items()])


def module_measures(model: Llama, base: Llama | None = None, spectra: Sequence[str] = ()) -> Shift:
    """`measure_shift` with changed_bf16, and of an adapter also spectrum and ranks.

    `spectra` names modules (see `named_by`) to decompose fully, twice each, in fp64: they get the measures of
    `compare_spectra`, and with `base` their ranks. Layers, kinds and the whole hold the means over these modules.
    """
    if base is not None:
        pairs = list(weights_of_both(model, base))
        chosen = named_by(spectra, [name for name, *_ in pairs])
        return whole([weight_measures(name, before, after, name in chosen)
                      for name, before, after in progress(pairs, desc="weights", unit="tensor")])
    layers = adapted_layers(model)
    chosen = named_by(spectra, layers)
    return whole([adapter_measures(name, layer, name in chosen)
                  for name, layer in progress(layers.items(), desc="weights", unit="module")])


def adapter_measures(name: str, layer: LoRALinear, spectra: bool = False) -> PartShift:
    """The measures of an adapted layer; all but changed_bf16 come from the factors in fp64."""
    before = base_weight(layer)
    _, base, changed = distance(before, before.float() + layer.delta())         # the sum that `merge` rounds
    factors = Factors(layer.lora_A.detach(), layer.lora_B.detach(), layer.scale)
    shift = module_shift(name, factor_norm(*factors), base)                     # refuses what is not finite
    spectrum = factor_spectrum(factors)
    module: PartShift = {**shift, "weights": before.numel(), "changed_bf16": changed, "spectrum": spectrum.tolist(),
                         **ranks(spectrum)}
    if not spectra:
        return module
    after = before.double() + factors.scale * (factors.B.double() @ factors.A.double())
    return {**module, **compare_spectra(before.double(), after)}


def weight_measures(name: str, before: Tensor, after: Tensor, spectra: bool = False) -> PartShift:
    """The measures of a weight in two models, of any dtypes; `spectra` decomposes a matrix, in fp32 at least."""
    norm, base, changed = distance(before, after)
    module: PartShift = {**module_shift(name, norm, base), "weights": before.numel(), "changed_bf16": changed}
    if spectra and before.dim() == 2:
        change = (after.double() - before.double()).to(torch.promote_types(after.dtype, torch.float32))
        return {**module, **ranks(torch.linalg.svdvals(change)), **compare_spectra(before, after)}
    return module


def spread_out(names: Sequence[str], count: int) -> list[str]:
    """The names in `count` layers, evenly spread from the first to the last layer that has any."""
    layers = sorted({layer for name in names if (layer := module_of(name)["layer"]) is not None})
    steps = max(1, min(count, len(layers)) - 1)
    chosen = {layers[round(i * (len(layers) - 1) / steps)] for i in range(min(count, len(layers)))}
    return [name for name in names if module_of(name)["layer"] in chosen]


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

    The share is what a bf16 checkpoint shows of the change: most values can be equal although training moved their fp32
    masters (arXiv 2505.11711).
    """
    moved = base = changed = 0.0
    for old, new in zip(before.flatten().split(AT_ONCE), after.flatten().split(AT_ONCE), strict=True):
        changed += (new.bfloat16() != old.bfloat16()).sum().item()
        old, new = old.double(), new.double()
        moved += (new - old).square().sum().item()
        base += old.square().sum().item()
    return math.sqrt(moved), math.sqrt(base), changed / max(1, before.numel())


def module_of(name: str) -> Part:
    """A weight's module: name without .weight, layer (None outside the layers), kind."""
    name, layer = name.removesuffix(".weight"), _LAYER.search(name)
    return {"name": name, "layer": int(layer[1]) if layer else None, "kind": name.rpartition(".")[2]}


def module_shift(name: str, norm: float, base: float) -> PartShift:
    """The shift of one module whose weights of norm `base` moved by `norm` (SdftError where these are not finite)."""
    if not math.isfinite(norm + base):
        raise SdftError(f"{name}: expected finite weights, but its norm is {base} and that of its change {norm}: it "
                        "holds a NaN or an infinity")
    return {**module_of(name), "norm": norm, "relative": norm / base if base else 0.0, "base": base}


def root_of_squares(norms: Iterable[float]) -> float:
    """√Σ norm²."""
    return math.sqrt(math.fsum(norm**2 for norm in norms))


def together(modules: Sequence[PartShift]) -> PartShift:
    """Several modules as one vector: its norm, the share of all weights changed in bf16, and the means of the rest."""
    norm = root_of_squares(module["norm"] for module in modules)
    base = root_of_squares(module["base"] for module in modules)
    group: PartShift = {"norm": norm, "relative": norm / base if base else 0.0}
    if all("weights" in module for module in modules):
        weights = sum(module["weights"] for module in modules)
        changed = math.fsum(module["changed_bf16"] * module["weights"] for module in modules)
        group["changed_bf16"] = changed / max(1, weights)
    for key in MEANS:
        if values := [module[key] for module in modules if key in module]:
            group[key] = fmean(values)
    return group


def whole(modules: list[PartShift]) -> Shift:
    """The shift of all modules: together, one by one, by layer and by kind."""
    group = together(modules)
    layers, kinds = grouped(modules, together)
    means = cast(Spectra, {key: value for key, value in group.items() if key not in ("norm", "relative")})
    return {"total": group["norm"], "relative": group["relative"], "modules": modules, "layers": layers, "kinds": kinds,
            **means}


def grouped(modules: Sequence[M], combine: Callable[[Sequence[M]], G]) -> tuple[list[G], list[G]]:
    """`combine` the modules of every layer, in the order of layers, and the modules of every kind."""
    layers = sorted({module["layer"] for module in modules}, key=lambda layer: -1 if layer is None else layer)
    kinds = list(dict.fromkeys(module["kind"] for module in modules))
    by_layer = [combine([module for module in modules if module["layer"] == layer]) for layer in layers]
    by_kind = [combine([module for module in modules if module["kind"] == kind]) for kind in kinds]
    for group, layer in zip(by_layer, layers, strict=True):
        group["layer"] = layer
    for group, kind in zip(by_kind, kinds, strict=True):
        group["kind"] = kind
    return by_layer, by_kind
