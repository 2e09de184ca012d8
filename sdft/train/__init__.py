"""Training: packed batches, objectives, the loop, and its saved state (step 3 of the method).

The names are imported on first use: the settings, of which the command line is made, need no torch.
"""
from __future__ import annotations

from importlib import import_module

_EXPORTS = {"TrainSettings": "sdft.train.settings", "evaluate": "sdft.train.loop", "train": "sdft.train.loop"}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'sdft.train' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
