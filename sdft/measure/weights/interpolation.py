"""The loss on the way from the seed to the tuned model, and beyond it: weights θ(t) = θ₀ + t·ΔW, t = 0 the seed.

    t   0 ──── ¼ ──── ½ ──── ¾ ──── 1 ──── 1¼ ──── 1½          nll(t), nats per target token, on given examples

(WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903.) On the task's targets it tells whether training went far enough; on
the seed's own answers, what each step of the way costs, and whether a model on the way keeps most and loses little.
For an adapter t multiplies its scale s, so nothing is rounded.

    sdft measure along --adapter runs/mine/sdft --data mine.jsonl
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.measure.outputs.gap import gap
from sdft.measure.passes import fitting
from sdft.measure.weights.shift import adapted_layers, weights_of_both
from sdft.model.llama import Llama

AT = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def loss_along(model: Llama, examples: Sequence[Example], at: Sequence[float] = AT, base: Llama | None = None,
               desc: str = "along") -> list[dict[str, float]]:
    """At each t its nll, nats per target token, over the tokens of n examples; with `seed`, between that and `model`.

    The model is left as it was, bit for bit. Raises SdftError where it has no adapter and no seed is given.
    """
    kept = fitting(model, examples, desc)
    found = []
    for t in at:
        with moved(model, t, base):
            whole = gap(model, kept, f"{desc}, t = {t:g}")
            found.append({"t": t, "nll": whole["nll"], "tokens": whole["tokens"], "n": len(kept)})
    return found


@contextmanager
def moved(model: Llama, t: float, base: Llama | None = None) -> Iterator[Llama]:
    """Inside the `with`, the model has the weights θ₀ + t·ΔW: of its adapter, or with `seed`, away from that model."""
    with _scaled(model, t) if base is None else _between(model, t, base):
        yield model


@contextmanager
def _scaled(model: Llama, t: float) -> Iterator[None]:
    layers = list(adapted_layers(model).values())
    if any(layer.unmerged is not None for layer in layers):
        raise SdftError("the adapter is merged into the weights, so its scale has no effect: unmerge(model) first")
    scales = [layer.scale for layer in layers]
    try:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = t * scale
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale


@contextmanager
@torch.no_grad()
def _between(model: Llama, t: float, base: Llama) -> Iterator[None]:
    """A copy of all weights is kept; t = 0 and 1 give the two models' own, exactly."""
    kept = []
    try:
        for _, before, weight in weights_of_both(model, base):
            kept.append((weight, weight.clone()))
            weight.copy_(torch.lerp(before.float(), weight.float(), t))
        yield
    finally:
        for weight, own in kept:
            weight.copy_(own)
