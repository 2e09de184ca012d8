"""The memory of generation, tensor by tensor, and the number of sequences that fits into the free memory of a GPU."""
from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch

from sdft.generation.batch import PREFILL_TOKENS
from sdft.generation.cache import GPU_GROUP, GROUP, blocks
from sdft.generation.fast.cuda import PROMPT_TOKENS
from sdft.generation.fast.drafts import MOST
from sdft.generation.fast.fused import LARGEST
from sdft.model.config import LlamaConfig
from sdft.model.llama import Llama

FP32 = 4                # bytes of the softmax
USED = 0.9              # share of the free memory that a plan may fill: captured steps and the allocator need the rest


def generation_memory(config: LlamaConfig, weights: int, size: int, lengths: Sequence[int], batch_size: int,
                      on_cpu: bool = True) -> dict[str, int]:
    """Bytes of generation; lengths: the tokens of each prompt with its longest answer."""
    c = config
    K, C, L, D, F = c.num_key_value_heads, c.head_dim, c.num_hidden_layers, c.hidden_size, c.intermediate_size
    longest = sorted(lengths, reverse=True)[:batch_size]
    most = max(longest, default=0)
    group, together = (GROUP, PREFILL_TOKENS) if on_cpu else (GPU_GROUP, PROMPT_TOKENS)
    slots = sum(blocks(longest[first]) * len(longest[first : first + group]) for first in range(0, len(longest), group))
    # A second copy: on a CPU of all weights, prepacked; on a GPU of the fused ones (sdft/generation/fast/).
    copied = weights if on_cpu else L * D * ((c.num_attention_heads + 2 * K) * C + 2 * F)
    return {"weights": (weights + copied * (weights * size <= LARGEST)) * size,
            "cache": slots * 2 * L * K * C * size,
            "head": len(longest) * c.vocab_size * max(size + FP32, (1 + MOST) * size * on_cpu),   # drafts: logits too
            "working space": max(together, most) * (3 * F + 4 * D + most) * size}                   # most: the masks


def largest_fit(needed: Callable[[int], Mapping[str, int]], limit: int, room: float) -> int:
    """The largest n ≤ `limit` whose needed(n), which grows with n, is at most `room` bytes; 0 where none is."""
    return bisect_right(range(1, limit + 1), room, key=lambda n: sum(needed(n).values()))


def free_memory(device: torch.device | str) -> int | None:
    """Free bytes of a GPU, with those that PyTorch keeps for later tensors; None for a CPU and for a missing GPU."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def fitting_batch(config: LlamaConfig, weights: int, size: int, lengths: Sequence[int], batch_size: int,
                  free: int) -> int:
    """The number of sequences, from 1 to `batch_size`, whose memory fits into `free` bytes of a GPU, with the weights.

    `lengths` are those of all prompts with their longest answers. A smaller number is reported in a line on stderr.
    """
    def needed(n: int) -> dict[str, int]:
        return generation_memory(config, weights, size, lengths, n, on_cpu=False)

    fitting = max(1, largest_fit(needed, batch_size, USED * free))
    if fitting < batch_size:
        _report(fitting, batch_size, round(free / 1e9))
    return fitting


@cache                  # once, though every suite and every step on the student's own answers generates
def _report(fitting: int, batch_size: int, gigabytes: int) -> None:
    print(f"generating {fitting} sequences at a time instead of {batch_size}: more do not fit into {gigabytes} GB",
          file=sys.stderr)


def batch_size_for(model: Llama, lengths: Sequence[int], batch_size: int) -> int:
    """`batch_size`, or on a GPU the number of sequences that fits next to what is allocated already."""
    batch_size, free = min(batch_size, len(lengths)), free_memory(model.device)
    if free is None or not lengths:
        return batch_size
    weights, size = sum(weight.numel() for weight in model.parameters()), model.dtype.itemsize
    return fitting_batch(model.config, weights, size, lengths, batch_size, free + weights * size)
