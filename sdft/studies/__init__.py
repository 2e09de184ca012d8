"""Studies: many runs that answer one question, the statistics over them, and a page.

This room may import every room before it, experiment and report included; only commands import it. Start with
specification.py (the study file), then stages.py (what a stage reads, and so what two runs share), runs.py (the sweep)
and collect.py (cells.json). statistics.py, figures.py and page.py make the page from cells.json alone; predictors.py
and ranking.py do so for a study that reads the results of others.
"""
