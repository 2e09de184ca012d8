"""Drawing for reports and studies: matplotlib to SVG in one style, with a colour and a marker for every arm.

Both axes name their unit, and the title or the legend gives n. An arm looks the same in all figures of a page. Markers
and line styles differ as well as colours, so that no figure depends on colour alone.
"""
from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from sdft.errors import SdftError
from sdft.report.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#5f6368", "#b84a00", "#1f6fc4", "#2e8540", "#8e44ad", "#b8860b", "#c2185b", "#00838f")
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
    if find_spec("matplotlib") is None:
        raise SdftError("the report's figures need matplotlib, which is not installed; "
                        "install it with: pip install -c constraints.txt -e '.[report]'")


def svg_of(draw: Callable[[Canvas], T], width: float = 5.4, height: float = 3.9) -> tuple[str, T]:
    """Call `draw` with an empty canvas of this size in inches; return the SVG text and what `draw` returned."""
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


def line_style(run: Run, arm: str) -> dict[str, Any]:
    """The arm's colour, marker and legend entry in every figure of the run, as keywords of matplotlib's plot."""
    index = run.arms.index(arm)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "label": arm}


def sizes_of(samples: Iterable[Sized]) -> str:
    """'100' when all samples have this size, otherwise the different sizes: '100 / 98'."""
    return " / ".join(map(str, dict.fromkeys(len(sample) for sample in samples)))
