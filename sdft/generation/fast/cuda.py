"""How a GPU generates: the model in fewer operations, and whole packs of prompts in one attention.

What a small model waits for on a GPU is not arithmetic but the number of its operations, each of which takes some
microseconds to be started and some to run, whatever its size. So products of one input are one, and a product is added
onto the residual stream in place: 16 operations a layer in place of 40.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdft.generation.cache import KVCache, PrefillAttention, prompt_lines
from sdft.generation.fast.fused import Joined, JoinedLayer, worth_copying
from sdft.kernels.varlen import bounds_of, fits, varlen_attention
from sdft.model.llama import Attend, Llama

PROMPT_TOKENS = 8192            # prompts are prefilled together up to about so many tokens


class Product(Joined):
    """`Joined`, multiplied where its result goes."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.adapt(F.linear(x, self.weight, self.bias), x)                                       # (N, D) → (N, ΣO)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """`to` (N, O), which is written over, and the product."""
        self.adapt(to.addmm_(x, self.weight.t()), x)
        return to if self.bias is None else to.add_(self.bias)


class FusedLayer(JoinedLayer):
    product = Product

    def __init__(self, layer: nn.Module, config):
        super().__init__(layer, config)
        self.gate_up = Product([layer.mlp.gate_proj, layer.mlp.up_proj])

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        o = self.attended(x, cos, sin, attend)                                  # (N, D) → (N, H·C)
        if rows is not None:
            o, x = o[rows], x[rows]                                             # (n, …) from here on
        x = self.o.added(o, x)                                                  # (N, H·C) → (N, D)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, 1)                      # (N, D) → (N, F) each
        return self.down.added(F.silu(gate).mul_(up), x)                        # (N, F) → (N, D)


class FusedLlama:
    """The weights as they are now: make a new one when the model has changed. `hidden` and `head` are Llama's."""

    def __init__(self, model: Llama):
        self.model, self.head = model, model.head
        self.layers = [FusedLayer(layer, model.config) for layer in model.model.layers]

    def hidden(self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """The last hidden states (N, D), after the final norm, of tokens (N,) at positions (N,); of `rows`, (n, D)."""
        x = self.model.model.embed_tokens(tokens)                               # (N,) → (N, D)
        cos, sin = self.model.rotation(positions)                               # (N, C) each
        for layer in self.layers:
            x = layer(x, cos, sin, attend, rows if layer is self.layers[-1] else None)
        return self.model.model.norm(x)


def fused(model: Llama) -> Llama | FusedLlama:
    """The model as generation computes with it on a GPU: the same function in fewer operations, where it is small."""
    if not worth_copying(model):
        return model
    with torch.no_grad():
        return FusedLlama(model)


class VarlenPrefill:
    """`PrefillAttention` of all documents at once, in half precision on a GPU."""

    def __init__(self, cache: KVCache, rows: Sequence[int], lengths: Sequence[int], prefix: int = 0):
        self.cache, self.first, self.prefix, device = cache, rows[0], prefix, cache.begins.device
        self.longest = max(lengths)
        self.bounds = bounds_of(lengths, device)
        self.lines = prompt_lines(cache, rows, lengths, prefix)                                 # (N, J)
        if prefix:
            self.k_bounds = bounds_of([prefix + length for length in lengths], device)
            # Each document's keys by their places in (prefix, all tokens): the prefix, and its own.
            ends = accumulate(lengths, initial=prefix)
            self.seen = torch.tensor([place for begin, length in zip(ends, lengths)
                                      for place in (*range(prefix), *range(begin, begin + length))], device=device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.lines, k, v)
        if not self.prefix:
            return varlen_attention(q, k, v, self.bounds, self.bounds, self.longest, self.longest)
        keys, values = self.cache.row(self.first, layer)                                        # the prefix is in every row
        k, v = (torch.cat((start[:, : self.prefix].transpose(0, 1), x))[self.seen]              # (M, K, C)
                for start, x in ((keys, k), (values, v)))
        return varlen_attention(q, k, v, self.bounds, self.k_bounds, self.longest, self.prefix + self.longest)


def prefill_attention(model: Llama) -> type[PrefillAttention] | type[VarlenPrefill]:
    """How prompts attend on the model's device."""
    return VarlenPrefill if fits(model.dtype, model.device, model.config.head_dim) else PrefillAttention
