"""The measure room: what fine-tuning did to abilities, outputs and weights, each measure a function of its own.

Reading order: statistics.py (intervals), abilities.py (running the suites), gap.py (how far the training targets lie
from the seed), drift.py and texts.py (how far its answers moved), places.py (both by place in the answer),
activations.py (how far its hidden states moved); then the weights: weights.py (how far they moved), spectrum.py (in
which directions), modules.py (all of it, module by module), checkpoints.py (between any two folders), adapter_pairs.py
(between two adapters), checkpoint_pairs.py (between two full tunings), fisher_shift.py (as the seed feels it),
interpolation.py (the loss on the way).

    sdft measure shift --adapter runs/mine/sdft
"""
