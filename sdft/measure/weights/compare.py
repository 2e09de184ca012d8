"""Compare two adapters, two checkpoints, or two trainings of one base model, weight by weight.

    compare_adapters      two adapters of one base model, from their factors in fp64: no base model is needed
    compare_changes       two full fine-tunings of one base model; reads all three models one tensor at a time
    compare_checkpoints   any two checkpoint folders: the shift from the first to the second

    cosine             ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖·‖ΔW₂‖) of the flattened changes; 1: the same direction, 0: orthogonal
    principal cosines  cosines of the principal angles between two spaces. Left: the column spaces of ΔW₁ and ΔW₂
                       (what the change writes); right: the row spaces (what it reads). They are the singular values
                       of Q₁ᵀ·Q₂, with orthonormal bases Q₁ and Q₂ (Björck and Golub 1973). For full weights, Q holds
                       the k leading singular vectors.

For comparison: two random R-dimensional spaces have a mean squared cosine of R/O (left) or R/D (right). All arms of a
run start with the same A, so their row spaces overlap from the start; B starts at zero, so training alone decides
whether the column spaces overlap.

    sdft measure adapters runs/mine/sft runs/mine/sdft
    sdft measure weights A B            # checkpoint folders
    sdft measure between BASE A B
"""
from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from sdft.errors import SdftError
from sdft.measure.weights.shift import AT_ONCE, factor_norm, grouped, module_of, root_of_squares, weight_measures, whole
from sdft.measure.weights.spectrum import Factors, factor_cosine, factor_spaces, named_by, principal_cosines
from sdft.model.io.adapters import read_adapter
from sdft.model.io.checkpoints import open_checkpoint
from sdft.model.llama import Llama
from sdft.model.lora import lora_scale
from sdft.progress import progress
from sdft.results import AdapterComparison, PartComparison, PartShift, Shift

Adapter = Mapping[str, Factors]                                 # layer name → its factors
Weights = tuple[Collection[str], Callable[[str], Tensor]]       # names, and a function that reads one


def adapter_in(folder: Path) -> Adapter:
    """The adapter in a folder, without its base model (SdftError as in `load_adapter`)."""
    config, factors = read_adapter(folder)
    scale = lora_scale(config["r"], config["lora_alpha"], bool(config.get("use_rslora")))
    return {name: Factors(A, B, scale) for name, (A, B) in factors.items()}


def compare_adapters(first: Adapter, second: Adapter) -> AdapterComparison:
    """Compare two adapters over the modules that both change (SdftError where there is none, or shapes differ)."""
    common = [name for name in first if name in second]
    if not common:
        raise SdftError("the two adapters change no module in common; expected two of one base model")
    return _comparison([_compare_factors(name, first[name], second[name]) for name in common],
                       unmatched=first.keys() ^ second.keys())


def _compare_factors(name: str, first: Factors, second: Factors) -> PartComparison:
    shapes = [(len(factors.B), factors.A.shape[1]) for factors in (first, second)]
    norms = [factor_norm(*factors) for factors in (first, second)]
    if shapes[0] != shapes[1]:
        raise SdftError(f"the adapters change {name} of {shapes[0]} and of {shapes[1]}; expected two of one base model")
    if not math.isfinite(sum(norms)):
        raise SdftError(f"{name}: expected finite factors, but the adapters' changes have the norms {norms}")
    left, right = (principal_cosines(a, b).tolist() if a.shape[1] and b.shape[1] else []        # of (O, k), of (D, k)
                   for a, b in zip(factor_spaces(first), factor_spaces(second), strict=True))
    return _module(name, factor_cosine(first, second), norms, left, right)


def weights_of(model: Llama) -> Weights:
    """The weights of a model in memory, as `compare_changes` reads them."""
    weights = dict(model.named_parameters())
    return weights.keys(), lambda name: weights[name].detach()


def compare_changes(base: Weights, first: Weights, second: Weights, spectra: Sequence[str] = (),
                    k: int = 10) -> AdapterComparison:
    """Compare the changes of two trainings of `base`, over the tensors that all three hold, one tensor at a time.

    Principal cosines are computed for the matrices that `spectra` names (see `named_by`), by two decompositions each.
    Raises SdftError where no tensor is in all three, or one has another shape.
    """
    common = [name for name in base[0] if name in first[0] and name in second[0]]
    if not common:
        raise SdftError("expected checkpoints of one architecture, but no tensor is in all three")
    chosen = named_by(spectra, common)
    modules = [_compare_weights(name, base[1](name), first[1](name), second[1](name), k if name in chosen else 0)
               for name in progress(common, desc="between arms", unit="tensor")]
    return _comparison(modules, unmatched={*base[0], *first[0], *second[0]} - set(common))


def _compare_weights(name: str, before: Tensor, first: Tensor, second: Tensor, k: int) -> PartComparison:
    shapes = [tuple(weight.shape) for weight in (before, first, second)]
    if len(set(shapes)) > 1:
        raise SdftError(f"{name} is {', '.join(map(str, shapes))}; expected checkpoints of one architecture")
    inner, *squares = (math.fsum(sums) for sums in zip(*_products(before, first, second), strict=True))
    norms = [math.sqrt(square) for square in squares]
    if not math.isfinite(inner + sum(norms)):
        raise SdftError(f"{name}: expected finite weights, but its changes have the norms {norms}")
    left, right = _leading_cosines(before, first, second, k) if k and before.dim() == 2 and all(norms) else ([], [])
    return _module(name, _cosine(inner, norms), norms, left, right)


def _products(before: Tensor, first: Tensor, second: Tensor) -> Iterator[tuple[float, float, float]]:
    """⟨ΔW₁, ΔW₂⟩, ‖ΔW₁‖² and ‖ΔW₂‖² in fp64, AT_ONCE values at a time."""
    for old, one, two in zip(*(x.flatten().split(AT_ONCE) for x in (before, first, second)), strict=True):
        old = old.double()
        one, two = one.double() - old, two.double() - old
        yield (one @ two).item(), (one @ one).item(), (two @ two).item()


def _leading_cosines(before: Tensor, first: Tensor, second: Tensor, k: int) -> tuple[list[float], list[float]]:
    wide = torch.promote_types(first.dtype, torch.float32)
    (U, _, Vt), (U_2, _, Vt_2) = (torch.linalg.svd((after.double() - before.double()).to(wide), full_matrices=False)
                                  for after in (first, second))
    return principal_cosines(U[:, :k], U_2[:, :k]).tolist(), principal_cosines(Vt[:k].t(), Vt_2[:k].t()).tolist()


def _cosine(inner: float, norms: Sequence[float]) -> float:
    return max(-1.0, min(1.0, inner / math.prod(norms))) if all(norms) else 0.0         # clamped: rounding


def _module(name: str, cosine: float, norms: list[float], left: list[float], right: list[float]) -> PartComparison:
    return {**module_of(name), "cosine": cosine, "left_cosine": _mean(left), "right_cosine": _mean(right),
            "norms": norms, "left": left, "right": right}


def _comparison(modules: list[PartComparison], unmatched: Collection[str]) -> AdapterComparison:
    layers, kinds = grouped(modules, _together)
    return {**_together(modules), "modules": modules, "layers": layers, "kinds": kinds, "unmatched": sorted(unmatched)}


def _together(modules: Sequence[PartComparison]) -> PartComparison:
    """Several modules: the cosine of their changes as two vectors, and the means of their principal cosines."""
    norms = [root_of_squares(module["norms"][side] for module in modules) for side in (0, 1)]
    inner = math.fsum(module["cosine"] * math.prod(module["norms"]) for module in modules)
    return {"cosine": _cosine(inner, norms), "norms": norms,
            "left_cosine": _mean([module["left_cosine"] for module in modules]),
            "right_cosine": _mean([module["right_cosine"] for module in modules])}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def compare_checkpoints(first: Path, second: Path, spectra: Sequence[str] = ()) -> Shift:
    """The shift from the weights in folder `first` to those in `second`, as `module_measures` returns it.

    The folders may be sharded in any way, each in its own dtype. One tensor of each is in memory at a time. `spectra`
    names matrices to decompose, three times each. Raises SdftError where a folder has no weights, no tensor is in both,
    one has another shape, is not of floating point or not finite, and where `spectra` names nothing.
    """
    with open_checkpoint(first) as (names, read), open_checkpoint(second) as (names_2, read_2):
        common = [name for name in names if name in names_2]
        if not common:
            raise SdftError(f"{first} and {second} have no tensor in common; "
                            "expected two checkpoints of one architecture")
        chosen = named_by(spectra, common)
        modules = [_checked_measures(name, (first, read(name)), (second, read_2(name)), name in chosen)
                   for name in progress(common, desc="weights", unit="tensor")]
        return {**whole(modules), "unmatched": sorted(set(names) ^ set(names_2))}


def _checked_measures(name: str, first: tuple[Path, Tensor], second: tuple[Path, Tensor], spectra: bool) -> PartShift:
    (_, before), (_, after) = first, second
    if before.shape != after.shape:
        raise SdftError(f"{name} is {tuple(before.shape)} in {first[0]} and {tuple(after.shape)} in {second[0]}; "
                        "expected two checkpoints of one architecture")
    for folder, weight in (first, second):
        if not weight.is_floating_point():
            raise SdftError(f"{folder}: {name} holds {str(weight.dtype).removeprefix('torch.')}; expected "
                            "floating-point weights, so convert a quantised checkpoint first")
    return weight_measures(name, before, after, spectra)
