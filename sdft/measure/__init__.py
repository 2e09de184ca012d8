"""The measure room: what fine-tuning did to abilities, outputs and weights, each measure a function of its own.

Reading order: statistics.py (intervals), abilities.py (running the suites), gap.py (how far the training targets lie
from the seed), drift.py and texts.py (how far its answers moved), both by place in the answer (places.py), weights.py
(how far its weights moved), spectrum.py (in which directions), checkpoints.py (between any two folders).

    sdft measure shift --adapter runs/mine/sdft
"""
