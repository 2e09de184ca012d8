"""The diagonal Fisher information of linear layers: how much the seed's distribution depends on each of their weights.

    F_i = mean over texts of (∂ Σ_t log π₀(v_t | y_<t) / ∂θ_i)²,   v_t ~ π₀(· | y_<t)
                                                                  (Kirkpatrick et al. 2017, arXiv 1612.00796)

y are texts that the seed wrote, θ the layer's full weight W (O, D), not the factors of an adapter. The labels v are
drawn at every place of a text from the seed's distribution there, once, for the same F every time. So E F is the Fisher
on these contexts even where y was chosen greedily, and to second order, as far as the diagonal tells, ½·Σ F_i·Δ_i² is
the KL(π₀ ‖ π) of a text, summed over its tokens. With the likeliest tokens as labels it would be too small: of two
tokens of p and 1 − p, (1 − p)² in place of p·(1 − p). The gradients are squared text by text, exactly, and one matrix
of gradients exists at a time beside F itself, which is in fp32.

    from sdft.objectives.fisher import fisher
    F = fisher(model, examples)["model.layers.0.self_attn.q_proj"]          # (O, D)
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.files import read_tensors, save_tensors
from sdft.kernels.divergence import ROWS
from sdft.kernels.linear_cross_entropy import linear_cross_entropy
from sdft.model.batches import fingerprint, pack, trainable
from sdft.model.io.fingerprint import fingerprint as model_fingerprint
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off, lora_layers
from sdft.progress import progress


def fisher(model: Llama, examples: Sequence[Example], layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The diagonal Fisher of the seed, layer name → fp32 (O, D); an adapter on `model` is switched off meanwhile.

    examples: texts that the seed wrote, their targets the places where labels are drawn. layers: names of linear layers;
    None: the adapted ones, or every one of the decoder where there is no adapter. Raises SdftError when no example can be
    used.
    """
    names = list(layers or lora_layers(model) or linear_layers(model))
    weights = {name: model.get_submodule(name).weight for name in names}
    totals = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    kept, _ = trainable(examples, model.config.context_length)
    generator = torch.Generator().manual_seed(0)
    with adapter_off(model), _only(model, weights.values()), _squares(weights, totals):
        for example in progress(kept, desc="fisher", unit="text"):
            batch = pack([example]).to(model.device)
            x = model.hidden(batch.tokens, batch.positions, batch.attention(), batch.rows)          # (n, D)
            linear_cross_entropy(x, model.head_weight, drawn(x, model.head_weight, generator)).backward()
    return {name: total.div_(len(kept)) for name, total in totals.items()}


@torch.no_grad()
def drawn(x: Tensor, head: Tensor, generator: torch.Generator) -> Tensor:
    """A token for each hidden state (n, D), drawn from softmax(x·headᵀ), head (V, D); `generator` is the CPU's."""
    return torch.cat([torch.multinomial((rows @ head.t()).float().softmax(1).cpu(), 1, generator=generator)
                      for rows in x.split(ROWS)]).squeeze(1).to(x.device)


def saved_fisher(path: Path | None, model: Llama, examples: Sequence[Example]) -> dict[str, Tensor]:
    """`fisher` of the adapted layers kept at `path`: computed where there is no file, else read, for a resumed run.

    Raises SdftError for a file of another model, other layers or other texts.
    """
    if path is None:
        return fisher(model, examples)
    with adapter_off(model):
        about = {"model": model_fingerprint(model), "texts": fingerprint(examples),
                 "layers": " ".join(lora_layers(model))}
    if not path.exists():
        save_tensors(path, fisher(model, examples), about)
    found = read_tensors(path)
    with safe_open(path, "pt") as file:
        if file.metadata() != about:
            raise SdftError(f"{path} belongs to another model, other layers or other texts: use the old ones to go on, "
                            "or another folder to start anew")
    return {name: tensor.to(model.device) for name, tensor in found.items()}


def linear_layers(model: Llama) -> list[str]:
    """The names of the decoder's linear layers."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]


@contextmanager
def _only(model: Llama, weights) -> Iterator[None]:
    """Let only `weights` have a gradient, in eval mode; afterwards all is as it was."""
    wanted, training = {weight: weight.requires_grad for weight in model.parameters()}, model.training
    model.requires_grad_(False).eval()
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, asked in wanted.items():
            weight.requires_grad_(asked)
        model.train(training)


@contextmanager
def _squares(weights: dict[str, Tensor], totals: dict[str, Tensor]) -> Iterator[None]:
    """Add the square of each weight's gradient to its total as soon as it is there, and free it."""
    def hook(name: str):
        def square(weight: Tensor) -> None:
            gradient = weight.grad.float()
            totals[name].addcmul_(gradient, gradient)
            weight.grad = None
        return square

    handles = [weight.register_post_accumulate_grad_hook(hook(name)) for name, weight in weights.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
