"""Charts as ``<svg>`` elements for a page, in the page's own colours: it may be light or dark."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator
from numpy.typing import ArrayLike

#: In inches; shown at this size or smaller, so that letters stay legible on a telephone.
SIZE = (4.8, 3.2)
#: Legible on white and on black.
COLOURS = ("#3b82c4", "#e07b39", "#2f9e6e", "#c9507a", "#8b6fc9", "#a5862b", "#3aa6b9", "#d0534a")
#: From the first to the last step, legible on both as well.
TIME = LinearSegmentedColormap.from_list("time", ["#3b82c4", "#8b6fc9", "#c9507a", "#e07b39", "#d9a520"])
#: Stands for the page's text colour until the chart is on the page.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "svg.fonttype": "none",  # letters of the page
    "svg.hashsalt": "rl_ae",  # the same chart has the same names in it
    "text.parse_math": False,
}

#: Abscissae and ordinates.
Line = tuple[ArrayLike, ArrayLike]


def draw_lines(title: str, lines: Mapping[str, Line], x: str, y: str, *, log: bool = False, step: int = 0) -> str:
    """Lines over steps; a legend names them if they are several.

    Args:
        title: Of the chart.
        lines: By name. A line of few points is marked at each.
        x: What the abscissa is.
        y: What the ordinate is.
        log: A logarithmic ordinate, if all values are above 0.
        step: Of the step function: lines whose number is below it have no line, only points.

    Returns:
        An ``<svg>`` element.
    """

    def draw(axes: Axes) -> None:
        for number, (name, (steps, values)) in enumerate(lines.items()):
            points = np.size(steps)
            style = "." if number < step else "-o" if points <= 30 else "-"
            axes.plot(steps, values, style, color=COLOURS[number % len(COLOURS)], label=name, ms=3)
        if len(lines) > 1:
            axes.legend()
        if log and all(np.min(values) > 0.0 for _, values in lines.values()):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # without the mathematical type that the page has not
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel=x, ylabel=y)

    return _draw(title, draw)


def draw_bars(title: str, heights: ArrayLike, x: str, y: str) -> str:
    """A bar for each number, from the number 0 on; one outline, however many there are.

    Args:
        title: Of the chart.
        heights: (N,).
        x: What is counted.
        y: What the bars are.

    Returns:
        An ``<svg>`` element.
    """
    heights = np.asarray(heights)

    def draw(axes: Axes) -> None:
        gap = 0.1 if len(heights) <= 64 else 0.0
        places = np.arange(len(heights))
        edges = np.stack([places - 0.5 + gap, places + 0.5 - gap], axis=1).ravel()
        tops = np.stack([heights, np.zeros(len(heights))], axis=1).ravel()[:-1]
        axes.stairs(tops, edges, fill=True, color=COLOURS[0])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=x, ylabel=y)

    return _draw(title, draw)


def draw_path(title: str, points: ArrayLike, steps: Sequence[int], x: str, y: str) -> str:
    """A path in the plane, coloured by time, its first point a circle and its last a square.

    Args:
        title: Of the chart.
        points: (T, 2).
        steps: When the path is there, (T,), ascending.
        x: What the abscissa is.
        y: What the ordinate is.

    Returns:
        An ``<svg>`` element.
    """
    points = np.asarray(points)

    def draw(axes: Axes) -> None:
        axes.plot(*points.T, color=_INK, alpha=0.25, lw=0.7)
        dots = axes.scatter(points[:, 0], points[:, 1], c=steps, cmap=TIME, s=10, zorder=2)
        for point, marker, name in ((points[0], "o", "first"), (points[-1], "s", "last")):
            axes.plot(*point, marker, ms=9, mfc="none", mec=_INK, ls="none", label=name, zorder=3)
        axes.legend()
        assert axes.figure is not None
        axes.figure.colorbar(dots, label="step")
        axes.set(xlabel=x, ylabel=y)

    return _draw(title, draw)


def _draw(title: str, draw: Callable[[Axes], None]) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True)
        axes.set_axisbelow(True)
        draw(axes)
        axes.set_title(title)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _for_page(buffer.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    """The element alone, in the page's colour; names inside it are its own."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :].strip(), flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    prefix = re.sub(r"\W+", "-", title)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg).replace(_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title, quote=True)}"', 1)
