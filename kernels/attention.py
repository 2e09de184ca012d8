"""Causal attention over packed documents: each token sees itself and the earlier tokens of its own document.

    keys →   a a a b b      lengths = [3, 2]: documents a and b are concatenated without padding.
    q   a    ■ · · · ·
    u   a    ■ ■ · · ·      Only the blocks on the diagonal are computed: there is no (N, N) mask, and no score between
    e   a    ■ ■ ■ · ·      documents. A long document is split into blocks of `BLOCK` queries, each with the keys up
    r   b    · · · ■ ·      to the block's end, so most scores that the mask would remove are never computed.
    y   b    · · · ■ ■

    keys →   p p a a b      A common prefix may be stored once: lengths = [2, 2, 1], parents = [-1, 0, 0].
        p    ■ · · · ·      Segments a and b both continue p and see all of it; the documents are pa and pb. A parent
        p    ■ ■ · · ·      may have a parent. The result is that of whole documents, and the gradients of p are
        a    ■ ■ ■ · ·      summed over all segments that continue it.
        a    ■ ■ ■ ■ ·
        b    ■ ■ · · ■

With S = s·Q·Kᵀ (s = 1/√C) over the visible keys, P = softmax(S) by rows, O = P·V, the backward is

    dV = Pᵀ·dO,     dP = dO·Vᵀ,     dS = P ∘ (dP − rowsum(dP ∘ P)),     dQ = s·dS·K,     dK = s·dSᵀ·Q.

Only q, k and v are saved; the backward computes P again (Dao et al. 2022, arXiv 2205.14135). The G = H/K query heads
that share a key/value head (Ainslie et al. 2023, arXiv 2305.13245) become rows of one product, without repeating K, V.

Blocks of equal size are one batched product. Queries and keys are padded to multiples of `STEP`, so that many blocks
have equal sizes and few sizes occur (oneDNN compiles a product for every new size, 2 to 3 ms each):

             left   keys before the block     queries   right     A padding key is masked. A padding query is not read
    query    · · │ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ │ ■ · · · │ · · · ·      and gets no gradient. Both hold the segment's first
    query    · · │ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ │ ■ ■ · · │ · · · ·      token. The product is added to the mask.
    …
    padding  · · │ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ │ ■ ■ ■ ■ │ ■ · · ·

One gather lays out the rows of all blocks. Another gather returns the output of each query; `embedding_bag` sums the
gradients of each key over the blocks that saw it, in fp32.

On a GPU, in half precision and without parents, PyTorch's FlashAttention-2 computes the same (`varlen_attention`).
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from inspect import signature
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 128             # queries per block
STEP = 32               # queries and keys of a block are padded to multiples of this
CELLS = 2_400_000       # scores per batched product, over all heads


def causal_attention_plain(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int],
                           parents: Sequence[int] | None = None) -> Tensor:
    """Attend with q (N, H, C) over k, v (N, K, C), N = Σ lengths packed tokens; returns (N, H, C).

    Query head h reads key/value head h // (H/K). parents: the index of the earlier segment that each segment continues,
    or -1; None: -1 for all.
    """
    outputs: list[Tensor] = []
    group, parents = q.shape[1] // k.shape[1], [-1] * len(lengths) if parents is None else parents
    documents: list[tuple[Tensor, Tensor]] = []                                 # k and v of each whole document
    for parent, q_doc, k_doc, v_doc in zip(parents, *(x.split(list(lengths)) for x in (q, k, v)), strict=True):
        if parent >= 0:
            k_doc, v_doc = (torch.cat(parts) for parts in zip(documents[parent], (k_doc, v_doc), strict=True))
        documents.append((k_doc, v_doc))
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
    """Compute `causal_attention_plain` by blocks, without repeating K and V or saving attention weights."""
    return DocumentAttention(lengths, parents)(0, q, k, v)


class DocumentAttention:
    """The `attend(layer, q, k, v)` of packed documents. All layers share the layout of the blocks."""

    def __init__(self, lengths: Sequence[int], parents: Sequence[int] | None = None):
        self.lengths = list(lengths)
        self.parents = [-1] * len(self.lengths) if parents is None else list(parents)
        self._bounds: Tensor | None = None
        self._layouts: dict[tuple, _Layout] = {}                                # by heads, dtype and device

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if varlen_fits(q.dtype, q.device, q.shape[-1]) and max(self.parents) < 0:
            if self._bounds is None:
                self._bounds = bounds_of(self.lengths, q.device)
            longest = max(self.lengths)
            return varlen_attention(q, k, v, self._bounds, self._bounds, longest, longest)
        key = k.shape[1], q.shape[1] // k.shape[1], q.dtype, q.device
        if key not in self._layouts:
            self._layouts[key] = _layout(list(_blocks(self.lengths, self.parents)), sum(self.lengths), *key)
        return _CausalAttention.apply(q, k, v, self._layouts[key])


class _Block(NamedTuple):
    queries: np.ndarray     # (b,) indices of packed tokens, padding included
    keys: np.ndarray        # (m,) likewise
    size: int               # queries that are not padding
    left: int               # padding keys on the left


class _Layout(NamedTuple):
    """Indices that gather the rows of all blocks; q is viewed as (N·K, G·C), k and v as (N·K, C)."""

    parts: list[tuple[int, int, int, Tensor]]   # each batched product: blocks times K, queries b, keys m, mask (b·G, m)
    queries: Tensor         # laid-out row → row of q
    padding: Tensor         # the laid-out rows of padding queries
    back: Tensor            # row of q → laid-out row
    keys: Tensor            # laid-out row → row of k and v
    bags: Tensor            # for each row of k in turn, the laid-out rows that are copies of it and not padding
    starts: Tensor          # row of k → where its copies begin in `bags`


def _blocks(lengths: Sequence[int], parents: Sequence[int]) -> Iterator[_Block]:
    documents: list[np.ndarray] = []                                            # token indices, those of parents first
    begin = 0
    for length, parent in zip(lengths, parents, strict=True):
        segment = np.arange(begin, begin + length)
        document = segment if parent < 0 else np.concatenate((documents[parent], segment))
        for start in range(len(document) - length, len(document), BLOCK):
            queries = document[start : start + BLOCK]
            left, right = -start % STEP, -len(queries) % STEP
            padded = np.concatenate((queries, np.full(right, begin)))
            yield _Block(padded, np.concatenate((np.full(left, begin), document[:start], padded)), len(queries), left)
        documents.append(document)
        begin += length


def _layout(blocks: list[_Block], N: int, K: int, G: int, dtype: torch.dtype, device: torch.device) -> _Layout:
    """Lay the blocks out for G query heads to each of K key/value heads."""
    by_size: dict[tuple[int, int, int], list[_Block]] = defaultdict(list)
    for block in blocks:
        by_size[len(block.queries), len(block.keys), block.left].append(block)
    parts, blocks = [], []
    for (b, m, left), group in sorted(by_size.items()):
        # (b·G, m): 0 where row i·G + g, which is query i of head g, sees a key, else −∞
        mask = torch.full((b, m), float("-inf"), dtype=dtype, device=device).triu_(m - b + 1)
        mask[:, :left] = float("-inf")
        mask = mask.repeat_interleave(G, 0)
        most = max(1, CELLS // (K * G * b * m))                                 # blocks per product
        parts += [(K * len(group[start : start + most]), b, m, mask) for start in range(0, len(group), most)]
        blocks += group
    queries, real = _rows([(x.queries, 0, x.size) for x in blocks], K)
    back = np.empty(N * K, dtype=np.int64)
    back[queries[real]] = np.flatnonzero(real)
    keys, seen = _rows([(x.keys, x.left, len(x.keys) - len(x.queries) + x.size) for x in blocks], K)
    bags = np.flatnonzero(seen)[np.argsort(keys[seen], kind="stable")]
    starts = np.searchsorted(np.sort(keys[seen]), np.arange(N * K))
    return _Layout(parts, *(torch.from_numpy(x).to(device, non_blocking=True)
                            for x in (queries, np.flatnonzero(~real), back, keys, bags, starts)))


def _rows(blocks: list[tuple[np.ndarray, int, int]], K: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row token·K + head of each token of the blocks, head by head, and which rows are not padding.

    A block is its token indices and the bounds within which they are not padding.
    """
    heads = np.arange(K)[:, None]
    rows = [(tokens * K + heads).ravel() for tokens, *_ in blocks]
    real = [np.tile((begin <= np.arange(len(tokens))) & (np.arange(len(tokens)) < end), K)
            for tokens, begin, end in blocks]
    return np.concatenate(rows), np.concatenate(real)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, layout: _Layout) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.layout = layout
        q_rows, k_rows, v_rows = _laid_out(layout, q, k, v)
        o_rows = torch.empty_like(q_rows)
        p_space = _space(layout, q)
        for mask, (q_part, o_part), (k_part, v_part) in _parts(layout, (q_rows, o_rows), (k_rows, v_rows)):
            torch.bmm(_weights(q_part, k_part, mask, p_space), v_part, out=o_part)      # (n·K, b·G, m)·(n·K, m, C)
        return o_rows.index_select(0, layout.back).view_as(q)

    @staticmethod
    @once_differentiable
    def backward(ctx, do: Tensor):
        q, k, v = ctx.saved_tensors
        layout, scale = ctx.layout, q.shape[-1] ** -0.5
        q_rows, k_rows, v_rows = _laid_out(layout, q, k, v)
        do_rows = do.reshape(k.shape[0] * k.shape[1], -1).index_select(0, layout.queries)
        do_rows.index_fill_(0, layout.padding, 0)
        dq_rows, dk_rows, dv_rows = (torch.empty_like(x) for x in (q_rows, k_rows, v_rows))
        p_space, dp_space = _space(layout, q), _space(layout, q)
        of_queries, of_keys = (q_rows, do_rows, dq_rows), (k_rows, v_rows, dk_rows, dv_rows)
        for mask, (q_part, do_part, dq), (k_part, v_part, dk, dv) in _parts(layout, of_queries, of_keys):
            p = _weights(q_part, k_part, mask, p_space)                         # P (n·K, b·G, m)
            torch.bmm(p.transpose(1, 2), do_part, out=dv)
            dp = torch.bmm(do_part, v_part.transpose(1, 2), out=dp_space[: p.numel()].view_as(p))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype, grad_input=dp)
            torch.bmm(ds.transpose(1, 2), q_part, out=dk)
            torch.bmm(ds, k_part, out=dq)
        dq = dq_rows.index_select(0, layout.back).view_as(q)
        dk, dv = (torch.embedding_bag(x, layout.bags, layout.starts)[0].view_as(k) for x in (dk_rows, dv_rows))
        return dq.mul_(scale), dk.mul_(scale), dv, None


def _laid_out(layout: _Layout, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the rows of all blocks: of q (N, H, C) as (…, G·C), of k and v (N, K, C) as (…, C)."""
    N, K, C = k.shape
    k_rows, v_rows = (x.reshape(N * K, C).index_select(0, layout.keys) for x in (k, v))
    return q.reshape(N * K, -1).index_select(0, layout.queries), k_rows, v_rows


def _parts(layout: _Layout, of_queries: tuple[Tensor, ...],
           of_keys: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, list[Tensor], list[Tensor]]]:
    """Yield the mask of each batched product, and its rows of every array as (n·K, b·G, C) or (n·K, m, C)."""
    width = of_keys[0].shape[-1]
    q_end = k_end = 0
    for count, b, m, mask in layout.parts:
        q_start, q_end = q_end, q_end + count * b
        k_start, k_end = k_end, k_end + count * m
        yield (mask, [x[q_start:q_end].view(count, -1, width) for x in of_queries],
               [x[k_start:k_end].view(count, -1, width) for x in of_keys])


def _space(layout: _Layout, q: Tensor) -> Tensor:
    """Allocate room for the scores of the largest product; all share it, since fresh memory is slow."""
    return q.new_empty(max(count * mask.numel() for count, *_, mask in layout.parts))


def _weights(q: Tensor, k: Tensor, mask: Tensor, space: Tensor) -> Tensor:
    """Write the attention weights into `space`: q (n·K, b·G, C), k (n·K, m, C), mask (b·G, m) → (n·K, b·G, m)."""
    mask = mask.expand(len(q), -1, -1)
    scores = space[: mask.numel()].view(mask.shape)
    torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5, out=scores)
    return torch.softmax(scores, -1, out=scores)


@cache
def _varlen_attn() -> tuple[Callable, bool] | None:
    """Return PyTorch's function and whether it takes grouped queries; None if this version lacks what is needed.

    PyTorch 2.10 added it, 2.11 its `window_size`, and a later version grouped queries.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = signature(varlen_attn).parameters
    return (varlen_attn, "enable_gqa" in parameters) if "window_size" in parameters else None


def varlen_fits(dtype: torch.dtype, device: torch.device, width: int) -> bool:
    """Whether `varlen_attention` can be used: on a GPU, in half precision, with heads of 8, 16, … 256 numbers."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and width % 8 == 0 and width <= 256 and _varlen_attn() is not None


def bounds_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the begin of each document and the end of the last one, int32 (documents + 1,)."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, longest_q: int,
                     longest_k: int) -> Tensor:
    """Attend with q (N, H, C) over k, v (M, K, C); returns (N, H, C), with a gradient. Only if `varlen_fits`.

    Document i has queries q_bounds[i] … q_bounds[i+1] and keys k_bounds[i] … k_bounds[i+1]. Its queries are the last of
    its tokens, and each sees the keys up to its own.
    """
    assert (function := _varlen_attn()) is not None
    attend, takes_groups = function
    group = q.shape[1] // k.shape[1]
    options = {"enable_gqa": group > 1} if takes_groups else {}
    if group > 1 and not takes_groups:
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    return attend(q, k, v, q_bounds, k_bounds, longest_q, longest_k, window_size=(-1, 0), **options)
