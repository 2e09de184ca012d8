"""Causal attention over packed documents: each token sees itself and the earlier tokens of its own document.

    keys →   a a a b b      lengths = [3, 2]; documents a and b lie behind one another without padding.
    q   a    ■ · · · ·
    u   a    ■ ■ · · ·      Only the blocks on the diagonal are ever computed: no (N, N) mask, no score between
    e   a    ■ ■ ■ · ·      documents. A long document goes in blocks of `BLOCK` queries against the keys up to
    r   b    · · · ■ ·      the block's end, so that memory grows with T, not T², and most of the future is
    y   b    · · · ■ ■      skipped rather than masked.

    keys →   p p a a b      What documents begin with alike may stand once: lengths = [2, 2, 1], parents = [-1, 0, 0].
        p    ■ · · · ·      Segments a and b both continue p and see all of it; the documents are pa and pb. Parents
        p    ■ ■ · · ·      have parents of their own. Positions, and so the function computed, are those of whole
        a    ■ ■ ■ · ·      documents, and the gradients of p are the sums over all that continue it.
        a    ■ ■ ■ ■ ·
        b    ■ ■ · · ■

With S = s·Q·Kᵀ (s = 1/√C) over the visible keys, P = softmax(S) by rows, O = P·V, the backward is

    dV = Pᵀ·dO,     dP = dO·Vᵀ,     dS = P ∘ (dP − rowsum(dP ∘ P)),     dQ = s·dS·K,     dK = s·dSᵀ·Q.

P is computed again rather than saved (Dao et al. 2022, arXiv 2205.14135): q, k and v are all that is stored. Grouped
queries (Ainslie et al. 2023, arXiv 2305.13245): the G = H/K query heads that share a key/value head are laid behind one
another as rows of one product, so K and V are never repeated. On a GPU, in half precision and without parents, the same
is PyTorch's `varlen_attn`.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdft.kernels.varlen import bounds_of, fits, varlen_attention

BLOCK = 128          # queries at a time


def causal_attention_plain(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int],
                           parents: Sequence[int] | None = None) -> Tensor:
    """Attend with q (N, H, C) over k, v (N, K, C), N = Σ lengths packed tokens; returns (N, H, C).

    Query head h reads key/value head h // (H/K); scores are scaled by 1/√C. parents: which earlier segment each one
    continues, -1 for none; None: none does.
    """
    outputs: list[Tensor] = []
    group, parents = q.shape[1] // k.shape[1], [-1] * len(lengths) if parents is None else parents
    seen: list[tuple[Tensor, Tensor]] = []                                      # k and v of each whole document
    for parent, q_doc, k_doc, v_doc in zip(parents, *(x.split(list(lengths)) for x in (q, k, v)), strict=True):
        if parent >= 0:
            k_doc, v_doc = (torch.cat(parts) for parts in zip(seen[parent], (k_doc, v_doc), strict=True))
        seen.append((k_doc, v_doc))
        (t, _, width), T = q_doc.shape, len(k_doc)                              # the last t of the document's T tokens
        q_HtC = q_doc.transpose(0, 1)                                           # (t, H, C) → (H, t, C)
        k_HTC, v_HTC = (x.repeat_interleave(group, 1).transpose(0, 1) for x in (k_doc, v_doc))
        scores = q_HtC @ k_HTC.transpose(1, 2) * width**-0.5                    # (H, t, T)
        future = torch.ones(t, T, dtype=torch.bool, device=q.device).triu(1 + T - t)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        outputs.append((weights @ v_HTC).transpose(0, 1))                       # (H, t, C) → (t, H, C)
    return torch.cat(outputs)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int],
                     parents: Sequence[int] | None = None) -> Tensor:
    """`causal_attention_plain` by blocks, without repeating K and V, and saving no attention weights."""
    return DocumentAttention(lengths, parents)(0, q, k, v)


class DocumentAttention:
    """An `attend` for packed documents: called as (layer, q, k, v); what all layers share is made once."""

    def __init__(self, lengths: Sequence[int], parents: Sequence[int] | None = None):
        self.lengths = list(lengths)
        self.parents = [-1] * len(self.lengths) if parents is None else list(parents)
        self.blocks = list(_blocks(self.lengths, self.parents))
        self._bounds: Tensor | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if fits(q.dtype, q.device, q.shape[-1]) and max(self.parents) < 0:
            return self._varlen(q, k, v)
        return _CausalAttention.apply(q, k, v, self.blocks)

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._bounds is None:
            self._bounds = bounds_of(self.lengths, q.device)
        longest = max(self.lengths)
        return varlen_attention(q, k, v, self._bounds, self._bounds, longest, longest)


Ranges = list[tuple[int, int]]                                                  # of packed tokens: [begin, end) each


def _blocks(lengths: Sequence[int], parents: Sequence[int]) -> Iterator[tuple[Ranges, int, int]]:
    """Yield (keys that it sees, block start, block end) in packed positions; the block is the end of what it sees."""
    seen: list[Ranges] = []                                                     # of each whole segment
    begin = 0
    for length, parent in zip(lengths, parents, strict=True):
        before = seen[parent] if parent >= 0 else []
        for start in range(begin, begin + length, BLOCK):
            end = min(start + BLOCK, begin + length)
            yield _joined(before, begin, end), start, end
        seen.append(_joined(before, begin, begin + length))
        begin += length


def _joined(ranges: Ranges, begin: int, end: int) -> Ranges:
    """The ranges and one more behind them, as one with the last where they touch."""
    if ranges and ranges[-1][1] == begin:
        return [*ranges[:-1], (ranges[-1][0], end)]
    return [*ranges, (begin, end)]


def _take(x: Tensor, ranges: Ranges) -> Tensor:
    """The rows of x (K, N, C) in `ranges`: (K, e, C), without a copy where that is one range."""
    parts = [x[:, begin:end] for begin, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _add(x: Tensor, ranges: Ranges, part: Tensor) -> None:
    """Add part (K, e, C) to the rows of x (K, N, C) in `ranges`."""
    for (begin, end), own in zip(ranges, part.split([end - begin for begin, end in ranges], 1), strict=True):
        x[:, begin:end] += own


def _group(x: Tensor, heads: int) -> Tensor:
    """Queries (b, H, C) as rows of their key/value head: (K, G·b, C)."""
    b, H, C = x.shape
    return x.view(b, heads, H // heads, C).permute(1, 2, 0, 3).reshape(heads, -1, C)


def _ungroup(x: Tensor, b: int) -> Tensor:
    """The inverse of `_group`: (K, G·b, C) → (b, K, G, C)."""
    return x.view(x.shape[0], -1, b, x.shape[-1]).permute(2, 0, 1, 3)


def _future(size: int, like: Tensor) -> Tensor:
    """0 where query row i of a block may see key column j ≤ i of it, −∞ where it may not: (size, size)."""
    return like.new_full((size, size), float("-inf")).triu_(1)


def _weights(q: Tensor, k: Tensor, future: Tensor) -> Tensor:
    """Softmax of the masked scores: scaled q (K, G·b, C), k (K, e, C), future (b, b) → (K, G·b, e)."""
    scores = q @ k.transpose(1, 2)                                              # (K, G·b, e)
    b, e = len(future), k.shape[1]
    scores.view(-1, b, e)[..., e - b :].add_(future)                            # only the block's own square hides any
    return scores.softmax(-1)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, blocks: list[tuple[Ranges, int, int]]) -> Tensor:
        q = q * q.shape[-1] ** -0.5
        ctx.save_for_backward(q, k, v)
        ctx.blocks = blocks
        heads = k.shape[1]
        k, v = (x.transpose(0, 1).contiguous() for x in (k, v))                 # (N, K, C) → (K, N, C)
        o = torch.empty_like(q)
        for seen, start, end in blocks:
            p = _weights(_group(q[start:end], heads), _take(k, seen), _future(end - start, q))
            o_rows = p @ _take(v, seen)                                         # (K, G·b, e)·(K, e, C)
            o[start:end].view(end - start, heads, -1, o.shape[-1]).copy_(_ungroup(o_rows, end - start))
        return o

    @staticmethod
    def backward(ctx, do: Tensor):
        q, k, v = ctx.saved_tensors
        heads, width = k.shape[1:]
        k, v = (x.transpose(0, 1).contiguous() for x in (k, v))                 # (N, K, C) → (K, N, C)
        dq = torch.empty_like(q)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for seen, start, end in ctx.blocks:
            q_rows, do_rows = _group(q[start:end], heads), _group(do[start:end], heads)     # (K, G·b, C)
            keys, values = _take(k, seen), _take(v, seen)                       # (K, e, C)
            p = _weights(q_rows, keys, _future(end - start, q))
            _add(dv, seen, p.transpose(1, 2) @ do_rows)
            dp = do_rows @ values.transpose(1, 2)                               # (K, G·b, e)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            _add(dk, seen, ds.transpose(1, 2) @ q_rows)                         # q_rows carries s already
            dq_rows = ds @ keys                                                 # (K, G·b, e)·(K, e, C)
            dq[start:end].view(end - start, heads, -1, width).copy_(_ungroup(dq_rows, end - start))
        return dq.mul_(width**-0.5), dk.transpose(0, 1), dv.transpose(0, 1), None
