"""What a run will need, before it starts: memory by group of tensors, tokens, floating-point operations, time.

Everything follows from the model's configuration and the settings; no weight is read. Memory is counted tensor by tensor
as the code allocates them; operations are those of the matrix products, which are nearly all. Python, torch and the
tokenizer are not included. On a CPU the allocator cannot reuse all the memory of freed tensors, since aligned blocks of
glibc seldom fit the gaps of others; `KEPT` is that share of the activations (measured: 0.64 to 0.91 on two cores, see
tests/test_plan.py).

    sdft plan --task gsm8k --data FOLDER
"""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sdft.generation.cache import GPU_GROUP, GROUP, blocks
from sdft.generation.engine import PREFILL_TOKENS
from sdft.generation.fast.cuda import PROMPT_TOKENS
from sdft.generation.fast.drafts import MOST
from sdft.generation.fast.fused import LARGEST
from sdft.kernels.attention import BLOCK, CELLS
from sdft.kernels.linear_cross_entropy import CACHED, ROWS
from sdft.model.batches import STEP
from sdft.model.config import LlamaConfig
from sdft.model.io.loading import as_device
from sdft.model.llama import Llama
from sdft.model.lora import match_targets
from sdft.train.settings import TrainSettings

FP32 = 4                                # bytes of the masters, AdamW's moments, the softmax
KEPT = 0.8                              # gaps that the CPU's allocator cannot fill, as a share of the activations


@dataclass(frozen=True)
class Shape:
    """The sizes that a plan needs: parameters of the layers, of embedding and head, and of the adapter."""

    config: LlamaConfig
    layers: int
    embeddings: int
    adapter: int
    behind: int                         # those of `layers` after the last attention: only target tokens need them
    saves: dict[str, bool]              # whether an adapter saves the input of these products for its backward
    first: int                          # the first trained layer: no gradient is computed below it

    @property
    def weights(self) -> int:
        return self.layers + self.embeddings


def shape_of(config: LlamaConfig, settings: TrainSettings) -> Shape:
    """Count a model's parameters without allocating them (SdftError for impossible targets and ranks)."""
    with torch.device("meta"):
        model = Llama(config)
    parameters = dict(model.named_parameters())
    in_layers = sum(weight.numel() for name, weight in parameters.items() if ".layers." in name)
    last = f"model.layers.{config.num_hidden_layers - 1}."
    behind = sum(weight.numel() for name, weight in parameters.items()
                 if name.startswith((f"{last}self_attn.o_proj", f"{last}mlp")))
    rest = sum(weight.numel() for weight in parameters.values()) - in_layers
    if settings.method == "full":
        return Shape(config, in_layers, rest, 0, behind, dict.fromkeys(("attention", "o", "mlp", "down"), True), 0)
    names = match_targets(model, settings.lora_targets, settings.lora_rank)
    adapter = sum(settings.lora_rank * sum(model.get_submodule(name).weight.shape) for name in names)
    kinds = {name.rpartition(".")[2] for name in names}
    saves = {"attention": bool(kinds & {"q_proj", "k_proj", "v_proj"}), "o": "o_proj" in kinds,
             "mlp": bool(kinds & {"gate_proj", "up_proj"}), "down": "down_proj" in kinds}
    return Shape(config, in_layers, rest, adapter, behind, saves, min(int(name.split(".")[2]) for name in names))


def training_memory(shape: Shape, settings: TrainSettings, size: int, tokens: int, targets: int, longest: int,
                    on_cpu: bool = True) -> dict[str, int]:
    """Bytes of training on micro-batches of `tokens` tokens, `targets` of them targets; the longest record has `longest`.

    size: bytes of a weight. On the CPU both numbers are rounded up (`Batch.filled`). The activations are what each layer
    saves for its backward (kernels/): both norms their input, attention q, k and v, the gate its two factors, an adapter
    the input of its product.
    """
    c, full, varlen = shape.config, settings.method == "full", not on_cpu and size < FP32     # kernels/varlen.py
    batched = tokens > longest
    tokens, targets = (n + -n % STEP if on_cpu else n for n in (tokens, targets))
    D, F, V = c.hidden_size, c.intermediate_size, c.vocab_size
    HC, KC = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    saves = shape.saves
    before = D + HC + 2 * KC + D * saves["attention"] + HC * varlen + (HC + KC if c.qk_norm else 0)
    behind = D + 2 * F + HC * saves["o"] + D * saves["mlp"] + F * saves["down"]     # in the last layer: of targets alone
    layers = c.num_hidden_layers - shape.first
    attended = layers if saves["attention"] else layers - 1              # the first layer's needs no gradient
    kept = size * (tokens * layers * D if settings.gradient_checkpointing
                   else tokens * attended * before + (tokens * (layers - 1) + targets) * behind)
    layer = tokens * size * (before + behind if settings.gradient_checkpointing else 0)    # recomputed
    backward = tokens * size * (4 * F + 2 * D)                                   # of the gate: dy, dy·up, dgate, dup
    block = c.num_attention_heads * min(longest, BLOCK) * longest                # scores of one block
    scores = 2 * size * (block * max(1, CELLS // block) if batched else block)                  # P and dP
    copies = tokens * size * (4 * HC + 4 * KC * (1 + longest // (2 * BLOCK)))    # q, dq, do and its sum; k, v, dk, dv
    head, trained = min(ROWS, targets), shape.weights if full else shape.adapter
    masters = trained * FP32 * 4 if size != FP32 or not full else trained * FP32 * 3
    return {"weights": shape.weights * size * (2 if full else 1),                # full: and the base weights, for ‖ΔW‖
            "trained, gradients, AdamW": masters,
            "activations": kept + layer,
            "head and loss": V * (head * size + (CACHED if on_cpu else head) * FP32) + 2 * targets * D * size,
            "working space": max(backward, 0 if varlen else scores + copies),
            **({"kept by the allocator": round(KEPT * (kept + layer))} if on_cpu else {})}


def generation_memory(config: LlamaConfig, weights: int, size: int, lengths: Sequence[int], rows: int,
                      on_cpu: bool = True) -> dict[str, int]:
    """Bytes of answering prompts, `rows` at a time; lengths: the tokens of each prompt and its longest answer."""
    c = config
    K, C, L, D, F = c.num_key_value_heads, c.head_dim, c.num_hidden_layers, c.hidden_size, c.intermediate_size
    longest = sorted(lengths, reverse=True)[:rows]
    most = max(longest, default=0)
    group, together = (GROUP, PREFILL_TOKENS) if on_cpu else (GPU_GROUP, PROMPT_TOKENS)
    slots = sum(blocks(longest[first]) * len(longest[first : first + group]) for first in range(0, len(longest), group))
    # On a CPU all weights once more, reordered (sdft/generation/fast/prepacked.py); on a GPU those of joined products (gpu.py).
    copied = weights if on_cpu else L * D * ((c.num_attention_heads + 2 * K) * C + 2 * F)
    return {"weights": (weights + copied * (weights * size <= LARGEST)) * size,
            "cache": slots * 2 * L * K * C * size,
            "head": len(longest) * c.vocab_size * max(size + FP32, (1 + MOST) * size * on_cpu),      # drafts are verified in it
            "working space": max(together, most) * (3 * F + 4 * D + most) * size}      # most: of masks of prompts, at most


def training_flops(shape: Shape, tokens: int, targets: int, pairs: int, full: bool = False) -> float:
    """Of the products, forward and backward. pairs: how many (query, key) pairs attention computes, in all."""
    c = shape.config
    attention = 6 * 2 * pairs * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    products = shape.layers * tokens - shape.behind * (tokens - targets) + c.vocab_size * c.hidden_size * targets
    return (6 if full else 4) * products + attention


def generation_flops(shape: Shape, prompt: int, written: int, pairs: int) -> float:
    """Of the products: every token once through the layers, a prompt's not to the end of the last, the written ones
    through the head."""
    c = shape.config
    attention = 2 * 2 * pairs * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    products = shape.layers * (prompt + written) - shape.behind * prompt + c.vocab_size * c.hidden_size * written
    return 2 * products + attention


def matmul_peak(dtype: torch.dtype, device: str | torch.device = "cpu", size: int | None = None,
                clock: Callable[[], float] = time.perf_counter) -> float:
    """Best of five products of two square matrices, in FLOP/s.

    size: of their sides; None: so that it takes no time. Raises SdftError where the device cannot be used here.
    """
    device = as_device(device)
    size = size or (512 if device.type == "cpu" else 4096)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = clock()
        (a @ b)[0, 0].item()                        # which waits for the product, on any device
        seconds.append(clock() - started)
    return 2 * size**3 / min(seconds)


def largest_fit(needed, limit: int, room: float) -> int:
    """The largest n ≤ `limit` for which needed(n), growing with n, is at most `room` bytes; 0 where none is."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(needed(middle).values()) <= room else (low, middle - 1)
    return low
