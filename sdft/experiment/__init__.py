"""The experiment room: settings, the run folder, and the method as one page.

Reading order: method.py, which is the method; lab.py (what it works with); config.py, folder.py, run.py.
"""
