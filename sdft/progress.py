"""Progress bars of one form: on stderr, with the remaining time."""
from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm


def progress(iterable: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = "it") -> tqdm:
    """Show the progress over `iterable`, or over a count that `.update()` advances."""
    return tqdm(iterable, total=total, desc=f"{desc:<28}", unit=unit, dynamic_ncols=True, mininterval=0.5,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}")
