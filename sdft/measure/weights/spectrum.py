"""The spectrum of a change of weights: how many directions it has, and whether they are the base model's own.

    ΔW = s·B·A = Q_B·(s·R_B·R_Aᵀ)·Q_Aᵀ,  B = Q_B·R_B, Aᵀ = Q_A·R_A:   the spectrum of ΔW is that of an (R, R) matrix

Compared with the base model's own directions (k largest singular values, U left and V right singular vectors):

    principal cosines     singular values of U₀,kᵀ·U₊,k: 1 where the subspaces share a direction    (arXiv 2511.08567)
    spectral shift        ‖σ(W₊) − σ(W₀)‖₂ / ‖σ(W₀)‖₂                                               (arXiv 2511.08567)
    intruder dimensions   how many of U₊,k are similar to no singular vector of W₀                 (arXiv 2410.21228)

    sdft measure shift --adapter runs/mine/sdft --spectra q_proj,v_proj
"""
from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdft.model.lora import inner_product, matching
from sdft.results import Spectra


class Factors(NamedTuple):
    """An adapter of one layer, ΔW = scale·B·A."""

    A: Tensor          # (R, D)
    B: Tensor          # (O, R)
    scale: float


def factor_spectrum(factors: Factors) -> Tensor:
    """The singular values of ΔW, largest first: fp64 (min(R, D, O),)."""
    A, B = factors.A.detach().double(), factors.B.detach().double()
    R_A, R_B = torch.linalg.qr(A.t()).R, torch.linalg.qr(B).R       # (min(D, R), R), (min(O, R), R)
    return torch.linalg.svdvals(factors.scale * (R_B @ R_A.t()))


def factor_spaces(factors: Factors) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of ΔW's column space (O, k) and row space (D, k), largest singular values first; fp64.

    k is the numerical rank of ΔW, 0 for no change: the number of singular values above max(O, D)·ε·σ₁.
    """
    A, B = factors.A.detach().double(), factors.B.detach().double()
    (Q_A, R_A), (Q_B, R_B) = torch.linalg.qr(A.t()), torch.linalg.qr(B)         # (D, ·)(·, R) and (O, ·)(·, R)
    U, sigma, Vt = torch.linalg.svd(factors.scale * (R_B @ R_A.t()), full_matrices=False)
    k = int((sigma > max(len(Q_A), len(Q_B)) * torch.finfo(sigma.dtype).eps * sigma[0]).sum())
    return Q_B @ U[:, :k], Q_A @ Vt[:k].t()


def factor_cosine(first: Factors, second: Factors) -> float:
    """The cosine between two adapters of a layer as vectors, ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖_F·‖ΔW₂‖_F): 0 where either is 0."""
    square = _inner(first, first) * _inner(second, second)
    return max(-1.0, min(1.0, _inner(first, second) / square**0.5)) if square > 0 else 0.0       # clamped: rounding


def _inner(first: Factors, second: Factors) -> float:
    factors = (x.detach() for x in (first.A, first.B, second.A, second.B))
    return first.scale * second.scale * inner_product(*factors).item()              # s₁·s₂·Σ[(B₁ᵀB₂) ⊙ (A₁A₂ᵀ)]


def ranks(spectrum: Tensor) -> Spectra:
    """Two ways to count the directions of a change, from its singular values."""
    return {"stable_rank": stable_rank(spectrum), "effective_rank": effective_rank(spectrum)}


def stable_rank(spectrum: Tensor) -> float:
    """‖ΔW‖_F² / ‖ΔW‖₂² of singular values, largest first: between 1 and their number; 0 for no change at all."""
    return (spectrum.square().sum() / spectrum[0].square()).item() if spectrum[0] > 0 else 0.0


def effective_rank(spectrum: Tensor) -> float:
    """exp(entropy of σ/Σσ) of singular values (Roy and Vetterli 2007): as many equal values have this entropy."""
    total = spectrum.sum()
    return torch.special.entr(spectrum / total).sum().exp().item() if total > 0 else 0.0


def principal_cosines(first: Tensor, second: Tensor) -> Tensor:
    """The cosines of the angles between the spaces spanned by the columns of (O, k₁) and (O, k₂), largest first."""
    first, second = (torch.linalg.qr(x.detach().double()).Q for x in (first, second))
    return torch.linalg.svdvals(first.t() @ second).clamp_max(1)


def compare_spectra(before: Tensor, after: Tensor, k: int = 10, threshold: float = 0.5) -> Spectra:
    """Compare W₀ with W₊, both (O, D), by a full singular value decomposition of each, in fp32 (or fp64 of fp64).

    left_cosine and right_cosine are the mean principal cosines of the k leading left and right singular vectors.
    intruders counts the k leading left ones of W₊ with max_i |cos(u, u⁰_i)| < threshold over all of W₀'s.
    """
    wide = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    U_0, sigma_0, Vt_0 = torch.linalg.svd(before.detach().to(wide), full_matrices=False)
    U, sigma, Vt = torch.linalg.svd(after.detach().to(wide), full_matrices=False)
    k = min(k, len(sigma))
    similarity, base = (U_0.t() @ U[:, :k]).abs().amax(0), sigma_0.norm()           # (m, O)·(O, k) → (k,)
    return {"spectral_shift": ((sigma - sigma_0).norm() / base).item() if base > 0 else 0.0,
            "left_cosine": principal_cosines(U_0[:, :k], U[:, :k]).mean().item(),
            "right_cosine": principal_cosines(Vt_0[:k].t(), Vt[:k].t()).mean().item(),
            "intruders": int((similarity < threshold).sum())}


def named_by(patterns: Sequence[str], names: Collection[str]) -> set[str]:
    """The modules among `names`, with or without ".weight", that `patterns` name; a pattern of none is an SdftError.

    A pattern is a kind ("q_proj"), a module's whole name, or a glob of it ("model.layers.0.*").
    """
    modules = {name.removesuffix(".weight"): name for name in names}
    chosen = matching(patterns, modules,
                      "spectra: {!r} names nothing here{}; expected {}, a whole name, or a pattern of it")
    return {modules[module] for module in chosen}
