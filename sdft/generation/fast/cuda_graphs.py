"""The engine's step as a CUDA graph: captured once for each shape, then replayed as a whole.

A step of a small model is over a thousand kernels of a few microseconds each, and Python starts them more slowly than the
GPU runs them. A captured graph is started by one call. It repeats the same kernels on the same addresses, so all that
changes from step to step must stand in buffers that stay (`Engine.step` reads and writes no others), and all that is fixed
when it is captured must fit every later step: how many rows there are, and how many slots of the cache are read.

    rows  0 … n-1      under way        The rows are rounded up, and so are the slots: a mask hides those that a row has not
    rows  n … rows-1   idle             reached. Idle rows run along, each writing again and again to its slot 0, where
                                        nobody reads: rows fall idle only when no prompt waits for their place.

The first step of a shape is taken kernel by kernel: it is a step like any other, and makes what must be made before a
capture (cuBLAS's handles and workspaces, kernels loaded lazily). The second captures, and replays from then on, so a shape
that occurs once costs no capture. The graphs of an engine share one pool of memory, since one runs at a time.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sdft.generation.cache import KVCache
    from sdft.generation.engine import Engine

FEW = 32               # up to so many rows are rounded to powers of two, more to multiples of it
SLOTS = 128            # slots are rounded to multiples of it, and long rows more coarsely


class StepGraphs:
    """The graphs of one engine, by shape. It holds no engine: a cycle would keep the cache alive until it is collected."""

    def __init__(self) -> None:
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}    # None: the shape was met once
        self.stream: torch.cuda.Stream | None = None
        self.pool = None

    def step(self, engine: Engine, ends: Sequence[int]) -> Tensor:
        """`engine.step(ends)`, the same tokens (n,); valid until the next step."""
        n = len(ends)
        rows, slots = shape = rounded_rows(n, engine.batch_size), rounded_slots(max(ends))
        bounds = within(engine.cache, rows, slots)
        if rows > n:
            engine.positions[n:rows].zero_()
            engine.counts[n:rows].zero_()
        if shape not in self.graphs:
            self.graphs[shape] = None
            self.aside(lambda: engine.step(bounds))
        else:
            if self.graphs[shape] is None:
                self.graphs[shape] = self.capture(lambda: engine.step(bounds))
            self.graphs[shape].replay()
        return engine.tokens[:n]

    def aside(self, work) -> None:
        """Do `work` on a stream of our own, in its turn: only there can it be captured, so there it is warmed up."""
        if self.stream is None:
            self.stream = torch.cuda.Stream()
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def capture(self, work) -> torch.cuda.CUDAGraph:
        """The graph of `work`, which is recorded and not done.

        Not by `torch.cuda.graph`, which would hand all free memory back to the driver first, at every shape.
        """
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()

        def record() -> None:
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()

        self.aside(record)
        return graph


def rounded_rows(n: int, most: int) -> int:
    """How many rows a step of n rows runs over, of the `most` that the engine has."""
    return min(most, -(-n // FEW) * FEW if n > FEW else 1 << (n - 1).bit_length())


def rounded_slots(end: int) -> int:
    """How many slots a step reads whose longest row ends before slot `end`: at most a quarter more, or SLOTS more."""
    unit = max(SLOTS, 1 << max(0, end.bit_length() - 3))
    return -(-end // unit) * unit


def within(cache: KVCache, rows: int, slots: int) -> list[int]:
    """For each of the first `rows` rows the slots to be read: `slots`, or as many as its group has."""
    return [min(slots, group.slots) for group in cache.groups for _ in range(group.count)][:rows]
