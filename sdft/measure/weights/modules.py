"""Everything that is measured of the change of each module's weights, in one row; and what the modules make together.

    adapter beside its base          ΔW from the factors: norm, spectrum, ranks, what bf16 would show of it
    any two matrices (checkpoints)   norm, what bf16 shows of it; ranks where spectra are asked for
    spectra (full decompositions)    W₀ against W₀ + ΔW: spectral shift, principal cosines, intruder dimensions

The formulas and their sources stand in weights.py and spectrum.py.

    sdft measure shift --adapter runs/mine/sdft --svd_layers q_proj,v_proj
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from sdft.measure.weights.shift import (
    Row,
    adapted_layers,
    base_weight,
    distance,
    factor_norm,
    module_shift,
    norms_together,
    place,
    summed_up,
    weights_of_both,
)
from sdft.measure.weights.spectrum import Factors, compare_spectra, factor_spectrum, named_by, ranks
from sdft.model.llama import Llama
from sdft.model.lora import LoRALinear
from sdft.progress import progress

MEANS = ("stable_rank", "effective_rank", "spectral_shift", "left_cosine", "right_cosine", "intruders")


def module_measures(model: Llama, base: Llama | None = None, spectra: Sequence[str] = ()) -> Row:
    """What `sdft.measure.weights.shift.shift` gives, with more of every module.

    weights: how many; changed_bf16: the share of them whose bf16 value changes on merging, as `merge` rounds; of an
    adapter also spectrum: the singular values of ΔW, largest first, and stable_rank and effective_rank of them. Of the
    modules that `spectra` names (see `named_by`) also the measures of `compare_spectra`, in fp64: two full
    decompositions each. With `seed` (every weight was trained) the ranks come with them. layers, kinds and the whole
    hold the means of these over their modules, and changed_bf16 over their weights.
    """
    if base is not None:
        pairs = list(weights_of_both(model, base))
        chosen = named_by(spectra, [name.removesuffix(".weight") for name, *_ in pairs])
        return summed_up([weights_row(name, before, after, name.removesuffix(".weight") in chosen)
                          for name, before, after in progress(pairs, desc="weights", unit="tensor")], together)
    layers = adapted_layers(model)
    chosen = named_by(spectra, layers)
    return summed_up([adapter_row(name, layer, name in chosen)
                      for name, layer in progress(layers.items(), desc="weights", unit="module")], together)


def spread_out(names: Sequence[str], count: int) -> list[str]:
    """The names that stand in `count` layers, evenly spread from the first to the last layer that has any."""
    layers = sorted({layer for name in names if (layer := place(name)["layer"]) is not None})
    steps = max(1, min(count, len(layers)) - 1)
    chosen = {layers[round(i * (len(layers) - 1) / steps)] for i in range(min(count, len(layers)))}
    return [name for name in names if place(name)["layer"] in chosen]


def adapter_row(name: str, layer: LoRALinear, spectra: bool = False) -> Row:
    """The row of an adapted layer; everything but changed_bf16 from the factors in fp64."""
    before = base_weight(layer)
    _, base, changed = distance(before, before.float() + layer.delta())         # the sum that `merge` rounds
    factors = Factors(layer.lora_A.detach(), layer.lora_B.detach(), layer.scale)
    row = {**module_shift(name, factor_norm(*factors), base), "weights": before.numel(), "changed_bf16": changed}
    spectrum = factor_spectrum(factors)
    row |= {"spectrum": spectrum.tolist(), **ranks(spectrum)}
    if spectra:
        before = before.double()
        row |= compare_spectra(before, before + factors.scale * (factors.B.double() @ factors.A.double()))
    return row


def weights_row(name: str, before: Tensor, after: Tensor, spectra: bool = False) -> Row:
    """The row of a weight in two models, of any dtypes; spectra of matrices alone, decomposed in fp32 at least."""
    norm, base, changed = distance(before, after)
    row = {**module_shift(name, norm, base), "weights": before.numel(), "changed_bf16": changed}
    if spectra and before.dim() == 2:
        change = (after.double() - before.double()).to(torch.promote_types(after.dtype, torch.float32))
        row |= ranks(torch.linalg.svdvals(change)) | compare_spectra(before, after)
    return row


def together(modules: Sequence[Row]) -> Row:
    """The norm of several modules as of one vector, the share of all their weights, and the means of the rest."""
    weights = sum(module["weights"] for module in modules)
    changed = math.fsum(module["changed_bf16"] * module["weights"] for module in modules)
    means = {key: fmean(values) for key in MEANS if (values := [module[key] for module in modules if key in module])}
    return {**norms_together(modules), "changed_bf16": changed / max(1, weights), **means}
