"""Each fast form against its plain twin: gradcheck in fp64, tight in fp32, and no worse than eager in bf16."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdft.kernels import attention
from sdft.kernels.attention import DocumentAttention, causal_attention, causal_attention_plain
from sdft.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_plain
from sdft.kernels.lora_linear import lora_linear, lora_linear_plain
from sdft.kernels.rms_norm import rms_norm, rms_norm_plain
from sdft.kernels.rope import rope, rope_plain
from sdft.kernels.swiglu import swiglu, swiglu_plain

LENGTHS = [5, 1, 9, 4]          # Σ 19 packed tokens
PARENTS = [-1, 0, 1, 0]         # the documents 0, 0-1-2 and 0-3; segment 3 does not touch its parent
N = sum(LENGTHS)
LABELS = torch.tensor([3, -100, 0, 10, 3, -100, 7] + list(range(12)))


def angles(dtype):
    half = torch.outer(torch.arange(N), torch.tensor([1.0, 0.1, 0.01]))
    return torch.cat((half.cos(), half.cos()), 1).to(dtype), torch.cat((half.sin(), half.sin()), 1).to(dtype)


# name: (fast, plain, shapes of the differentiable inputs, function from the dtype to the other arguments)
CASES = {
    "rms_norm": (rms_norm, rms_norm_plain, [(N, 8), (8,)], lambda dtype: (1e-5,)),
    "rms_norm of heads": (rms_norm, rms_norm_plain, [(N, 2, 8), (8,)], lambda dtype: (1e-5,)),
    "rope": (rope, rope_plain, [(N, 2, 6)], angles),
    "swiglu": (swiglu, swiglu_plain, [(N, 8), (N, 8)], lambda dtype: ()),
    "lora_linear": (lora_linear, lora_linear_plain, [(N, 8), (6, 8), (6,), (2, 8), (6, 2)], lambda dtype: (1.5,)),
    "linear_cross_entropy": (linear_cross_entropy, linear_cross_entropy_plain, [(N, 8), (12, 8)],
                             lambda dtype: (LABELS, torch.linspace(0.5, 2, N))),
    "attention": (causal_attention, causal_attention_plain, [(N, 4, 6), (N, 2, 6), (N, 2, 6)],
                  lambda dtype: (LENGTHS,)),
    "attention over a tree": (causal_attention, causal_attention_plain, [(N, 4, 6), (N, 2, 6), (N, 2, 6)],
                              lambda dtype: (LENGTHS, PARENTS)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Make blocks so small that the documents and rows of the tests fill several, and the last one in part."""
    monkeypatch.setattr(attention, "BLOCK", 4)
    monkeypatch.setattr(attention, "STEP", 2)
    monkeypatch.setattr(attention, "CELLS", 150)        # some parts hold two blocks, others one
    for name, value in (("ROWS", 8), ("CACHED", 3), ("STEP", 4)):
        monkeypatch.setattr(f"sdft.kernels.linear_cross_entropy.{name}", value)


def inputs(shapes, dtype, seed=0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def run(function, tensors: list[Tensor], rest: tuple) -> list[Tensor]:
    """Return the output and the gradients of a weighted sum of it."""
    output = function(*tensors, *rest)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output, *torch.autograd.grad((output * weights).sum(), tensors)]


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_derivative_of_forward(name):
    fast, _, shapes, rest = CASES[name]
    assert torch.autograd.gradcheck(lambda *x: fast(*x, *rest(torch.float64)), inputs(shapes, torch.float64))


@pytest.mark.parametrize("name", CASES)
def test_fp32_equals_the_plain_twin(name):
    fast, plain, shapes, rest = CASES[name]
    ours, theirs = (run(f, inputs(shapes, torch.float32), rest(torch.float32)) for f in (fast, plain))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)          # sums of ≤ 19 terms in another order


@pytest.mark.parametrize("name", CASES)
def test_bf16_is_no_worse_than_eager(name):
    """The oracle is fp64 on the same bf16 inputs; 1.5 × leaves room for luck of rounding in small arrays."""
    fast, plain, shapes, rest = CASES[name]
    half = [x.detach() for x in inputs(shapes, torch.bfloat16)]

    def outcome(function, dtype):
        return run(function, [x.to(dtype).requires_grad_() for x in half], rest(dtype))

    oracle = outcome(plain, torch.float64)
    for exact, ours, eager in zip(oracle, outcome(fast, torch.bfloat16), outcome(plain, torch.bfloat16), strict=True):
        assert (ours.double() - exact).norm() <= 1.5 * (eager.double() - exact).norm() + 1e-3 * exact.norm()
        assert ours.dtype == eager.dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [0, 5])
def test_a_norm_of_part_of_an_array_with_any_of_its_gradients(rows: int, dtype: torch.dtype):
    """Generation normalises a slice of heads. It is tested without gradients and with each gradient alone."""
    whole, weight = (x.detach() for x in inputs([(rows, 3, 8), (8,)], dtype))
    x = whole[:, :2].requires_grad_()
    weight.requires_grad_()
    y = rms_norm(x, weight, 1e-5)
    both = torch.autograd.grad(y.sum(), (x, weight), retain_graph=True)
    # r comes from a sum in another order; in half precision one more rounding may differ.
    torch.testing.assert_close(y, rms_norm_plain(x, weight, 1e-5), rtol=4 * torch.finfo(dtype).eps, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 1e-5), y, rtol=0, atol=0)
    for tensor, gradient in zip((x, weight), both, strict=True):
        alone = rms_norm(*(t if t is tensor else t.detach() for t in (x, weight)), 1e-5)
        torch.testing.assert_close(torch.autograd.grad(alone.sum(), tensor)[0], gradient, rtol=0, atol=0)


def test_the_gradient_of_a_norm_is_exact_for_a_row_with_a_large_mean():
    """LayerNorm's backward subtracts r·mean(m), which is added back; it may be larger than the rest."""
    x, dy = inputs([(64, 512), (64, 512)], torch.bfloat16)
    dy, weight = dy.detach() + 3, torch.ones(512, dtype=torch.bfloat16)
    fast, plain = (torch.autograd.grad(f(x, weight, 1e-5), x, dy)[0].double() for f in (rms_norm, rms_norm_plain))
    exact_x = x.detach().double().requires_grad_()
    exact = torch.autograd.grad(rms_norm_plain(exact_x, weight.double(), 1e-5), exact_x, dy.double())[0]
    # The 1.5 leaves room for a second rounding to bf16, before r·mean(m) is added back.
    assert (fast - exact).norm() <= 1.5 * (plain - exact).norm()


def test_documents_do_not_see_each_other():
    q, k, v = inputs([(N, 4, 6), (N, 2, 6), (N, 2, 6)], torch.float32)
    packed = causal_attention(q, k, v, LENGTHS)
    alone = causal_attention(q[6:15], k[6:15], v[6:15], [9])
    torch.testing.assert_close(packed[6:15], alone, rtol=0, atol=0)
    changed = k.detach().clone()
    changed[14:] += 100                                                 # the last token of document 2, and document 3
    torch.testing.assert_close(causal_attention(q, changed, v, LENGTHS)[:14], packed[:14], rtol=0, atol=0)
    torch.testing.assert_close(DocumentAttention(LENGTHS)(3, q, k, v), packed, rtol=0, atol=0)


def test_a_shared_prefix_is_that_of_each_document():
    """Output and gradients equal those of the whole documents, with the prefix's gradients summed over them."""
    shapes = [(9, 4, 6), (9, 2, 6), (9, 2, 6)]                          # 4 shared tokens, then 3 of a and 2 of b
    tree, whole = inputs(shapes, torch.float64), inputs(shapes, torch.float64)
    written_out = [torch.cat((x, x[:4], x[7:])) for x in whole]         # 4 + 3, (2 of b), 4 + 2
    outputs = causal_attention(*tree, [4, 3, 2], [-1, 0, 0])
    expected = causal_attention(*(torch.cat((x[:7], x[9:])) for x in written_out), [7, 6])
    expected_rows = torch.cat((expected[:7], expected[11:]))
    torch.testing.assert_close(outputs, expected_rows)
    torch.testing.assert_close(expected[:4], expected[7:11])
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights[:4] = 0                                                     # the whole documents hold the prefix twice
    for a, b in zip(torch.autograd.grad((outputs * weights).sum(), tree),
                    torch.autograd.grad((expected_rows * weights).sum(), whole), strict=True):
        torch.testing.assert_close(a, b)


def test_lora_linear_keeps_leading_dimensions_and_fp32_factors():
    x, weight, A, B = inputs([(2, 3, 8), (6, 8), (2, 8), (6, 2)], torch.bfloat16)
    A, B = (f.detach().float().requires_grad_() for f in (A, B))
    output = lora_linear(x, weight.detach(), None, A, B, 2.0)
    assert output.shape == (2, 3, 6) and output.dtype == torch.bfloat16
    plain = lora_linear_plain(x, weight, None, A, B, 2.0)
    torch.testing.assert_close(output, plain, rtol=2**-6, atol=2**-6)      # two roundings of bf16's 2⁻⁸ each, doubled
    output.float().sum().backward()
    assert A.grad.dtype == B.grad.dtype == torch.float32 and weight.grad is None


def test_cross_entropy_without_any_target_stays_in_the_graph():
    x, weight = inputs([(3, 8), (12, 8)], torch.float32)
    loss = linear_cross_entropy(x, weight.detach(), torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0 and x.grad.abs().sum() == 0
    assert linear_cross_entropy(x[:0], weight, torch.empty(0, dtype=torch.long)).item() == 0


def test_cross_entropy_of_a_label_whose_probability_underflows():
    x, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    assert linear_cross_entropy(x, weight, torch.tensor([1])).item() == pytest.approx(400)
