"""Drawing for reports and studies: matplotlib to SVG in one style, with a colour and a marker for every arm.

Both axes name their unit, and the title or the legend gives n. An arm looks the same in all figures of a page. Markers
and line styles differ as well as colours, so that no figure depends on colour alone.
"""
from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sdft.errors import SdftError
from sdft.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#5f6368", "#d1590b", "#1f6fc4", "#2e8540", "#8e44ad", "#b8860b", "#c2185b", "#00838f")
MARKERS = "osD^vPX*"
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A drawn figure: its SVG text, and a caption that is also its alternative text."""

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


def svg_of(draw: Callable[[Canvas], T], width: float = 5.4, height: float = 3.9) -> tuple[str, T]:
    """Call `draw` with an empty canvas of this size in inches; return the drawing as SVG text and what `draw` returned.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context({
        "font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.grid": True, "grid.alpha": 0.25,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "svg.hashsalt": "sdft",
    }):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        returned = draw(canvas)
        target = io.StringIO()
        canvas.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue(), returned


def colour_of(run: Run, arm: str) -> str:
    """The arm's colour in every figure of the run."""
    return COLOURS[run.arms.index(arm) % len(COLOURS)]


def line_style(run: Run, arm: str) -> dict[str, Any]:
    """The arm's colour, marker and legend entry, as keywords of matplotlib's plot."""
    return {"color": colour_of(run, arm), "marker": MARKERS[run.arms.index(arm) % len(MARKERS)], "label": arm}


def sizes_of(samples: Iterable[Sized]) -> str:
    """'100' when all samples have this size, otherwise the different sizes: '100 / 98'."""
    return " / ".join(map(str, dict.fromkeys(len(sample) for sample in samples)))
