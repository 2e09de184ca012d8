"""What all figures are drawn with: matplotlib to SVG, one style, and a colour and a marker for every arm.

A figure says what it shows without its text: both axes named with their unit, n in the title. Colours belong to the
arms and are the same in every figure; nothing rests on colour alone (markers and line styles differ too).
"""
from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdft.errors import SdftError
from sdft.report.run import Row, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#5f6368", "#d1590b", "#1f6fc4", "#2e8540", "#8e44ad", "#b8860b", "#c2185b", "#00838f")
MARKERS = "osD^vPX*"
STYLE = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.grid": True, "grid.alpha": 0.25,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "sdft",
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure: its SVG text, and in words what it shows (caption and alternative text)."""

    name: str
    svg: str
    caption: str


def require_matplotlib() -> None:
    """Raise SdftError, naming the extra to install, when matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SdftError("the report's figures need matplotlib, which is not installed; "
                        "install it with: pip install -c constraints.txt -e '.[report]'") from error


def svg_of(draw: Callable[[Canvas], None], width: float = 5.4, height: float = 3.9) -> str:
    """The SVG text of what `draw` puts on an empty canvas; inches."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        draw(canvas)
        target = io.StringIO()
        canvas.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def colour_of(run: Run, arm: str) -> str:
    """The arm's colour in every figure."""
    return COLOURS[run.arms.index(arm) % len(COLOURS)]


def marker_of(run: Run, arm: str) -> str:
    """The arm's marker in every figure."""
    return MARKERS[run.arms.index(arm) % len(MARKERS)]


def how_many(rows: Iterable[list[Row] | np.ndarray]) -> str:
    """'100' when all arms have as many, else '100 / 98'."""
    return " / ".join(map(str, dict.fromkeys(len(values) for values in rows)))


def band_name(row: Row) -> str:
    """'1' or '2–8', of a band of places in an answer."""
    return str(row["first"]) if row["first"] == row["last"] else f"{row['first']}–{row['last']}"
