"""One look for every progress bar: on stderr, with the time that remains."""
from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm


def progress(iterable: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = "it") -> tqdm:
    """Wrap `iterable` (or count by hand with `.update()`) in a bar on stderr that tells the remaining time."""
    return tqdm(iterable, total=total, desc=f"{desc:<28}", unit=unit, dynamic_ncols=True, mininterval=0.5,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}")
