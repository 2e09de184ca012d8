"""The training room, step 3 of the method: settings, the order of the examples, the loop, and its saved state.

It imports data, model and objectives, and knows no task. Start with loop.py: one optimiser step is visible in one
screen. The names are imported on first use, since the command line is made from the settings, which need no torch.
"""
from __future__ import annotations

from importlib import import_module

_EXPORTS = {"TrainSettings": "sdft.train.settings", "evaluate": "sdft.train.loop", "train": "sdft.train.loop"}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'sdft.train' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
