"""Two tunings of one seed, every weight trained: did they move the same weights in the same directions?

    cosine              ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖·‖ΔW₂‖), ΔW = W − W₀ in fp64, some values at a time
    principal cosines   of the spaces of the k leading left and right singular vectors of ΔW₁ and ΔW₂, where asked

What adapter_pairs.py finds from the factors of two adapters. The three sets of weights are read tensor by tensor.

    with open_checkpoint(seed) as before, open_checkpoint(a) as first, open_checkpoint(b) as second:
        print(compare_changes(before, first, second)["cosine"])
"""
from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.measure.weights.adapter_pairs import mean_or_none, pair_together
from sdft.measure.weights.shift import AT_ONCE, Row, grouped, place
from sdft.measure.weights.spectrum import named_by, principal_cosines
from sdft.model.llama import Llama
from sdft.progress import progress

Weights = tuple[Collection[str], Callable[[str], Tensor]]       # names, and what reads one: see `open_checkpoint`


def weights_of(model: Llama) -> Weights:
    """The weights of a model in memory, as `compare_changes` reads them."""
    weights = dict(model.named_parameters())
    return weights.keys(), lambda name: weights[name].detach()


def compare_changes(base: Weights, first: Weights, second: Weights, spectra: Sequence[str] = (), k: int = 10) -> Row:
    """How the changes of two tunings of `seed` lie to each other, over the tensors that all three hold.

    The content is that of `compare_adapters`; left and right come with the matrices that `spectra` names alone, from two
    singular value decompositions each, and the k leading directions of either. Raises SdftError where no tensor is in all
    three, or one has another shape.
    """
    common = [name for name in base[0] if name in first[0] and name in second[0]]
    if not common:
        raise SdftError("expected checkpoints of one architecture, but no tensor is in all three")
    chosen = named_by(spectra, [name.removesuffix(".weight") for name in common])
    modules = [_row(name, *(read(name) for _, read in (base, first, second)),
                    k if name.removesuffix(".weight") in chosen else 0)
               for name in progress(common, desc="between arms", unit="tensor")]
    return {**pair_together(modules), "modules": modules, "layers": grouped(modules, "layer", pair_together),
            "kinds": grouped(modules, "kind", pair_together),
            "unmatched": sorted({*base[0], *first[0], *second[0]} - set(common))}


def _row(name: str, before: Tensor, first: Tensor, second: Tensor, k: int) -> Row:
    shapes = [tuple(weight.shape) for weight in (before, first, second)]
    if len(set(shapes)) > 1:
        raise SdftError(f"{name} is {', '.join(map(str, shapes))}; expected checkpoints of one architecture")
    inner, *squares = (math.fsum(sums) for sums in zip(*_products(before, first, second), strict=True))
    norms = [math.sqrt(square) for square in squares]
    if not math.isfinite(inner + sum(norms)):
        raise SdftError(f"{name}: expected finite weights, but its changes have the norms {norms}")
    left, right = _spaces(before, first, second, k) if k and before.dim() == 2 and all(norms) else ([], [])
    cosine = max(-1.0, min(1.0, inner / math.prod(norms))) if all(norms) else 0.0
    return {**place(name), "cosine": cosine, "left_cosine": mean_or_none(left), "right_cosine": mean_or_none(right),
            "norms": norms, "left": left, "right": right}


def _products(before: Tensor, first: Tensor, second: Tensor):
    """⟨ΔW₁, ΔW₂⟩, ‖ΔW₁‖² and ‖ΔW₂‖² of some values at a time."""
    for old, one, two in zip(*(x.flatten().split(AT_ONCE) for x in (before, first, second)), strict=True):
        old = old.double()
        one, two = one.double() - old, two.double() - old
        yield (one @ two).item(), (one @ one).item(), (two @ two).item()


def _spaces(before: Tensor, first: Tensor, second: Tensor, k: int) -> tuple[list[float], list[float]]:
    wide = torch.promote_types(first.dtype, torch.float32)
    (U, _, Vt), (U_2, _, Vt_2) = (torch.linalg.svd((after.double() - before.double()).to(wide), full_matrices=False)
                                  for after in (first, second))
    return principal_cosines(U[:, :k], U_2[:, :k]).tolist(), principal_cosines(Vt[:k].t(), Vt_2[:k].t()).tolist()
