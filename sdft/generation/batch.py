"""The tensors of a batch that is being decoded, and the three operations that write tokens: prefill, step, verify.

Buffers keep their addresses and a step never waits for the device, so that it can be captured as a CUDA graph.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdft.generation.cache import DecodeAttention, KVCache
from sdft.generation.fast.cuda import prefill_attention
from sdft.generation.fast.drafts import accepted
from sdft.generation.fast.fused import fused
from sdft.generation.fast.prepacked import prepacked
from sdft.generation.sampling import Sampling, choose
from sdft.model.llama import Llama

PREFILL_TOKENS = 2048          # prompts are prefilled together up to about this many tokens


class Batch:
    """Sequences that are decoded together: the model, their cache, and one number of each sequence in every buffer."""

    def __init__(self, model: Llama, sampling: Sampling, capacities: Sequence[int], longest: int):
        """capacities: the slots of each sequence, in descending order; longest: the largest limit of a response."""
        B, device = len(capacities), model.device
        self.device, self.sampling = device, sampling
        self.model = fused(model) if device.type == "cuda" else prepacked(model)        # the same function, faster
        self.prefill_attention = prefill_attention(model)
        self.cache = KVCache(model.config, capacities, model.dtype, device)
        self.prefix = 0                                 # slots that all prompts share, filled in every sequence
        # (B,) each: every sequence's newest token, its position, and the number of tokens in the response
        self.tokens, self.positions, self.counts = (torch.zeros(B, dtype=torch.long, device=device) for _ in range(3))
        self.uniforms = torch.zeros(B, longest, device=device)              # one random number for each token
        self.seen: Tensor | None = None                                     # (B, V): the tokens in each sequence
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(B, model.config.vocab_size, dtype=torch.bool, device=device)

    def share(self, prefix: list[int]) -> None:
        """Compute the prefix of all prompts once, and copy its keys and values to every sequence.

        This saves 1.5 % of a run in bf16 and at most 7 % in fp32 (two CPU cores, estimated).
        """
        self._prefill([prefix], [0])
        self.cache.spread(len(prefix))
        self.prefix = len(prefix)

    def begin(self, indices: list[int], prompts: list[list[int]], uniforms: list[Tensor] | None) -> list[int]:
        """Prefill prompts after the shared prefix, and choose each response's first token."""
        x = self._prefill([prompt[self.prefix:] for prompt in prompts], indices)                            # (n, D)
        for number, (i, prompt) in enumerate(zip(indices, prompts, strict=True)):
            if uniforms is not None:
                self.uniforms[i, : len(uniforms[number])] = uniforms[number].to(self.device)
            if self.seen is not None:
                self.seen[i].zero_()[torch.tensor(prompt, device=self.device)] = True
        index = torch.tensor(indices, device=self.device)
        self.positions[index] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        self.counts[index] = 0
        return self._choose(index, x).tolist()

    def _prefill(self, documents: list[list[int]], indices: list[int]) -> Tensor:
        """Write packed documents after the prefix of their sequences; return their last hidden states (n, D)."""
        prefix, lengths = self.prefix, [len(document) for document in documents]
        tokens = torch.tensor([token for document in documents for token in document], device=self.device)  # (N,)
        positions = torch.cat([torch.arange(prefix, prefix + length) for length in lengths]).to(self.device)
        attend = self.prefill_attention(self.cache, indices, lengths, prefix)
        ends = torch.tensor(lengths, device=self.device).cumsum(0) - 1                                      # (n,)
        return self.model.hidden(tokens, positions, attend, ends)

    def step(self, ends: Sequence[int]) -> Tensor:
        """Write one more token in each of the first n sequences: (n,). Sequence b ends before slot ends[b]."""
        n = len(ends)
        attend = DecodeAttention(self.cache, self.positions[:n], ends)
        x = self.model.hidden(self.tokens[:n], self.positions[:n], attend)                                  # (n, D)
        return self._choose(torch.arange(n, device=self.device), x)

    def verify(self, drafts: list[list[int]], starts: list[int]) -> list[list[int]]:
        """Take a step over each sequence's newest token, at starts[b], and its draft; return the choices to keep.

        Slots of rejected tokens are not cleared: they come after the sequence's end and are overwritten.
        """
        n, counts, newest = len(drafts), [1 + len(draft) for draft in drafts], self.tokens[: len(drafts)].tolist()
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        sequences, positions, tokens = torch.tensor(                                                        # (N,) each
            [(b, start + i, token) for b, start in enumerate(starts)
             for i, token in enumerate((newest[b], *drafts[b]))], device=self.device).unbind(1)
        x = self.model.hidden(tokens, positions, DecodeAttention(self.cache, positions, ends, counts))      # (N, D)
        draws = self.uniforms[sequences, self.counts[sequences] + positions - self.positions[sequences]]    # (N,)
        choices = choose(self.model.head(x), self.sampling, draws).split(counts)
        kept = [accepted(draft, choice.tolist()) for draft, choice in zip(drafts, choices, strict=True)]
        self.tokens[:n] = torch.tensor([tokens[-1] for tokens in kept], device=self.device)
        written = torch.tensor([len(tokens) for tokens in kept], device=self.device)
        self.positions[:n] += written
        self.counts[:n] += written
        return kept

    def _choose(self, index: Tensor, x: Tensor) -> Tensor:
        """Choose the next token of the sequences `index` (n,) from x (n, D), and make it each sequence's newest."""
        uniforms = self.uniforms[index, self.counts[index]]                                                 # (n,)
        seen = None if self.seen is None else self.seen[index]                                              # (n, V)
        tokens = choose(self.model.head(x), self.sampling, uniforms, seen)                                  # (n,)
        if self.seen is not None:
            self.seen.index_put_((index, tokens), self.seen.new_ones(()))   # `= True` would copy it from the host
        self.tokens[index] = tokens
        self.positions[index] += 1
        self.counts[index] += 1
        return tokens

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens to another index of the batch."""
        self.cache.copy(source, target, length)
        for buffer in (self.tokens, self.positions, self.counts, self.uniforms, self.seen):
            if buffer is not None:
                buffer[target] = buffer[source]
