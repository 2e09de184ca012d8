"""The experiment room: settings, the run folder, and the method as one page.

Reading order: method.py, which is the method; lab.py (what it works with); arms.py (the rivals), with base_text.py and
onpolicy.py; config.py, folder.py, run.py.
"""
