"""Spectra from factors and of whole matrices against direct decompositions and cases known by construction."""
from __future__ import annotations

import pytest
import torch

from sdft.errors import SdftError
from sdft.measure.weights.spectrum import (
    Factors,
    compare_spectra,
    effective_rank,
    factor_cosine,
    factor_spaces,
    factor_spectrum,
    named_by,
    principal_cosines,
    stable_rank,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(seed: int, rank: int = 4) -> Factors:
    return Factors(draw(rank, 12, seed=seed), draw(9, rank, seed=seed + 100), 2.0)


def delta(each: Factors) -> torch.Tensor:
    return each.scale * each.B @ each.A


def turned(size: int, cosine: float, *planes: tuple[int, int]) -> torch.Tensor:
    """The rotation (size, size) that turns axis i of every plane (i, j) by the angle of this cosine."""
    rotation, sine = torch.eye(size, dtype=torch.float64), (1 - cosine**2) ** 0.5
    for i, j in planes:
        rotation[[i, j, i, j], [i, j, j, i]] = torch.tensor([cosine, cosine, -sine, sine], dtype=torch.float64)
    return rotation


# 16 singular values, of which 10 lead; the axes are the singular vectors, and those of U from the 17th on are no one's.
SIGMA = torch.arange(16, 0, -1, dtype=torch.float64)
PLAIN = torch.zeros(32, 16, dtype=torch.float64).diagonal_scatter(SIGMA)


def test_the_spectrum_of_the_factors_is_that_of_their_product():
    for rank in (1, 4, 11):                                          # 11 > 9: more factors than ΔW has dimensions
        spectrum = factor_spectrum(factors(1, rank))
        direct = torch.linalg.svdvals(delta(factors(1, rank)))[:rank]
        torch.testing.assert_close(spectrum, direct)


def test_the_cosine_of_the_factors_is_that_of_their_products():
    first, second = factors(1), factors(2, rank=3)
    direct = torch.nn.functional.cosine_similarity(delta(first).flatten(), delta(second).flatten(), dim=0)
    assert factor_cosine(first, second) == pytest.approx(direct.item())
    assert factor_cosine(first, first) == pytest.approx(1)
    assert factor_cosine(first, first._replace(scale=-1.0)) == pytest.approx(-1)
    assert factor_cosine(first, first._replace(B=torch.zeros(9, 4))) == 0


def test_ranks_of_known_spectra():
    assert stable_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(3)
    assert stable_rank(torch.tensor([2.0, 1.0, 0.0])) == pytest.approx(1.25)
    assert effective_rank(torch.tensor([3.0, 1.0, 0.0])) == pytest.approx(4 / 27**0.25)      # ¾ and ¼: 4 · 3^(−¾)
    assert stable_rank(torch.zeros(3)) == effective_rank(torch.zeros(3)) == 0


def test_principal_cosines_of_planes_at_a_known_angle():
    angle = torch.tensor(0.3)
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    second = torch.tensor([[1.0, 0.0], [0.0, angle.cos()], [0.0, angle.sin()]]) * 5
    assert principal_cosines(first, second).tolist() == pytest.approx([1, angle.cos().item()], abs=1e-6)


def test_nothing_changed_means_no_shift_and_no_intruder():
    found = compare_spectra(weight := draw(20, 16), weight)
    assert found["spectral_shift"] == 0 and found["intruders"] == 0
    assert found["left_cosine"] == pytest.approx(1) and found["right_cosine"] == pytest.approx(1)


def test_a_strong_new_direction_is_an_intruder_and_scaling_is_none():
    U, V = torch.linalg.qr(draw(64, 64)).Q, torch.linalg.qr(draw(64, 64, seed=1)).Q
    before = U @ torch.diag(torch.linspace(2, 1, 64, dtype=torch.float64)) @ V.t()
    assert compare_spectra(before, before * 1.5) == pytest.approx(
        {"spectral_shift": 0.5, "left_cosine": 1, "right_cosine": 1, "intruders": 0})
    # Equal parts of all old directions: a cosine of 1/8 with each.
    new = (U.sum(1, keepdim=True) / 8) @ (V.sum(1, keepdim=True) / 8).t()
    found = compare_spectra(before, before + 20 * new)
    assert found["intruders"] == 1
    direct = torch.linalg.svdvals(before + 20 * new) - torch.linalg.svdvals(before)
    assert found["spectral_shift"] == pytest.approx((direct.norm() / torch.linalg.svdvals(before).norm()).item())
    assert found["left_cosine"] < 0.95


def test_each_side_has_the_mean_cosine_of_its_own_ten_leading_directions():
    """The first leading direction turned by acos(0.6) towards the 16th, which does not lead: 9 cosines of 1 and 0.6."""
    kept = {"spectral_shift": 0, "intruders": 0}
    right = compare_spectra(PLAIN, PLAIN @ turned(16, 0.6, (0, 15)).t())
    assert right == pytest.approx({**kept, "left_cosine": 1, "right_cosine": 0.96})
    left = compare_spectra(PLAIN, turned(32, 0.6, (0, 15)) @ PLAIN)
    assert left == pytest.approx({**kept, "left_cosine": 0.96, "right_cosine": 1})


def test_leading_directions_that_swap_or_mix_span_the_same_space():
    mixed = turned(32, 0.6, (0, 1), (2, 9), (4, 5)) @ PLAIN @ turned(16, 0.6, (1, 2), (3, 8)).t()
    traded = torch.zeros_like(PLAIN).diagonal_scatter(torch.cat([SIGMA[:10].flip(0), SIGMA[10:]]))
    for after in (mixed, traded):
        found = compare_spectra(PLAIN, after)
        assert found == pytest.approx({"spectral_shift": 0, "left_cosine": 1, "right_cosine": 1, "intruders": 0})


def test_an_old_direction_that_comes_to_lead_is_no_intruder():
    """The former 11th is now the first: none of the ten leading directions, yet one of W₀'s own."""
    found = compare_spectra(PLAIN, PLAIN.diagonal_scatter(SIGMA.index_fill(0, torch.tensor(10), 20.0)))
    assert found["intruders"] == 0
    assert found["left_cosine"] == found["right_cosine"] == pytest.approx(0.9)


@pytest.mark.parametrize(("cosine", "intruders"), [(0.4, 1), (0.49, 1), (0.51, 0), (0.6, 0)])
def test_a_direction_is_an_intruder_below_a_cosine_of_one_half(cosine, intruders):
    found = compare_spectra(PLAIN, turned(32, cosine, (4, 20)) @ PLAIN)
    assert found == pytest.approx({"spectral_shift": 0, "left_cosine": (9 + cosine) / 10, "right_cosine": 1,
                                   "intruders": intruders})


@pytest.mark.parametrize(("changed", "intruders"), [(4, 4), (10, 10), (12, 10)])
def test_intruders_are_counted_among_the_ten_leading_directions(changed, intruders):
    planes = [(i, 16 + i) for i in range(changed)]
    found = compare_spectra(PLAIN, turned(32, 0.4, *planes) @ PLAIN)
    assert found["intruders"] == intruders
    assert found["left_cosine"] == pytest.approx((0.4 * intruders + 10 - intruders) / 10)
    assert compare_spectra(PLAIN, turned(32, 0.4, *planes) @ PLAIN, k=3)["intruders"] == 3


def test_the_spaces_of_the_factors_are_those_of_their_product():
    full = factors(1)
    twice = torch.cat([full.A, full.A[:1]])                         # 5 rows of rank 4: so is ΔW, whatever B is
    for each in (full, full._replace(A=twice, B=draw(9, 5))):
        U, _, Vt = torch.linalg.svd(delta(each))
        for space, direct in zip(factor_spaces(each), (U[:, :4], Vt[:4].t()), strict=True):
            torch.testing.assert_close(space @ space.t(), direct @ direct.t())      # the projections: signs are free
    assert [space.shape[1] for space in factor_spaces(full._replace(B=torch.zeros(9, 4)))] == [0, 0]


def test_a_matrix_of_zeros_has_no_spectral_shift():
    assert compare_spectra(torch.zeros(4, 3), torch.zeros(4, 3))["spectral_shift"] == 0


def test_patterns_name_modules():
    names = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head"]
    assert named_by((), names) == set()
    assert named_by(("up_proj",), names) == {names[1], names[2]}
    assert named_by(("model.layers.0.*", "lm_head"), names) == {names[0], names[1], names[3]}
    with pytest.raises(SdftError, match=r"'upproj' names nothing here.*mean up_proj.*; expected q_proj, up_proj"):
        named_by(("upproj",), names)
