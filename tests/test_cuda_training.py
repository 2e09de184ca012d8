"""A training step on device "cuda" without a GPU: under FakeTensorMode a host sync and a wrong device raise.

This shows that the code is written for a GPU, not how fast it is. A build of PyTorch without CUDA lacks two things that
the mode relies on: a device guard, which the CPU's stands in for here, and autograd's engine for that device, in whose
place the graph is walked node by node.
"""
from __future__ import annotations

import ctypes
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny import tiny_llama
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from training_parts import examples, tiny_model

from sdft.model.batches import pack_within
from sdft.model.io.checkpoints import as_device
from sdft.model.lora import add_lora, lora_layers, shift_norm
from sdft.objectives import HiddenStates, cross_entropy
from sdft.objectives.fisher import fisher, inverted, text_uniforms
from sdft.objectives.penalties import EWC, KL, L2SP
from sdft.objectives.weighted import Weighted, dft
from sdft.train import TrainSettings
from sdft.train.loop import gradient
from sdft.train.optimiser import adamw, step_if_finite
from sdft.train.weights import trained_weights

CPU, CUDA = 0, 1            # c10::DeviceType


def backward(loss: torch.Tensor) -> None:
    """Run a graph's backward in topological order: every node's own code, without the engine."""
    uses, seen, stack = Counter(), {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is not None:
                uses[following] += 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    arrived: dict = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        inputs = arrived.pop(node)
        gradients = run(node, [inputs.get(i) for i in range(len(node._input_metadata))])
        edges = [edge for edge in node.next_functions if edge[0] is not None]
        for (following, slot), value in zip(edges, gradients, strict=False):
            if hasattr(following, "variable"):                      # a weight: the engine casts to its dtype and shape
                value = value.to(following.variable.dtype).sum_to_size(following.variable.shape)
            slots = arrived.setdefault(following, {})
            slots[slot] = slots[slot] + value if slot in slots else value
            uses[following] -= 1
            if not uses[following]:
                ready.append(following)


def run(node, inputs: list) -> list:
    """The gradients that a node hands on, without those of inputs that need none."""
    if hasattr(node, "needs_input_grad"):                           # written in Python: ours, varlen_attn
        given = node.apply(*inputs)
        given = given if isinstance(given, tuple) else (given,)
        return [value for value, needed in zip(given, node.needs_input_grad, strict=False) if needed]
    given = node(*inputs)
    given = given if isinstance(given, tuple) else (given,)
    return [value for value, (following, _) in zip(given, node.next_functions, strict=False) if following is not None]


@pytest.fixture
def cuda_without_gpu(monkeypatch):
    if torch.backends.cuda.is_built():
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[CUDA] = guards[CPU]
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    yield
    guards[CUDA] = None


def move_to_cuda(model: torch.nn.Module) -> None:
    """What `model.to("cuda")` does; under the mode, swapping the weights in place is not possible."""
    moved = {}                                                      # a tied weight stays tied
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    fake = torch.empty_like(tensor, device="cuda")
                    moved.setdefault(tensor, torch.nn.Parameter(fake) if kind is module._parameters else fake)
                    kind[name] = moved[tensor]


def test_walking_the_graph_equals_the_engine():
    found = []
    batch = pack_within(examples(3), 100)[0]
    for differentiate in (torch.Tensor.backward, backward):
        model = tiny_model(torch.bfloat16)
        adapter = trained_weights(model, TrainSettings(lora_rank=2))
        differentiate(cross_entropy(batch, HiddenStates(model, batch)))
        found.append([factor.grad for factor in adapter.parameters.values()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_needs_no_host_sync_and_stays_on_its_device(cuda_without_gpu, method, dtype):
    settings = TrainSettings(method=method, lora_rank=2)
    batches = pack_within(examples(6), 40)
    assert len(batches) > 1
    model = tiny_model(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_cuda(model)
        trained = trained_weights(model, settings)
        optimiser = adamw(trained.parameters, settings)
        loss = gradient(model, batches, cross_entropy)
        norm = torch.nn.utils.clip_grad_norm_(trained.parameters.values(), 1.0)
        step_if_finite(optimiser, torch.stack((loss, norm)))
        trained.publish()
        tensors = [loss, norm, trained.delta_norm(), *trained.parameters.values()]
        assert {x.device.type for x in tensors} == {"cuda"}
        assert all(x.grad.device.type == "cuda" and x.grad.shape == x.shape for x in trained.parameters.values())
        with pytest.raises(DataDependentOutputException):           # the mode does raise at a host sync
            loss.item()
        with pytest.raises(RuntimeError, match="same device|different devices"):      # and at a wrong device
            model.head_weight @ torch.ones(model.config.hidden_size)


@pytest.mark.parametrize("name", ["dft", "weighted", "kl", "l2-sp", "ewc"])
def test_the_baselines_need_no_host_sync_either(cuda_without_gpu, name):
    settings, batches, model = TrainSettings(lora_rank=2), pack_within(examples(6), 40), tiny_model(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to_cuda(model)
        adapter = trained_weights(model, settings)
        fisher = {name: torch.ones_like(layer.weight, dtype=torch.float32) for name, layer in adapter.layers.items()}
        weights = {id: torch.ones(count)
                   for batch in batches for id, count in zip(batch.ids, batch.counts, strict=True)}
        objective = {"dft": dft, "weighted": Weighted(weights), "kl": KL(0.5), "l2-sp": L2SP(0.1),
                     "ewc": EWC(0.1, fisher)}[name]
        loss = gradient(model, batches, objective)
        assert {x.device.type for x in (loss, *(x.grad for x in adapter.parameters.values()))} == {"cuda"}


class Kernels(TorchDispatchMode):
    """Counts the operations that a GPU would run: all but views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or func is torch.ops.aten.detach.default)
        return func(*args, **(kwargs or {}))


def test_the_norm_of_the_change_is_exact_and_takes_few_kernels():
    torch.manual_seed(0)
    model = tiny_llama("llama2", num_hidden_layers=12)
    add_lora(model, 3, targets=("q_proj", "v_proj", "down_proj"))
    layers = lora_layers(model)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B)
    with Kernels() as kernels:
        norm = shift_norm(layers)
    exact = sum((layer.scale * layer.lora_B.double() @ layer.lora_A.double()).square().sum()
                for layer in layers.values())
    assert norm.item() == pytest.approx(exact.sqrt().item(), rel=1e-12)          # both are sums in fp64
    assert not norm.requires_grad and kernels.count <= 3 + 12 * 3                # a dozen a shape, however many layers


def test_a_step_is_adamws_where_all_is_finite_and_none_otherwise():
    found = []
    for step in (lambda optimiser, values: optimiser.step(), step_if_finite):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 64).view(8, 8))
        optimiser = adamw({"weight": weight}, TrainSettings(lr=0.1, weight_decay=0.01))
        for number in range(3):
            weight.grad = torch.cos(weight.detach() * 7 + number)
            step(optimiser, torch.tensor([1.0, 3.0]))
        found.append((weight.detach().clone(), *(x.clone() for x in optimiser.state[weight].values())))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    for wrong in (float("nan"), float("inf")):
        weight.grad = torch.full_like(weight, wrong)
        step_if_finite(optimiser, torch.tensor([1.0, wrong]))
        now = weight.detach(), *optimiser.state[weight].values()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(now, found[1], strict=True))


def test_labels_of_the_fisher_information_follow_the_distribution_and_the_text_alone():
    head = torch.eye(5).repeat(60, 1)[:290]                                      # 290 tokens: several blocks of rows
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.05, 0.25])
    uniforms = (torch.arange(4000) + 0.5) / 4000
    labels = inverted(probabilities.log().clamp_min(-1e4).repeat(4000, 1), head, uniforms)
    counted = torch.bincount(labels, minlength=290).view(58, 5).sum(0)
    torch.testing.assert_close(counted, (4000 * probabilities).long(), rtol=0, atol=58)      # one by rounding a token
    assert torch.equal(text_uniforms("a", 9), text_uniforms("a", 12)[:9]) and 0 <= text_uniforms("b", 99).min()
    assert not torch.equal(text_uniforms("a", 9), text_uniforms("b", 9))


def test_the_fisher_information_draws_its_labels_on_the_device(cuda_without_gpu):
    model, texts = tiny_model(torch.bfloat16), examples(3)
    with FakeTensorMode(allow_non_fake_inputs=True):                             # a copy to the host would raise
        move_to_cuda(model)
        found = fisher(model, texts, ["model.layers.1.mlp.up_proj"])
    assert {value.device.type for value in found.values()} == {"cuda"}


def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch):
    """CUDA graphs capture what runs on the current device; with another one they would be empty."""
    current: list = []
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(device))
    assert as_device("cuda:1") == torch.device("cuda:1") and as_device("cuda").type == "cuda"
    assert as_device("cpu").type == "cpu"
    assert current == [1, 0]
