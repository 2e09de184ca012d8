"""The experiment: one run folder from settings to measures.json, with all arms.

It may import every room above it, from data to method, and draws nothing. Start at run.py (compare is the method with
measures; run makes or resumes the folder), then arms.py and context.py; settings.py holds all settings, run_folder.py
what a folder was made with, plan.py what a run will need.
"""
