"""Drift of the activations: how far the hidden states after every layer moved from the base model's, on fixed text.

    relative   ‖h − h₀‖ / ‖h₀‖                   mean over tokens: distance (an L2 of activations predicted forgetting
                                                 with R² 0.55 on ParityMNIST: arXiv 2509.04259)
    cosine     ⟨h, h₀⟩ / (‖h‖·‖h₀‖)              mean over tokens: below 1 where states turned, not only stretched
    cka        ‖XᵀX₀‖_F² / (‖XᵀX‖_F·‖X₀ᵀX₀‖_F)   linear CKA of the centred states X, X₀ (n, D) of all n tokens: 1 where
                                                 the geometry of the tokens is the same up to rotation and scale
                                                 (Kornblith et al. 2019, arXiv 1905.00414)

h (D,) is the residual stream after a layer, at the positions where a target token is predicted: those of the base
model's own answers, on which `drift` is measured too. They exclude a text's first token, whose state is far longer than
all others (arXiv 2402.17762) and would dominate the sums.

Both models advance together: all micro-batches pass one layer before any passes the next. So only the states of one
layer are kept, 2·N·D numbers, and CKA is exact over all tokens.

    sdft measure activations --adapter runs/mine/sdft
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from sdft.data.chat import Example
from sdft.measure.passes import PACK, fitting
from sdft.model.batches import Batch, may_share, pack_within
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off
from sdft.progress import progress
from sdft.results import Activations, LayerActivations


@torch.inference_mode()
def activation_drift(model: Llama, examples: Sequence[Example], base: Llama | None = None,
                     desc: str = "activations") -> Activations:
    """The drift after every layer of `model` from the base model: `base`, or `model` with its adapter off."""
    kept = fitting(model, examples, desc)
    batches = [batch.to(model.device) for batch in pack_within(kept, PACK, may_share(model.device))]
    before = _states(model if base is None else base, batches, off=base is None)
    pairs = zip(before, _states(model, batches), strict=True)
    bar = progress(pairs, total=len(model.model.layers), desc=desc, unit="layer")
    layers = [compare_states(h_base, h, layer) for layer, (h_base, h) in enumerate(bar)]
    return {"layers": layers, "relative": fmean(layer["relative"] for layer in layers),
            "cosine": fmean(layer["cosine"] for layer in layers), "cka": fmean(layer["cka"] for layer in layers),
            "tokens": sum(batch.targets for batch in batches), "n": len(kept)}


def _states(model: Llama, batches: Sequence[Batch], off: bool = False) -> Iterator[Tensor]:
    """The states (n, D) after each layer in turn, at the n target positions; `off`: with the adapter off."""
    streams = [model.model.embed_tokens(batch.tokens) for batch in batches]                 # (N, D) each
    rotations = [(*model.rotation(batch.positions), batch.attention()) for batch in batches]
    for layer in model.model.layers:
        with adapter_off(model) if off else nullcontext():
            streams = [layer(x, cos, sin, attend) for x, (cos, sin, attend) in zip(streams, rotations, strict=True)]
        yield torch.cat([x[batch.rows] for x, batch in zip(streams, batches, strict=True)])


def compare_states(before: Tensor, after: Tensor, layer: int) -> LayerActivations:
    """Compare the states (n, D) after a layer with the base model's, `before`, in fp64."""
    before, after = before.double(), after.double()
    relative = (after - before).norm(dim=1) / before.norm(dim=1)
    return {"layer": layer, "relative": relative.mean().item(),
            "cosine": F.cosine_similarity(before, after).mean().item(), "cka": linear_cka(before, after)}


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA of the states (n, D₁) and (n, D₂) of the same n tokens: 0 to 1; 0 where either is constant.

    It is too high where n is small for the width: unrelated random states give about D / (n + D).
    """
    X, Y = (x.double() - x.double().mean(0) for x in (first, second))
    scale = (X.t() @ X).norm() * (Y.t() @ Y).norm()                                           # (D₁, D₁), (D₂, D₂)
    return ((X.t() @ Y).square().sum() / scale).item() if scale > 0 else 0.0                    # (D₁, D₂)
