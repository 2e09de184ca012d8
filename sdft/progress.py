"""Progress bars of one form, on stderr, with the remaining time; and durations in words."""
from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm


def progress(iterable: Iterable | None = None, *, total: int | None = None, desc: str = "", unit: str = "it") -> tqdm:
    """Show the progress over `iterable`, or over a count that `.update()` advances."""
    return tqdm(iterable, total=total, desc=f"{desc:<28}", unit=unit, dynamic_ncols=True, mininterval=0.5,
                bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}")


def duration(seconds: float) -> str:
    """A duration as people say it, rounded: "3 s", "20 s", "8 min", "2 h 10 min"."""
    if seconds < 95:
        return f"{max(1, round(seconds)) if seconds < 10 else round(seconds / 10) * 10} s"
    minutes = round(seconds / 60)
    if minutes < 95:
        return f"{minutes} min"
    hours, minutes = divmod(round(minutes / 10) * 10, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
