"""Measures of a model's outputs: gap.py (the training targets under the base model), drift.py (next-token
distributions), texts.py (answers as text), activations.py (hidden states after every layer).

They import passes.py, statistics.py and abilities.py, and nothing of weights/. Start with gap.py.
"""
