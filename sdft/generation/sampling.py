"""From logits to the next token: greedy, or sampled by temperature, top-k, top-p and repetition penalty.

The order and the meaning of the settings are transformers': first the penalty, on every token of the prompt and of the
response so far (Keskar et al. 2019, arXiv 1909.05858), then the temperature, then top-k (Fan et al. 2018,
arXiv 1805.04833), then top-p (Holtzman et al. 2019, arXiv 1904.09751).

A draw inverts the cumulative distribution at one uniform number. A record has its own generator, seeded by (seed, id),
and one number for each token, so its response does not depend on the other records of its batch.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sdft.errors import SdftError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 256             # limit of a response, which then finishes as "length"
    temperature: float = 0.0              # 0: greedy, always the most probable token
    top_k: int = 0                        # draw only from the k most probable tokens; 0: all
    top_p: float = 1.0                    # draw only from the most probable tokens that together reach this mass
    repetition_penalty: float = 1.0       # > 1 lowers the logit of every token already in the context
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0 (1 is off)"),
        }
        for name, (fine, expected) in wrong.items():
            if not fine:
                raise SdftError(f"{name} = {getattr(self, name)}: expected {expected}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def record_uniforms(seed: int, id: str, count: int) -> Tensor:
    """Return the record's `count` uniform numbers in [0, 1), one for each token of its response, fp32."""
    digest = hashlib.sha256(f"{seed}\n{id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(count, generator=generator)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive logits (n, V) of the tokens `seen` (n, V, bool) by `penalty`; multiply negative ones by it."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Return probabilities (n, k) to draw from, most probable first, and their token ids (n, k).

    Without top-k and top-p the probabilities are those of the whole vocabulary, in its order, and ids is None.
    Excluded tokens have probability 0; the sum need not be 1.
    """
    logits, ids = logits.float() / sampling.temperature, None                   # (n, V)
    if sampling.top_k:
        logits, ids = logits.topk(min(sampling.top_k, logits.shape[-1]))        # (n, k)
    elif sampling.top_p < 1:
        logits, ids = logits.sort(descending=True, stable=True)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities                       # mass of the more probable tokens
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0)
    return probabilities, ids


def most_probable(logits: Tensor) -> Tensor:
    """Return the id of the largest of logits (n, V), the first of equals: (n,)."""
    return logits.max(-1).indices


def choose(logits: Tensor, sampling: Sampling, uniforms: Tensor, seen: Tensor | None = None) -> Tensor:
    """Choose the next token of n sequences from their logits (n, V): ids (n,).

    uniforms (n,): each sequence's number for this token, unused when greedy. seen (n, V): True for the tokens of each
    sequence, needed only with a repetition penalty.
    """
    if seen is not None:
        logits = penalise(logits.float(), seen, sampling.repetition_penalty)
    if sampling.greedy:
        return most_probable(logits)
    probabilities, ids = candidates(logits, sampling)
    # In fp64, an fp32 number below 1 times the total stays below the total, so some token is always reached.
    reached = probabilities.cumsum(-1, dtype=torch.float64)                     # (n, k)
    index = (reached <= uniforms.double().unsqueeze(-1) * reached[:, -1:]).sum(-1, keepdim=True)    # (n, 1)
    return (index if ids is None else ids.gather(-1, index)).squeeze(-1)
