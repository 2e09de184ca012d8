"""Fast forms of the engine's parts, called by batch.py and engine.py; each states its share of a run first."""
