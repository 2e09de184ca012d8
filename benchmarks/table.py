"""The table of results in benchmarks/README.md, made from benchmarks/results.json.

    python benchmarks/table.py

A result has a workload, our value, the peers' values, each with a ratio above 1 where sdft is faster or smaller, the
machine, the dtype and the date. Print the table, and replace the one in README.md with it after a change of the JSON.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

HERE = Path(__file__).parent
HEADER = ("workload", "sdft", "peer", "ratio", "machine", "dtype", "date")


def table(results: list[dict]) -> str:
    """The results as a Markdown table; a workload has one line for each peer."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for result in results:
        unit = result["unit"]
        first = (result["workload"], f"{result['ours']:g} {unit}")
        last = (result["machine"], result["dtype"], result["date"])
        for peer in result["peers"] or [None]:
            ratio = "–" if peer is None or peer["ratio"] is None else f"{peer['ratio']:.3g}"
            lines.append((*first, "–" if peer is None else f"{peer['name']}: {peer['value']:g} {unit}", ratio, *last))
            first = ("", "")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(table(json.loads((HERE / "results.json").read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
