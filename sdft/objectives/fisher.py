"""Diagonal Fisher information of linear layers: how much the base model's distribution depends on each weight.

    F_i = mean over texts of (∂ Σ_t log π₀(v_t | y_<t) / ∂θ_i)²,   v_t ~ π₀(· | y_<t)
                                                                  (Kirkpatrick et al. 2017, arXiv 1612.00796)

y are texts that the base model wrote, θ the layer's full weight W (O, D), not the factors of an adapter. A label v is
drawn at every position of a text from the base model's distribution there, with a fixed seed; a GPU draws others than a
CPU, text by text, since the probabilities of a whole vocabulary are slow to copy. So E F is the Fisher on
these contexts even where y was decoded greedily; to second order, and up to the diagonal, ½·Σ F_i·Δ_i² is the
KL(π₀ ‖ π) of a text, summed over its tokens. The most probable tokens as labels would make it too small: for two tokens
of p and 1 − p, (1 − p)² instead of p·(1 − p). One matrix of gradients exists at a time besides F, which is in fp32.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.files import read_tensors, save_tensors
from sdft.kernels.divergence import ROWS
from sdft.kernels.linear_cross_entropy import linear_cross_entropy
from sdft.model.batches import fingerprint, pack, trainable
from sdft.model.io.checkpoints import fingerprint as model_fingerprint
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off, lora_layers
from sdft.progress import progress


def fisher(model: Llama, examples: Sequence[Example], layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The diagonal Fisher of the base model, layer name → fp32 (O, D); an adapter on `model` is switched off meanwhile.

    Labels are drawn at the targets of `examples`. `layers` names linear layers; default: the adapted ones, or all of
    the decoder where there is no adapter. Raises SdftError when no example can be used.
    """
    names = list(layers or lora_layers(model) or linear_layers(model))
    weights = {name: cast(nn.Linear, model.get_submodule(name)).weight for name in names}
    totals = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    kept, _ = trainable(examples, model.config.context_length)
    generator, on_gpu = torch.Generator().manual_seed(0), model.device.type == "cuda"
    with adapter_off(model), _squared_gradients(model, weights, totals):
        for example in progress(kept, desc="fisher", unit="text"):
            batch = pack([example]).to(model.device)
            x = model.hidden(batch.tokens, batch.positions, batch.attention(), batch.rows)          # (n, D)
            labels = (inverted(x, model.head_weight, text_uniforms(example.id, len(x)).to(x.device)) if on_gpu else
                      drawn(x, model.head_weight, generator))
            linear_cross_entropy(x, model.head_weight, labels).backward()
    return {name: total.div_(len(kept)) for name, total in totals.items()}


@torch.no_grad()
def drawn(x: Tensor, head: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a token for each hidden state (n, D) on the CPU from softmax(x·headᵀ), head (V, D)."""
    return torch.cat([torch.multinomial((part @ head.t()).float().softmax(1), 1, generator=generator)
                      for part in x.split(ROWS)]).squeeze(1)


@torch.no_grad()
def inverted(x: Tensor, head: Tensor, uniforms: Tensor) -> Tensor:
    """Draw a token for each hidden state, as `drawn`, by inverting its distribution at uniforms (n,), fp32 below 1."""
    labels = []
    for part, u in zip(x.split(ROWS), uniforms.double().split(ROWS), strict=True):
        reached = (part @ head.t()).float().softmax(1).cumsum(1, dtype=torch.float64)               # (rows, V)
        labels.append((reached <= u[:, None] * reached[:, -1:]).sum(1))         # an fp32 u < 1 stays below the sum
    return torch.cat(labels)


def text_uniforms(id: str, count: int) -> Tensor:
    """`count` uniform numbers of the text `id`, fp32 on the CPU: the same in any company of texts."""
    seed = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big", signed=True)
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def saved_fisher(path: Path | None, model: Llama, examples: Sequence[Example]) -> dict[str, Tensor]:
    """`fisher` of the adapted layers, kept in `path` unless that is None (SdftError for a file of other inputs)."""
    if path is None:
        return fisher(model, examples)
    with adapter_off(model):
        about = {"model": model_fingerprint(model), "texts": fingerprint(examples),
                 "layers": " ".join(lora_layers(model))}
    if not path.exists():
        save_tensors(path, fisher(model, examples), about)
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        if file.metadata() != about:
            raise SdftError(f"{path} belongs to another model, other layers or other texts: use the old ones to "
                            "resume, or another folder to start again")
    return {name: tensor.to(model.device) for name, tensor in tensors.items()}


def linear_layers(model: Llama) -> list[str]:
    """The names of the decoder's linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


@contextmanager
def _squared_gradients(model: Llama, weights: dict[str, Tensor], totals: dict[str, Tensor]) -> Iterator[None]:
    """Inside the `with`, a backward pass adds the squared gradients of `weights`, and only these, to `totals`."""
    required, training = {weight: weight.requires_grad for weight in model.parameters()}, model.training
    model.requires_grad_(False).eval()
    handles = [weight.requires_grad_(True).register_post_accumulate_grad_hook(partial(_add_square, totals[name]))
               for name, weight in weights.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weight, before in required.items():
            weight.requires_grad_(before)
        model.train(training)


def _add_square(total: Tensor, weight: Tensor) -> None:
    gradient = cast(Tensor, weight.grad).float()
    total.addcmul_(gradient, gradient)
    weight.grad = None
