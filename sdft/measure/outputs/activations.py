"""Drift of the activations: how far the hidden states behind every layer have moved from the seed's, on fixed text.

    relative   ‖h − h₀‖ / ‖h₀‖                   mean over the tokens: how far (as a predictor of forgetting an L2 of
                                                 activations had R² 0.55 on ParityMNIST: arXiv 2509.04259)
    cosine     ⟨h, h₀⟩ / (‖h‖·‖h₀‖)              mean over the tokens: whether turned or only stretched
    cka        ‖XᵀX₀‖_F² / (‖XᵀX‖_F·‖X₀ᵀX₀‖_F)   linear CKA of the centred states X, X₀ (n, D) of all n tokens: whether
                                                 the tokens still lie to each other as they did, whatever was turned
                                                 or stretched as a whole (Kornblith et al. 2019, arXiv 1905.00414)

h (D,) is the residual stream behind a layer, at the tokens at which a target is predicted: of the seed's own answers,
those on which `drift` is measured. A text's first token, whose state is far longer than all others (arXiv 2402.17762)
and would decide the sums alone, is not among them.

Seed and tuned model go through the text side by side, all packs through one layer before any goes through the next. So
the states of one layer are all that is kept, 2·N·D, and CKA is exact over all tokens, with three (D, D) products in
fp64 that are gone before the next layer. Cross-covariances of all layers at once would take 3·L·D² numbers, 13 GB for
a model of 7B.

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
from sdft.measure.weights.shift import Row
from sdft.model.batches import Batch, may_share, pack_within
from sdft.model.llama import Llama
from sdft.model.lora import adapter_off
from sdft.progress import progress


@torch.inference_mode()
def activation_drift(model: Llama, examples: Sequence[Example], base: Llama | None = None,
                     desc: str = "activations") -> Row:
    """The drift behind every layer of `model` from its seed: the model with its adapter off, or `seed`.

    layers: layer (from 0), relative, cosine, cka; the same three: their means over the layers; tokens, n: how many
    tokens, of how many examples.
    """
    kept = fitting(model, examples, desc)
    batches = [batch.to(model.device) for batch in pack_within(kept, PACK, may_share(model.device))]
    before = _states(model if base is None else base, batches, off=base is None)
    pairs = zip(before, _states(model, batches), strict=True)
    bar = progress(pairs, total=len(model.model.layers), desc=desc, unit="layer")
    layers = [{"layer": layer, **compare_states(h_base, h)} for layer, (h_base, h) in enumerate(bar)]
    means = {name: fmean(row[name] for row in layers) for name in ("relative", "cosine", "cka")}
    return {"layers": layers, **means, "tokens": sum(batch.targets for batch in batches), "n": len(kept)}


def _states(model: Llama, batches: Sequence[Batch], off: bool = False) -> Iterator[Tensor]:
    """The states (n, D) behind each layer in turn, at the n rows that predict a target; `off`: the adapter is."""
    streams = [model.model.embed_tokens(batch.tokens) for batch in batches]                 # (N, D) a pack
    around = [(*model.rotation(batch.positions), batch.attention()) for batch in batches]
    for layer in model.model.layers:
        with adapter_off(model) if off else nullcontext():
            streams = [layer(x, cos, sin, attend) for x, (cos, sin, attend) in zip(streams, around, strict=True)]
        yield torch.cat([x[batch.rows] for x, batch in zip(streams, batches, strict=True)])


def compare_states(before: Tensor, after: Tensor) -> dict[str, float]:
    """relative, cosine and cka of states (n, D) against the seed's; in fp64."""
    before, after = before.double(), after.double()
    relative = (after - before).norm(dim=1) / before.norm(dim=1)
    return {"relative": relative.mean().item(), "cosine": F.cosine_similarity(before, after).mean().item(),
            "cka": linear_cka(before, after)}


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two sets of states (n, D₁) and (n, D₂) of the same n tokens: 0 to 1; 0 where either is constant.

    With few tokens for the width it is too high: even unrelated states give about D / (n + D) of random ones.
    """
    X, Y = (x.double() - x.double().mean(0) for x in (first, second))
    own = (X.t() @ X).norm() * (Y.t() @ Y).norm()                                           # (D₁, D₁), (D₂, D₂)
    return ((X.t() @ Y).square().sum() / own).item() if own > 0 else 0.0                    # (D₁, D₂)
