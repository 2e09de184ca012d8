"""Every operation of kernels/ beside its plain twin: seconds and memory, forward and backward, at the 135M model's sizes.

    python benchmarks/operations.py

1024 packed tokens in 8 documents, half of them targets; 32 rows of 256 slots for attention over the cache. The two take
turns; times are medians, the ratio is the plain form's over the fast one's. Memory is what autograd keeps from the
forward pass for the backward; attention over the cache has no backward.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sdft.kernels.attention import causal_attention, causal_attention_plain
from sdft.kernels.cached_attention import cache_bias, cached_attention, cached_attention_plain
from sdft.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_plain
from sdft.kernels.lora_linear import lora_linear, lora_linear_plain
from sdft.kernels.rms_norm import rms_norm, rms_norm_plain
from sdft.kernels.rope import rope, rope_plain
from sdft.kernels.swiglu import swiglu, swiglu_plain
from sdft.model.io.loading import as_dtype

N, D, F, H, K, C, V, R = 1024, 576, 1536, 9, 3, 64, 49152, 8
DOCUMENTS = [N // 8] * 8
ROWS, SLOTS = 32, 256
DTYPE = as_dtype("auto")


def given(*shape: int, learned: bool = True, dtype: torch.dtype = DTYPE) -> Tensor:
    """A random tensor; `learned` ones get a gradient, as in LoRA training."""
    return torch.randn(*shape, dtype=dtype).mul_(0.1).requires_grad_(learned)


def cases() -> dict[str, tuple[Callable, Callable, tuple]]:
    """name → (fast form, plain twin, their arguments)."""
    angles = given(N, C, learned=False)
    labels = torch.arange(N // 2) * 7
    attention = (given(N, H, C), given(N, K, C), given(N, K, C), DOCUMENTS)
    cached = (given(ROWS, 1, H, C, learned=False), given(ROWS, K, SLOTS, C, learned=False),
              given(ROWS, K, SLOTS, C, learned=False), torch.full((ROWS, 1), SLOTS - 1))
    bias = cache_bias(cached[3], SLOTS, H // K, DTYPE)
    return {
        "rms_norm": (rms_norm, rms_norm_plain, (given(N, D), given(D, learned=False), 1e-5)),
        "rope": (rope, rope_plain, (given(N, H, C), angles.cos(), angles.sin())),
        "swiglu": (swiglu, swiglu_plain, (given(N, F), given(N, F))),
        "lora_linear": (lora_linear, lora_linear_plain,
                        (given(N, D), given(D, D, learned=False), None, given(R, D, dtype=torch.float32),
                         given(D, R, dtype=torch.float32), 2.0)),
        "attention": (causal_attention, causal_attention_plain, attention),
        "linear_cross_entropy": (linear_cross_entropy, linear_cross_entropy_plain,
                                 (given(N // 2, D), given(V, D, learned=False), labels)),
        "cached_attention": (lambda q, keys, values, _: cached_attention(q, keys, values, bias),
                             cached_attention_plain, cached),
    }


def once(function: Callable, arguments: tuple) -> tuple[float, int]:
    """Seconds of one pass there and, where something is learned, back; bytes kept in between."""
    learned = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function(*arguments)
    if learned:
        torch.autograd.grad(output, learned, torch.ones_like(output))
    return time.perf_counter() - started, sum(seen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    result = {"benchmark": "operations", "dtype": str(DTYPE), "threads": torch.get_num_threads(), "kernels": {}}
    print(f"{DTYPE}\n{'':24}{'fast, ms':>10}{'plain, ms':>11}{'ratio':>7}{'kept, MB':>10}{'plain, MB':>11}")
    for name, (fast, plain, arguments) in cases().items():
        rounds = [(once(fast, arguments), once(plain, arguments)) for _ in range(repeats + 1)][1:]     # the first warms up
        ms = [1000 * statistics.median(each[side][0] for each in rounds) for side in (0, 1)]
        kept = [rounds[0][side][1] / 1e6 for side in (0, 1)]
        ratio = statistics.median(theirs[0] / ours[0] for ours, theirs in rounds)
        print(f"{name:24}{ms[0]:>10.2f}{ms[1]:>11.2f}{ratio:>7.2f}{kept[0]:>10.1f}{kept[1]:>11.1f}")
        result["kernels"][name] = {"ms": round(ms[0], 3), "plain_ms": round(ms[1], 3), "ratio": round(ratio, 3),
                                   "kept_mb": round(kept[0], 2), "plain_kept_mb": round(kept[1], 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
