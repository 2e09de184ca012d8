"""The report room: from a run folder to one page. It knows nothing but the files that the run wrote.

    folder/measures.json, summary.json, *.jsonl ─read→ Run ─┬→ tables ──┬→ report.html (one file, no network)
                                                            └→ figures ─┴→ report.md
"""
from sdft.report.page import write_report

__all__ = ["write_report"]
