"""How fast this machine reads, writes and trains, measured on a slice of the model: the same layers, only fewer.

    Llama of L layers, vocabulary V ─→ slice of l layers, vocabulary V·l/L, random weights ─→ FLOP/s of three kinds

A slice does per operation what the model does, so products, attention, softmax and all overhead are in these rates.
Decoding has a rate of its own: one token of each sequence makes small products, and reads the whole cache.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdft.data.chat import Example
from sdft.experiment.plan import Shape, generation_flops, shape_of, training_flops
from sdft.generation import Request, Sampling
from sdft.generation.engine import Engine
from sdft.measure.passes import target_hidden
from sdft.model.batches import pack
from sdft.model.config import LlamaConfig
from sdft.model.llama import Llama
from sdft.objectives import cross_entropy
from sdft.tokenizers.tokenizer import Tokenizer
from sdft.train.loop import gradient
from sdft.train.settings import TrainSettings
from sdft.train.weights import trained_weights

WEIGHTS = 7e6                       # of a slice's layers: all work on it takes few seconds on a slow CPU
DOCUMENTS, LENGTH = 4, 128          # of a measured batch; a prompt of the built-in task has some 150 tokens
TARGETS = 16                        # of each document
STEPS = 4                           # of decoding; the first one compiles


@dataclass(frozen=True)
class Rates:
    """Operations per second (FLOP/s) of the work that a run consists of."""

    read: float                     # forward passes over given text, with the softmax at its targets
    write: float                    # decoding many sequences together
    train: float                    # forward and backward passes


_measured: dict[str, Rates] = {}    # of this process: a study's runs measure once


def measure_rates(config: LlamaConfig, tokenizer: Tokenizer, settings: TrainSettings, dtype: torch.dtype,
                  device: torch.device, batch_size: int) -> Rates:
    """Measure a slice of the model, once in a process; batch_size: the number of sequences decoded at the same time."""
    settings = TrainSettings(method=settings.method, gradient_checkpointing=settings.gradient_checkpointing)
    about = repr((config, settings, dtype, device, batch_size))
    if about not in _measured:
        print("measuring how fast this machine reads, writes and trains", file=sys.stderr)
        sliced = slice_of(config)
        with torch.random.fork_rng():
            model = Llama(sliced).to(device, dtype).requires_grad_(False).eval()
            shape = shape_of(sliced, settings)
            _measured[about] = Rates(_reading(model, shape), _writing(model, shape, tokenizer, batch_size),
                                     _training(model, shape, settings))
    return _measured[about]


def slice_of(config: LlamaConfig) -> LlamaConfig:
    """The configuration with layers of about WEIGHTS weights in all, at least two, and the vocabulary in proportion."""
    c = config
    per_layer = c.hidden_size * (3 * c.intermediate_size
                                 + c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads))
    layers = max(min(2, c.num_hidden_layers), min(c.num_hidden_layers, round(WEIGHTS / per_layer)))
    return replace(c, num_hidden_layers=layers, vocab_size=max(LENGTH, c.vocab_size * layers // c.num_hidden_layers))


def _reading(model: Llama, shape: Shape) -> float:
    batch = pack(_documents(model)).to(model.device)

    @torch.inference_mode()
    def read() -> Tensor:
        return model.head(target_hidden(model, batch)).float().log_softmax(-1)

    return read_flops(shape, len(batch.tokens), batch.targets) / seconds(read)


def _writing(model: Llama, shape: Shape, tokenizer: Tokenizer, batch_size: int) -> float:
    """The prompts differ in their last token alone, so nearly all of them is read once."""
    length = min(LENGTH, model.config.context_length - STEPS - 2)
    requests = [Request(str(index), [*range(length - 1), index % LENGTH]) for index in range(batch_size)]
    engine = Engine(model, tokenizer, requests, Sampling(max_new_tokens=STEPS + 2), batch_size, speculation=False)
    with torch.inference_mode():
        engine.share()
        engine.admit()

        def write() -> Tensor:
            engine.advance()
            return engine.batch.tokens

        return generation_flops(shape, 0, batch_size, batch_size * length) / seconds(write, STEPS)


def _training(model: Llama, shape: Shape, settings: TrainSettings) -> float:
    batch = pack(_documents(model))
    trained_weights(model, settings)
    model.train()
    pairs = DOCUMENTS * LENGTH**2 // 2
    return (training_flops(shape, len(batch.tokens), batch.targets, pairs, settings.method == "full")
            / seconds(lambda: gradient(model, [batch], cross_entropy, settings.gradient_checkpointing)))


def read_flops(shape: Shape, tokens: int, targets: int) -> float:
    """Operations of a forward pass with the head at the targets, without attention."""
    return 2.0 * (shape.layers * tokens + shape.config.vocab_size * shape.config.hidden_size * targets)


def seconds(work: Callable[[], Tensor], calls: int = 2, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of `calls` calls: the first one may compile. Reading the result waits for any device."""
    taken = []
    for _ in range(calls):
        started = clock()
        work().flatten()[0].item()
        taken.append(clock() - started)
    return min(taken)


def _documents(model: Llama) -> list[Example]:
    length = min(LENGTH, model.config.context_length)
    first = max(1, length - TARGETS)
    return [Example(str(index), [(index + token) % LENGTH for token in range(length)],
                    [token >= first for token in range(length)]) for index in range(DOCUMENTS)]
