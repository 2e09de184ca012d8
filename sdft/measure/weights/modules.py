"""All measures of each module's change: its norm, its spectrum, its directions; then of modules taken together.

    adapter on its base              ΔW from the factors: norm, spectrum, ranks, share of weights changed in bf16
    any two matrices (checkpoints)   norm, share changed in bf16; ranks where spectra are asked for
    spectra (full decompositions)    W₀ against W₀ + ΔW: spectral shift, principal cosines, intruder dimensions

shift.py and spectrum.py have the formulas and their sources.

    sdft measure shift --adapter runs/mine/sdft --spectra q_proj,v_proj
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdft.measure.weights.shift import (
    adapted_layers,
    base_weight,
    distance,
    factor_norm,
    module_of,
    module_shift,
    weights_of_both,
    whole,
)
from sdft.measure.weights.spectrum import Factors, compare_spectra, factor_spectrum, named_by, ranks
from sdft.model.llama import Llama
from sdft.model.lora import LoRALinear
from sdft.progress import progress
from sdft.results import ModuleShift, Shift


def module_measures(model: Llama, base: Llama | None = None, spectra: Sequence[str] = ()) -> Shift:
    """`measure_shift` with changed_bf16, and of an adapter also spectrum and ranks.

    `spectra` names modules (see `named_by`) to decompose fully, twice each, in fp64: they get the measures of
    `compare_spectra`, and with `base` their ranks. Layers, kinds and the whole hold the means over these modules.
    """
    if base is not None:
        pairs = list(weights_of_both(model, base))
        chosen = named_by(spectra, [name.removesuffix(".weight") for name, *_ in pairs])
        return whole([weight_measures(name, before, after, name.removesuffix(".weight") in chosen)
                      for name, before, after in progress(pairs, desc="weights", unit="tensor")])
    layers = adapted_layers(model)
    chosen = named_by(spectra, layers)
    return whole([adapter_measures(name, layer, name in chosen)
                  for name, layer in progress(layers.items(), desc="weights", unit="module")])


def spread_out(names: Sequence[str], count: int) -> list[str]:
    """The names in `count` layers, evenly spread from the first to the last layer that has any."""
    layers = sorted({layer for name in names if (layer := module_of(name)["layer"]) is not None})
    steps = max(1, min(count, len(layers)) - 1)
    chosen = {layers[round(i * (len(layers) - 1) / steps)] for i in range(min(count, len(layers)))}
    return [name for name in names if module_of(name)["layer"] in chosen]


def adapter_measures(name: str, layer: LoRALinear, spectra: bool = False) -> ModuleShift:
    """The measures of an adapted layer; all but changed_bf16 come from the factors in fp64."""
    before = base_weight(layer)
    _, base, changed = distance(before, before.float() + layer.delta())         # the sum that `merge` rounds
    factors = Factors(layer.lora_A.detach(), layer.lora_B.detach(), layer.scale)
    shift = module_shift(name, factor_norm(*factors), base)                     # refuses what is not finite
    spectrum = factor_spectrum(factors)
    module: ModuleShift = {**shift, "weights": before.numel(), "changed_bf16": changed, "spectrum": spectrum.tolist(),
                           **ranks(spectrum)}
    if spectra:
        before = before.double()
        after = before + factors.scale * (factors.B.double() @ factors.A.double())
        return {**module, **compare_spectra(before, after)}
    return module


def weight_measures(name: str, before: Tensor, after: Tensor, spectra: bool = False) -> ModuleShift:
    """The measures of a weight in two models, of any dtypes; `spectra` decomposes a matrix, in fp32 at least."""
    norm, base, changed = distance(before, after)
    module: ModuleShift = {**module_shift(name, norm, base), "weights": before.numel(), "changed_bf16": changed}
    if spectra and before.dim() == 2:
        change = (after.double() - before.double()).to(torch.promote_types(after.dtype, torch.float32))
        return {**module, **ranks(torch.linalg.svdvals(change)), **compare_spectra(before, after)}
    return module
