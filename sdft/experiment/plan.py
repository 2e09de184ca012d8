"""What a run will need, before it starts: memory by group of tensors, tokens, floating-point operations.

Everything follows from the model's configuration and the settings; no weight is read. Memory is counted tensor by
tensor as the code allocates them; operations are those of the matrix products, which are nearly all. Python, torch and
the tokenizer are not included. On a CPU the allocator cannot reuse all the memory of freed tensors, since aligned
blocks of glibc seldom fit the gaps of others; `KEPT` is that share of the activations, held by tests/test_plan.py.

    sdft plan --task gsm8k --data FOLDER
"""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from sdft.data.chat import training_example
from sdft.data.templates import get_template
from sdft.distill.rewriting import distill_prompt
from sdft.experiment.settings import Config
from sdft.generation.memory import FP32, fitting_batch, generation_memory, largest_fit
from sdft.kernels.attention import BLOCK, CELLS
from sdft.kernels.linear_cross_entropy import CACHED, ROWS
from sdft.model import tokenizer_at
from sdft.model.batches import STEP, may_share, trainable
from sdft.model.config import LlamaConfig
from sdft.model.io.checkpoints import as_device, as_dtype, load_config
from sdft.model.io.fetch import resolve
from sdft.model.io.gguf import GGUF, gguf_config
from sdft.model.llama import Llama
from sdft.model.lora import match_targets
from sdft.tasks import Task
from sdft.train.order import step_batches, steps_per_epoch
from sdft.train.settings import TrainSettings

KEPT = 0.8                              # gaps that the CPU's allocator cannot fill, as a share of the activations


class Plan(TypedDict):
    """What `sdft plan --json` prints."""

    parameters: int
    trained: int
    records: int
    epochs: int
    steps: int                          # of one arm
    tokens: dict[str, int]
    tflops: dict[str, float]            # stage → 10¹² operations
    bytes: dict[str, dict[str, int]]    # stage → group of tensors → bytes
    sequences: int                      # generated at the same time: on a GPU, those that fit
    largest_micro_batch: int            # tokens
    timetable: NotRequired[dict[str, float]]        # stage → seconds, by forecast.py; where the rates are known
    fits: NotRequired[dict[str, float]]


@dataclass(frozen=True)
class Shape:
    """The sizes that a plan needs: parameters of the layers, of embedding and head, and of the adapter."""

    config: LlamaConfig
    layers: int
    embeddings: int
    adapter: int
    after: int                         # those of `layers` after the last attention: only target tokens need them
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
    after = sum(weight.numel() for name, weight in parameters.items()
                if name.startswith((f"{last}self_attn.o_proj", f"{last}mlp")))
    rest = sum(weight.numel() for weight in parameters.values()) - in_layers
    if settings.method == "full":
        return Shape(config, in_layers, rest, 0, after, dict.fromkeys(("attention", "o", "mlp", "down"), True), 0)
    names = match_targets(model, settings.lora_targets, settings.lora_rank)
    shapes = [parameters[f"{name}.weight"].shape for name in names]                         # (O, D) each
    adapter = settings.lora_rank * sum(map(sum, shapes))
    kinds = {name.rpartition(".")[2] for name in names}
    saves = {"attention": bool(kinds & {"q_proj", "k_proj", "v_proj"}), "o": "o_proj" in kinds,
             "mlp": bool(kinds & {"gate_proj", "up_proj"}), "down": "down_proj" in kinds}
    return Shape(config, in_layers, rest, adapter, after, saves, min(int(name.split(".")[2]) for name in names))


def training_memory(shape: Shape, settings: TrainSettings, size: int, tokens: int, targets: int, longest: int,
                    on_cpu: bool = True) -> dict[str, int]:
    """Bytes of training on micro-batches of `tokens` tokens, `targets` of them targets; records have at most `longest`.

    size: bytes of a weight. On the CPU both numbers are rounded up (`Batch.filled`). The activations are what each
    layer saves for its backward (kernels/): both norms their input, attention q, k and v, the gate its two factors, an
    adapter the input of its product.
    """
    c, full, varlen = shape.config, settings.method == "full", not on_cpu and size < FP32     # kernels/attention.py
    batched = tokens > longest
    tokens, targets = (n + -n % STEP if on_cpu else n for n in (tokens, targets))
    D, F, V = c.hidden_size, c.intermediate_size, c.vocab_size
    HC, KC = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    saves = shape.saves
    before = D + HC + 2 * KC + D * saves["attention"] + HC * varlen + (HC + KC if c.qk_norm else 0)
    after = D + 2 * F + HC * saves["o"] + D * saves["mlp"] + F * saves["down"]    # in the last layer: of targets
    layers = c.num_hidden_layers - shape.first
    attended = layers if saves["attention"] else layers - 1              # the first layer's needs no gradient
    kept = size * (tokens * layers * D if settings.gradient_checkpointing
                   else tokens * attended * before + (tokens * (layers - 1) + targets) * after)
    layer = tokens * size * (before + after if settings.gradient_checkpointing else 0)    # recomputed
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


def training_flops(shape: Shape, tokens: int, targets: int, pairs: int, full: bool = False) -> float:
    """Operations of the products, forward and backward. pairs: the number of (query, key) pairs in attention."""
    c = shape.config
    attention = 6 * 2 * pairs * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    products = shape.layers * tokens - shape.after * (tokens - targets) + c.vocab_size * c.hidden_size * targets
    return (6 if full else 4) * products + attention


def generation_flops(shape: Shape, prompt: int, written: int, pairs: int) -> float:
    """Operations of the products. Prompt tokens need no MLP in the last layer; only generated tokens need the head."""
    c = shape.config
    attention = 2 * 2 * pairs * c.num_attention_heads * c.head_dim * c.num_hidden_layers
    products = shape.layers * (prompt + written) - shape.after * prompt + c.vocab_size * c.hidden_size * written
    return 2 * products + attention


def matmul_peak(dtype: torch.dtype, device: str | torch.device = "cpu", size: int | None = None,
                clock: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s of the best of five products of two square matrices (SdftError where the device cannot be used here)."""
    device = as_device(device)
    size = size or (512 if device.type == "cpu" else 4096)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = clock()
        (a @ b)[0, 0].item()                        # waits for the product on any device
        seconds.append(clock() - started)
    return 2 * size**3 / min(seconds)


def read_config(path: Path) -> LlamaConfig:
    """The configuration of the model in a folder or a GGUF file (SdftError where it cannot be read)."""
    return load_config(path) if path.is_dir() else gguf_config(GGUF(path))


def needs(config: Config, task: Task, memory: float | None = None, free: int | None = None) -> Plan:
    """Plan rewriting and training. What fits needs `memory`, in GB; free: bytes of a GPU without the model, where fewer
    sequences may fit than the settings say."""
    path = resolve(config.model.model)
    model_config, tokenizer = read_config(path), tokenizer_at(path)
    train, size = config.train.resolved(config.model.device), as_dtype(config.model.dtype, config.model.device).itemsize
    shape = shape_of(model_config, train)
    context = min(train.max_length, model_config.context_length)
    template = get_template(config.eval.train_template or task.train_template)
    examples, _ = trainable([training_example(tokenizer, record, template, config.model.chat)
                             for record in task.train], context)
    share = may_share(config.model.device, train.lora_dropout)
    steps = steps_per_epoch(examples, train.batch_size)
    batches = [batch for step in range(steps)
               for batch in step_batches(examples, step, train.batch_size, train.micro_tokens, train.seed, share)]
    largest = max(batches, key=lambda batch: len(batch.tokens))
    longest = max(len(example.tokens) for example in examples)
    total = train.steps or train.epochs * steps
    tokens, targets = sum(len(batch.tokens) for batch in batches), sum(batch.targets for batch in batches)
    pairs = sum(int(batch.positions.sum()) + len(batch.tokens) for batch in batches)

    distill_template = get_template(config.distill.template or task.distill_template)
    prompts = [len(distill_prompt(tokenizer, record, distill_template, config.model.chat)) for record in task.train]
    limit = config.distill.rewrite_tokens or task.rewrite_tokens
    lengths = [prompt + limit for prompt in prompts]

    def training(n: int) -> dict[str, int]:
        return training_memory(shape, train, size, n, max(1, n * largest.targets // len(largest.tokens)),
                               min(n, longest), config.model.device == "cpu")

    def generation(batch_size: int) -> dict[str, int]:
        return generation_memory(model_config, shape.weights, size, lengths, batch_size, config.model.device == "cpu")

    sequences = config.generate.generation_batch_size
    if free is not None:
        sequences = fitting_batch(model_config, shape.weights, size, lengths, min(sequences, len(lengths)), free)
    flops = {"rewrite, at most": generation_flops(shape, sum(prompts), limit * len(prompts),
                                                  sum(length**2 // 2 for length in lengths)),
             "train, each arm": total / steps * training_flops(shape, tokens, targets, pairs, train.method == "full")}
    plan: Plan = {
        "parameters": shape.weights, "trained": shape.weights if train.method == "full" else shape.adapter,
        "records": len(task.train), "epochs": train.epochs, "steps": total,
        "tokens": {"prompts to rewrite": sum(prompts), "rewrites, at most": limit * len(prompts),
                   "training, an epoch": sum(len(example.tokens) for example in examples),
                   "computed, an epoch": tokens, "targets, an epoch": targets},
        "tflops": {name: round(value / 1e12, 1) for name, value in flops.items()},
        "sequences": sequences,
        "bytes": {"rewrite": generation(sequences),
                  "train": training(len(largest.tokens))},
        "largest_micro_batch": len(largest.tokens),
    }
    if memory is not None:
        room = memory * 1e9
        plan["fits"] = {"memory_gb": memory, "sequences at the same time": largest_fit(generation, len(prompts), room),
                        "tokens in a micro-batch": largest_fit(training, 1 << 20, room),
                        "tokens of the longest record": longest}
    return plan
