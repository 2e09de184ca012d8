"""Time and memory of every operation of kernels/ and of its plain twin, at the sizes of the 135M model.

    python benchmarks/operations.py

The inputs are 1024 packed tokens in 8 documents, half of them targets; for attention over the cache, 32 sequences of
256 slots. The two forms take turns. Times are medians of a forward and a backward pass; the ratio is plain over fast.
Memory is the size of the tensors that autograd keeps for the backward pass. Attention over the cache has none.
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
from sdft.model.io.checkpoints import as_dtype

N, D, F, H, K, C, V, R = 1024, 576, 1536, 9, 3, 64, 49152, 8
DOCUMENTS = [N // 8] * 8
B, SLOTS = 32, 256
DTYPE = as_dtype("auto")


def random(*shape: int, trained: bool = True, dtype: torch.dtype = DTYPE) -> Tensor:
    """A random tensor, with a gradient where it is `trained`: frozen weights have none, as in LoRA training."""
    return torch.randn(*shape, dtype=dtype).mul_(0.1).requires_grad_(trained)


def cases() -> dict[str, tuple[Callable, Callable, tuple]]:
    """name → (fast form, plain twin, their arguments)."""
    angles = random(N, C, trained=False)
    labels = torch.arange(N // 2) * 7
    attention = (random(N, H, C), random(N, K, C), random(N, K, C), DOCUMENTS)
    cached = (random(B, 1, H, C, trained=False), random(B, K, SLOTS, C, trained=False),
              random(B, K, SLOTS, C, trained=False), torch.full((B, 1), SLOTS - 1))
    bias = cache_bias(cached[3], SLOTS, H // K, DTYPE)
    return {
        "rms_norm": (rms_norm, rms_norm_plain, (random(N, D), random(D, trained=False), 1e-5)),
        "rope": (rope, rope_plain, (random(N, H, C), angles.cos(), angles.sin())),
        "swiglu": (swiglu, swiglu_plain, (random(N, F), random(N, F))),
        "lora_linear": (lora_linear, lora_linear_plain,
                        (random(N, D), random(D, D, trained=False), None, random(R, D, dtype=torch.float32),
                         random(D, R, dtype=torch.float32), 2.0)),
        "attention": (causal_attention, causal_attention_plain, attention),
        "linear_cross_entropy": (linear_cross_entropy, linear_cross_entropy_plain,
                                 (random(N // 2, D), random(V, D, trained=False), labels)),
        "cached_attention": (lambda q, keys, values, _: cached_attention(q, keys, values, bias),
                             cached_attention_plain, cached),
    }


def once(function: Callable, arguments: tuple) -> tuple[float, int]:
    """Seconds of one forward pass, and of a backward pass where an argument has a gradient; bytes kept in between."""
    trained = [x for x in arguments if isinstance(x, Tensor) and x.requires_grad]
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function(*arguments)
    if trained:
        torch.autograd.grad(output, trained, torch.ones_like(output))
    return time.perf_counter() - started, sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="Repetitions of each operation (default: 9).")
    repeats = parser.parse_args().repeats
    result = {"benchmark": "operations", "dtype": str(DTYPE), "threads": torch.get_num_threads(), "kernels": {}}
    print(f"{DTYPE}\n{'':24}{'fast, ms':>10}{'plain, ms':>11}{'ratio':>7}{'kept, MB':>10}{'plain, MB':>11}")
    for name, (fast, plain, arguments) in cases().items():
        rounds = [(once(fast, arguments), once(plain, arguments)) for _ in range(repeats + 1)][1:]  # the first warms up
        ms = [1000 * statistics.median(each[side][0] for each in rounds) for side in (0, 1)]
        kept = [rounds[0][side][1] / 1e6 for side in (0, 1)]
        ratio = statistics.median(slow[0] / quick[0] for quick, slow in rounds)
        print(f"{name:24}{ms[0]:>10.2f}{ms[1]:>11.2f}{ratio:>7.2f}{kept[0]:>10.1f}{kept[1]:>11.1f}")
        result["kernels"][name] = {"ms": round(ms[0], 3), "plain_ms": round(ms[1], 3), "ratio": round(ratio, 3),
                                   "kept_mb": round(kept[0], 2), "plain_kept_mb": round(kept[1], 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
