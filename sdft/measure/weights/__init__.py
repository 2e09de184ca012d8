"""Measures of a model's weights: shift.py (how far they moved, module by module), spectrum.py (in which directions),
compare.py (two adapters, checkpoints or trainings), fisher.py (changes weighted by the Fisher information),
interpolation.py (the loss between the base model and the tuned one).

They import passes.py and outputs/. Start with shift.py.
"""
