"""Greedy decoding of one prompt, written to be read first: without a cache, then with one.

    prompt ──model──→ logits of the next token ──argmax──→ token, appended to the sequence, until a stop token or the
    limit

The engine (engine.py) and its fast forms must return exactly these tokens in fp32; tests/test_plain.py compares them.
"""
from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from sdft.model.llama import Llama


@torch.inference_mode()
def decode_without_cache(model: Llama, prompt: list[int], max_new_tokens: int,
                         stop_ids: Collection[int] = ()) -> list[int]:
    """Return the response to `prompt`, without its stop token; every step computes the whole sequence again."""
    response: list[int] = []
    while len(response) < min(max_new_tokens, model.config.context_length - len(prompt)):
        logits = model(torch.tensor([prompt + response], device=model.device))                  # (1, T) → (1, T, V)
        token = int(logits[0, -1].argmax())
        if token in stop_ids:
            break
        response.append(token)
    return response


class PlainCache:
    """The keys and values of every token so far, layer by layer; calling it attends with the newest tokens."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append k and v (N, K, C) of N new tokens, and attend with their q (N, H, C) over all T tokens: (N, H, C)."""
        if layer in self.layers:
            k, v = (torch.cat(pair) for pair in zip(self.layers[layer], (k, v), strict=True))   # (T, K, C)
        self.layers[layer] = k, v
        (N, H, C), (T, K, _) = q.shape, k.shape
        k, v = (x.repeat_interleave(H // K, 1).transpose(0, 1) for x in (k, v))                 # (H, T, C)
        scores = q.transpose(0, 1) @ k.transpose(1, 2) * C**-0.5                                # q·kᵀ/√C: (H, N, T)
        future = torch.ones(N, T, dtype=torch.bool, device=q.device).triu(1 + T - N)            # after token T − N + i
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return (weights @ v).transpose(0, 1)                                                    # (N, H, C)


@torch.inference_mode()
def decode_with_cache(model: Llama, prompt: list[int], max_new_tokens: int,
                      stop_ids: Collection[int] = ()) -> list[int]:
    """Return the same tokens; after the prompt, a step computes one token, which attends over the cache."""
    response: list[int] = []
    cache, new, start = PlainCache(), prompt, 0
    while len(response) < min(max_new_tokens, model.config.context_length - len(prompt)):
        positions = torch.arange(start, start + len(new), device=model.device)                  # (N,)
        x = model.hidden(torch.tensor(new, device=model.device), positions, cache)              # (N, D)
        token = int(model.head(x[-1]).argmax())                                                 # (D,) → (V,)
        if token in stop_ids:
            break
        response.append(token)
        new, start = [token], start + len(new)
    return response
