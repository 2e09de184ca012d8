"""How a change of weights lies in their spectrum: few directions or many, the old ones or new ones.

    ΔW = s·B·A = Q_B·(s·R_B·R_Aᵀ)·Q_Aᵀ,  B = Q_B·R_B, Aᵀ = Q_A·R_A:   the spectrum of ΔW is that of an (R, R) matrix

Against the seed's own directions (k largest singular values, U left and V right singular vectors):

    principal cosines     singular values of U₀,kᵀ·U₊,k: 1 where the subspaces share a direction    (arXiv 2511.08567)
    spectral shift        ‖σ(W₊) − σ(W₀)‖₂ / ‖σ(W₀)‖₂                                               (arXiv 2511.08567)
    intruder dimensions   how many of U₊,k are like no singular vector of W₀ at all                 (arXiv 2410.21228)

    sdft measure shift --adapter runs/mine/sdft --svd_layers q_proj,v_proj
"""
from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sdft.model.lora import inner_product, matching


class Factors(NamedTuple):
    """An adapter of one layer, ΔW = scale·B·A."""

    A: Tensor          # (R, D)
    B: Tensor          # (O, R)
    scale: float


def factor_spectrum(factors: Factors) -> Tensor:
    """The singular values of ΔW, largest first: fp64 (R,); what D and O leave no room for is not there."""
    A, B = factors.A.detach().double(), factors.B.detach().double()
    R_A, R_B = torch.linalg.qr(A.t()).R, torch.linalg.qr(B).R       # (min(D, R), R), (min(O, R), R)
    return torch.linalg.svdvals(factors.scale * (R_B @ R_A.t()))


def factor_spaces(factors: Factors) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of ΔW's column space (O, k) and row space (D, k), the directions that matter most first; fp64.

    k is the rank that ΔW really has, 0 for no change: its singular values above rounding, with max(O, D)·ε·σ₁ as bound.
    """
    A, B = factors.A.detach().double(), factors.B.detach().double()
    (Q_A, R_A), (Q_B, R_B) = torch.linalg.qr(A.t()), torch.linalg.qr(B)         # (D, ·)(·, R) and (O, ·)(·, R)
    U, sigma, Vt = torch.linalg.svd(factors.scale * (R_B @ R_A.t()), full_matrices=False)
    k = int((sigma > max(len(Q_A), len(Q_B)) * torch.finfo(sigma.dtype).eps * sigma[0]).sum())
    return Q_B @ U[:, :k], Q_A @ Vt[:k].t()


def factor_cosine(first: Factors, second: Factors) -> float:
    """The cosine between two adapters of a layer as vectors, ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖_F·‖ΔW₂‖_F): 0 where either is 0.

    ⟨ΔW₁, ΔW₂⟩ = s₁·s₂·Σ[(B₁ᵀB₂) ⊙ (A₁A₂ᵀ)], without forming either.
    """
    square = _inner(first, first) * _inner(second, second)
    return max(-1.0, min(1.0, _inner(first, second) / square**0.5)) if square > 0 else 0.0       # rounding aside


def _inner(first: Factors, second: Factors) -> float:
    factors = (x.detach() for x in (first.A, first.B, second.A, second.B))
    return first.scale * second.scale * inner_product(*factors).item()


def ranks(spectrum: Tensor) -> dict[str, float]:
    """stable_rank and effective_rank of singular values: two ways to count the directions of a change."""
    return {"stable_rank": stable_rank(spectrum), "effective_rank": effective_rank(spectrum)}


def stable_rank(spectrum: Tensor) -> float:
    """‖ΔW‖_F² / ‖ΔW‖₂² of singular values, largest first: between 1 and their number; 0 for no change at all."""
    return (spectrum.square().sum() / spectrum[0].square()).item() if spectrum[0] > 0 else 0.0


def effective_rank(spectrum: Tensor) -> float:
    """exp(entropy of σ/Σσ) of singular values (Roy and Vetterli 2007): as many equal ones would be as spread out."""
    if not spectrum.sum() > 0:
        return 0.0
    share = spectrum / spectrum.sum()
    return torch.special.entr(share).sum().exp().item()


def principal_cosines(first: Tensor, second: Tensor) -> Tensor:
    """The cosines of the angles between the spaces spanned by the columns of (O, k₁) and (O, k₂), largest first."""
    first, second = (torch.linalg.qr(x.detach().double()).Q for x in (first, second))
    return torch.linalg.svdvals(first.t() @ second).clamp_max(1)


def compare_spectra(before: Tensor, after: Tensor, k: int = 10, threshold: float = 0.5) -> dict[str, float]:
    """W₀ against W₊, both (O, D), by a full singular value decomposition of each.

    spectral_shift: see above; left_cosine, right_cosine: the mean principal cosine of the k leading left and right
    singular vectors; intruders: of the k leading left ones of W₊, those with max_i |cos(u, u⁰_i)| < threshold over all
    of W₀'s. Decomposed in fp32 (fp64 where the weights are fp64).
    """
    wide = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    U_0, sigma_0, Vt_0 = torch.linalg.svd(before.detach().to(wide), full_matrices=False)
    U, sigma, Vt = torch.linalg.svd(after.detach().to(wide), full_matrices=False)
    k = min(k, len(sigma))
    likeness = (U_0.t() @ U[:, :k]).abs().amax(0)                   # (m, O)·(O, k) → (k,)
    base = sigma_0.norm()
    return {"spectral_shift": ((sigma - sigma_0).norm() / base).item() if base > 0 else 0.0,
            "left_cosine": principal_cosines(U_0[:, :k], U[:, :k]).mean().item(),
            "right_cosine": principal_cosines(Vt_0[:k].t(), Vt[:k].t()).mean().item(),
            "intruders": int((likeness < threshold).sum())}


def named_by(patterns: Sequence[str], names: Collection[str]) -> set[str]:
    """The modules that `patterns` name: a kind ("q_proj"), a whole name, or a pattern ("model.layers.0.*").

    Raises SdftError for a pattern that names none.
    """
    return matching(patterns, names, "spectra: {!r} names nothing here{}; expected {}, a whole name, or a pattern of it")
