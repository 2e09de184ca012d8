"""Training: packed batches, objectives, the loop, and its saved state (step 3 of the method)."""
from __future__ import annotations

from sdft.train.loop import evaluate, train
from sdft.train.settings import TrainSettings

__all__ = ["TrainSettings", "evaluate", "train"]
