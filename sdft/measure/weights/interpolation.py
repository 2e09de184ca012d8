"""The loss between the base model and the tuned one, and beyond: weights θ(t) = θ₀ + t·ΔW (WiSE-FT, arXiv 2109.01903).

    t   0 ──── ¼ ──── ½ ──── ¾ ──── 1 ──── 1¼ ──── 1½          nll(t), nats per target token
        base model                  tuned model

On the task's targets the curve shows whether training went far enough; on the base model's own answers it shows what
that costs. For an adapter t multiplies its scale s, so nothing is rounded.

    sdft measure interpolation --adapter runs/mine/sdft --data mine.jsonl
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from sdft.data.chat import Example
from sdft.errors import SdftError
from sdft.measure.outputs.gap import gap
from sdft.measure.passes import fitting
from sdft.measure.weights.shift import adapted_layers, weights_of_both
from sdft.model.llama import Llama
from sdft.results import InterpolationPoint

AT = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def loss_along(model: Llama, examples: Sequence[Example], at: Sequence[float] = AT, base: Llama | None = None,
               desc: str = "interpolation") -> list[InterpolationPoint]:
    """The NLL of the examples at each t, between `base`, or `model` with its adapter off, and `model`.

    The model is unchanged afterwards, bit for bit. Raises SdftError where it has no adapter and no base is given.
    """
    kept, points = fitting(model, examples, desc), list[InterpolationPoint]()
    for t in at:
        with moved(model, t, base):
            measured = gap(model, kept, f"{desc}, t = {t:g}")
            points.append({"t": t, "nll": measured["nll"], "tokens": measured["tokens"], "n": len(kept)})
    return points


def moved(model: Llama, t: float, base: Llama | None = None) -> AbstractContextManager[None]:
    """Inside the `with`, the model has the weights θ₀ + t·ΔW; ΔW is its adapter's, or its difference from `base`."""
    return _scaled(model, t) if base is None else _between(model, t, base)


@contextmanager
def _scaled(model: Llama, t: float) -> Iterator[None]:
    scales = {layer: layer.scale for layer in adapted_layers(model).values()}
    if any(layer.unmerged is not None for layer in scales):
        raise SdftError("the adapter is merged into the weights, so its scale has no effect: unmerge(model) first")
    try:
        for layer, scale in scales.items():
            layer.scale = t * scale
        yield
    finally:
        for layer, scale in scales.items():
            layer.scale = scale


@contextmanager
@torch.no_grad()
def _between(model: Llama, t: float, base: Llama) -> Iterator[None]:
    """Interpolate all weights, and restore them from a copy; t = 0 and t = 1 give the two models exactly."""
    kept = []
    try:
        for _, before, weight in weights_of_both(model, base):
            kept.append((weight, weight.clone()))
            weight.copy_(torch.lerp(before.float(), weight.float(), t))
        yield
    finally:
        for weight, copied in kept:
            weight.copy_(copied)
