"""Two adapters of one base beside each other: did they move the same weights in the same directions?

    cosine            ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖·‖ΔW₂‖), as two vectors; 1: the same change but for its size, 0: unrelated
    principal cosines of the angles between the column spaces (left: what the change writes), and between the row
                      spaces (right: what it reads) of ΔW₁ and ΔW₂; singular values of Q₁ᵀ·Q₂, Q orthonormal bases

(Björck and Golub 1973.) All from the factors in fp64, so no base model is needed. For scale: of random spaces of R
directions in O the mean squared cosine is R/O. Arms that began with the same A, as those of one run do, share much of
their row spaces from the start; the column spaces began at nothing.

    sdft measure adapters runs/mine/sft runs/mine/sdft
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from torch import Tensor

from sdft.errors import SdftError
from sdft.measure.weights.shift import Row, factor_norm, grouped, place, root_of_squares
from sdft.measure.weights.spectrum import Factors, factor_cosine, factor_spaces, principal_cosines
from sdft.model.io.adapters import read_adapter
from sdft.model.lora import lora_scale

Adapter = Mapping[str, Factors]          # layer name → its factors


def adapter_in(folder: Path) -> Adapter:
    """The adapter in a folder, without its base model (SdftError as `load_adapter` has it)."""
    config, factors = read_adapter(folder)
    scale = lora_scale(config["r"], config["lora_alpha"], bool(config.get("use_rslora")))
    return {name: Factors(A, B, scale) for name, (A, B) in factors.items()}


def compare_adapters(first: Adapter, second: Adapter) -> Row:
    """How two adapters of one base lie to each other, over the modules that both change.

    modules: name, layer, kind, cosine, left and right (the principal cosines, largest first; none where an adapter
    changes nothing), left_cosine and right_cosine (their means, None where there are none), and norms: ‖ΔW‖_F of each.
    The whole, layers and kinds: the cosine of their modules' changes as of one vector, and the means of the rest.
    unmatched: modules that one adapter only changes, which are left out.

    Raises SdftError where no module is in both, or one has another shape.
    """
    common = [name for name in first if name in second]
    if not common:
        raise SdftError("the two adapters change no module in common; expected two of one base model")
    modules = [_row(name, first[name], second[name]) for name in common]
    return {**pair_together(modules), "modules": modules, "layers": grouped(modules, "layer", pair_together),
            "kinds": grouped(modules, "kind", pair_together), "unmatched": sorted(first.keys() ^ second.keys())}


def _row(name: str, first: Factors, second: Factors) -> Row:
    shapes = [(len(factors.B), factors.A.shape[1]) for factors in (first, second)]
    norms = [factor_norm(*factors) for factors in (first, second)]
    if shapes[0] != shapes[1]:
        raise SdftError(f"the adapters change {name} of {shapes[0]} and of {shapes[1]}; expected two of one base model")
    if not math.isfinite(sum(norms)):
        raise SdftError(f"{name}: expected finite factors, but the adapters' changes have the norms {norms}")
    (U, V), (U_2, V_2) = factor_spaces(first), factor_spaces(second)                # (O, k), (D, k)
    left, right = (_cosines(*spaces) for spaces in ((U, U_2), (V, V_2)))
    return {**place(name), "cosine": factor_cosine(first, second), "left_cosine": mean_or_none(left),
            "right_cosine": mean_or_none(right), "norms": norms, "left": left, "right": right}


def _cosines(first: Tensor, second: Tensor) -> list[float]:
    return principal_cosines(first, second).tolist() if first.shape[1] and second.shape[1] else []


def pair_together(modules: Sequence[Row]) -> Row:
    """The cosine of several modules' changes as of one vector, and the means of their principal cosines."""
    norms = [root_of_squares(module["norms"][arm] for module in modules) for arm in (0, 1)]
    inner = math.fsum(module["cosine"] * math.prod(module["norms"]) for module in modules)
    means = {key: mean_or_none([module[key] for module in modules if module[key] is not None])
             for key in ("left_cosine", "right_cosine")}
    return {"cosine": max(-1.0, min(1.0, inner / math.prod(norms))) if all(norms) else 0.0, **means, "norms": norms}


def mean_or_none(values: Sequence[float]) -> float | None:
    """Their mean; None of none."""
    return fmean(values) if values else None
