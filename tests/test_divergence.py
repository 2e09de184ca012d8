"""The KL divergence between two models through one head: by hand, against the full arrays, and its gradient."""
import math

import pytest
import torch

from sdft.kernels import divergence
from sdft.kernels.divergence import kl, kl_plain, token_nll


def test_a_case_done_by_hand():
    """The head [1, 0] has two tokens: z = (h, 0), so p = σ(h). h = log 3 gives p = (¾, ¼), g = 0 gives q = (½, ½)."""
    x = torch.tensor([[math.log(3)]], dtype=torch.float64, requires_grad=True)
    other, head = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    forward, reverse = kl(x, other, head), kl(x, other, head, reverse=True)
    assert forward.item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert reverse.item() == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert torch.autograd.grad(forward, x)[0].item() == pytest.approx(0.75 - 0.5)                   # p − q
    # p·(1 − p)·(log p₁/q₁ − log p₂/q₂) = 3/16 · log 3
    assert torch.autograd.grad(reverse, x)[0].item() == pytest.approx(3 / 16 * math.log(3))
    assert token_nll(x, head, torch.tensor([1])).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("reverse", [False, True])
def test_chunks_and_gradients_equal_the_full_arrays(reverse, monkeypatch):
    monkeypatch.setattr(divergence, "ROWS", 3)                          # 8 rows: two chunks and a ragged one,
    monkeypatch.setattr(divergence, "CACHED", 2)                        # each of which has a ragged part
    generator = torch.Generator().manual_seed(0)
    x, other, head = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (8, 8, 11))
    x.requires_grad_(True)
    fast, plain = kl(x, other, head, reverse), kl_plain(x, other, head, reverse)
    torch.testing.assert_close(fast, plain)
    (ours,), (theirs,) = torch.autograd.grad(2.5 * fast, x), torch.autograd.grad(2.5 * plain, x)
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda x: kl(x, other, head, reverse), x)
    expected = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=side @ head.t())
                                                   for side in ((x, other) if reverse else (other, x)))).sum()
    torch.testing.assert_close(fast, expected)
    labels = torch.arange(8)
    torch.testing.assert_close(token_nll(x, head, labels),
                               torch.nn.functional.cross_entropy(x.detach() @ head.t(), labels, reduction="none"))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_token_that_is_impossible_for_one_model_stays_finite(reverse):
    x = torch.tensor([[200.0]], requires_grad=True)                     # p of the second token underflows in fp32
    loss = kl(x, -torch.ones(1, 1), torch.tensor([[1.0], [0.0]]), reverse)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_nll_of_half_precision_is_computed_in_fp32(dtype):
    generator = torch.Generator().manual_seed(0)
    x, head = (torch.randn(n, 16, generator=generator).to(dtype) for n in (20, 50))
    labels = torch.arange(20)
    # The logits are rounded alike; assert_close also compares the dtypes.
    torch.testing.assert_close(token_nll(x, head, labels), torch.nn.functional.cross_entropy(
        (x @ head.t()).float(), labels, reduction="none"))


def test_half_precision_is_no_worse_than_autograd_on_the_full_arrays():
    generator = torch.Generator().manual_seed(0)
    x, other, head = (torch.randn(n, 64, generator=generator) / 4 for n in (300, 300, 500))
    exact = x.double().requires_grad_(True)
    kl_plain(exact, other.double(), head.double()).backward()
    errors = []
    for function in (kl, kl_plain):
        half = x.bfloat16().requires_grad_(True)
        function(half, other.bfloat16(), head.bfloat16()).backward()
        errors.append((half.grad.double() - exact.grad).norm().item())
    assert errors[0] <= 1.05 * errors[1]                                # 5 %: luck in single roundings
