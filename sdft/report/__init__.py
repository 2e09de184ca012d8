"""The report room: one page from one run folder.

    measures.json, summary.json, *.jsonl ─read→ Run ─┬→ tables, findings ─┬→ report.html (one file, no network)
                                                     └→ figures           └→ report.md (tables and findings)

It may import results, errors and files, and no other room. Start reading with page.py.
"""
from sdft.report.page import write_report

__all__ = ["write_report"]
