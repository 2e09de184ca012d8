"""Sampling against transformers' logits processors, and its draws against the probabilities they should follow."""
from __future__ import annotations

import pytest
import torch

from sdft.errors import SdftError
from sdft.generation.sampling import Sampling, candidates, choose, penalise, record_uniforms


def random_logits(rows: int = 4, vocabulary: int = 50) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The normalised distribution (n, V) that `choose` draws from."""
    p, ids = candidates(logits, sampling)
    p = p / p.sum(-1, keepdim=True)
    return p if ids is None else torch.zeros_like(logits).scatter(1, ids, p)


@pytest.mark.parametrize("temperature, top_k, top_p", [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.8),
                                                       (0.95, 20, 0.7), (1.0, 1, 1.0), (1.0, 0, 1e-6), (1.0, 500, 0.9)])
def test_distribution_is_transformers(temperature: float, top_k: int, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = random_logits()
    theirs = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    ours = probabilities(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(ours, theirs.softmax(-1), rtol=1e-5, atol=1e-7)      # fp32 rounding of one softmax


def test_penalty_is_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = random_logits()
    context = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, context, True)
    assert torch.equal(penalise(logits, seen, 1.3), RepetitionPenaltyLogitsProcessor(1.3)(context, logits.clone()))


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=6, top_p=0.9)])
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    logits, count = random_logits(1, 12), 40_000
    drawn = choose(logits.expand(count, -1), sampling, record_uniforms(0, "a", count))
    expected = probabilities(logits, sampling)[0].double()
    observed = torch.bincount(drawn, minlength=12).double() / count
    possible = expected > 0
    assert observed[~possible].sum() == 0
    chi_square = count * ((observed - expected).square() / expected)[possible].sum()
    assert chi_square < 35                     # 11 degrees of freedom or fewer: 31.3 is passed once in a thousand seeds


def test_the_ends_of_the_unit_interval_draw_possible_tokens() -> None:
    logits = random_logits(2, 3000)
    sampling = Sampling(temperature=1.0, top_p=0.5)
    p = probabilities(logits, sampling)
    for uniform in (0.0, 1 - 2**-24):            # the least and the greatest number that torch.rand gives in fp32
        drawn = choose(logits, sampling, torch.full((2,), uniform))
        assert (p.gather(1, drawn.unsqueeze(1)) > 0).all()


@pytest.mark.parametrize("vocabulary", [7, 8, 96, 1536, 49152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_first_of_the_most_probable(dtype: torch.dtype, vocabulary: int) -> None:
    logits = torch.randn(64, vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0] = 0                                                                   # all tie; in bf16 others do too
    logits[1, [3, vocabulary - 1]] = 9
    first = torch.tensor([row.tolist().index(max(row.tolist())) for row in logits])
    assert torch.equal(choose(logits, Sampling(), torch.rand(64)), first)


def test_numbers_belong_to_the_seed_and_the_record() -> None:
    first = record_uniforms(3, "a", 8)
    assert torch.equal(first, record_uniforms(3, "a", 8))
    assert torch.equal(first[:5], record_uniforms(3, "a", 5))     # a smaller limit draws the same numbers
    assert not torch.equal(first, record_uniforms(3, "b", 8))
    assert not torch.equal(first, record_uniforms(4, "a", 8))


@pytest.mark.parametrize("setting", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -2},
                                     {"max_new_tokens": 0}, {"repetition_penalty": 0}])
def test_impossible_settings_are_told(setting: dict) -> None:
    name = next(iter(setting))
    with pytest.raises(SdftError, match=name):
        Sampling(**setting)
