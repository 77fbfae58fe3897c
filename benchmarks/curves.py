"""Learning curves as SVG for a page: a task's labels, their means over seeds and how far these are known."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks import statistics
from benchmarks.collection import Record
from benchmarks.statistics import Array

#: Means are taken over so many equal parts of the longest run.
BINS = 20
#: Column of the curve → title of its panel.
PANELS = {"return": "episodes of training", "evaluation": "deterministic evaluations"}
_COLOURS = ("#3b82c4", "#e07b39", "#2f9e6e", "#c9507a", "#8b6fc9", "#a5862b", "#3aa6b9", "#d0534a")
#: Stands for the page's text colour until the picture is on the page, where that may be light or dark.
_INK = "#010203"
_STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "rl_ae",  # the same picture has the same names in it
    "text.parse_math": False,
}


def colours_of(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label; they come again from the ninth on."""
    return {label: _COLOURS[index % len(_COLOURS)] for index, label in enumerate(labels)}


def draw_task(
    records: Sequence[Record], colours: Mapping[str, str], resamples: int = statistics.RESAMPLES, seed: int = 0
) -> str:
    """The curves of a task's runs.

    Args:
        records: Runs of one task.
        colours: By label.
        resamples: Bootstrap resamples of the bands.
        seed: Of the bootstrap.

    Returns:
        An ``<svg>`` element in the page's text colour. Thick: the mean of a label's finished runs, with its 95 % band
        where there are two or more; thin: each of these; dashed: unfinished runs.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.5, 3.6), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        edges = np.linspace(0, max((row["frames"] for run in records for row in run.rows), default=1.0), BINS + 1)
        for axes, (column, title) in zip(panels, PANELS.items(), strict=True):
            for label in sorted({record.label for record in records}):
                runs = [record for record in records if record.label == label]
                _draw_label(axes, runs, column, edges, colours[label], (resamples, seed))
            _finish(axes, records, title, edges[-1])
        panels[0].set_ylabel("return")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 4), frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    suite, task, _ = records[0].cell
    return _for_page(buffer.getvalue(), f"{suite}-{task}", f"Learning curves on {task}")


def binned(record: Record, column: str, edges: Array) -> tuple[Array, Array]:
    """Means of a curve's rows between edges, of their frames and of a column; NaN where it has no number.

    Args:
        record: A run.
        column: Of its curve.
        edges: Ascending frames, (BINS + 1,). A row at an edge is in the part before it.

    Returns:
        Frames and values, (BINS,) each.
    """
    rows = [(row["frames"], row[column]) for row in record.rows if np.isfinite(row[column])]
    frames, values = np.array(rows).reshape(-1, 2).T
    places = np.clip(np.searchsorted(edges, frames) - 1, 0, len(edges) - 2)
    counts = np.bincount(places, minlength=len(edges) - 1)
    sums = [np.bincount(places, of, minlength=len(edges) - 1) for of in (frames, values)]
    with np.errstate(invalid="ignore"):
        return sums[0] / counts, sums[1] / counts


def mean_and_band(
    values: Array, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> tuple[Array, tuple[Array, Array] | None]:
    """The mean over seeds of curves (seeds, BINS) and its 95 % bootstrap band.

    Every part is resampled by the same seeds: whole runs are drawn. Parts in which a run has no value have no mean.

    Returns:
        Mean (BINS,), and the band's lower and upper edge; ``None`` with a single seed.
    """
    mean = np.mean(values, axis=0)
    if len(values) < 2:
        return mean, None
    low, high = np.full((2, len(mean)), np.nan)
    for part in np.flatnonzero(np.isfinite(mean)):
        interval = statistics.stratified_interval(statistics.mean, [values[:, part]], resamples=resamples, seed=seed)
        assert interval is not None
        low[part], high[part] = interval
    return mean, (low, high)


def _draw_label(
    axes: Axes, runs: Sequence[Record], column: str, edges: Array, colour: str, bootstrap: tuple[int, int]
) -> None:
    label = runs[0].label
    finished = [binned(run, column, edges) for run in runs if run.evaluation]
    unfinished = [binned(run, column, edges) for run in runs if not run.evaluation]
    if finished:
        frames, values = map(np.array, zip(*finished, strict=True))
        mean, band = mean_and_band(values, *bootstrap)
        seen = np.isfinite(mean)
        middle = frames.mean(axis=0)[seen]
        seeds = "1 seed" if len(finished) == 1 else f"{len(finished)} seeds"
        axes.plot(middle, mean[seen], color=colour, lw=2, marker="o", ms=3, label=f"{label}, {seeds}", zorder=3)
        if band is not None:
            axes.fill_between(middle, band[0][seen], band[1][seen], color=colour, alpha=0.2, lw=0)
            _draw_each(axes, finished, color=colour, lw=0.7, alpha=0.5)
    _draw_each(axes, unfinished, color=colour, lw=1.2, ls="--", label=f"{label}, unfinished")


def _draw_each(axes: Axes, curves: Sequence[tuple[Array, Array]], label: str | None = None, **style: Any) -> None:
    for index, (frames, values) in enumerate(curves):
        seen = np.isfinite(values)
        axes.plot(frames[seen], values[seen], label=None if index else label, **style)


def _finish(axes: Axes, records: Sequence[Record], title: str, frames: float) -> None:
    random = np.array([run.evaluated("random_mean_return") for run in records])
    if np.isfinite(random).any():
        axes.axhline(float(np.nanmean(random)), color=_INK, alpha=0.6, lw=1, ls=":", label="random policy")
    axes.set(title=title, xlabel="frames of the environment", xlim=(0, 1.02 * frames))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=True)


def _for_page(svg: str, name: str, title: str) -> str:
    """The ``<svg>`` element alone, in the page's colour, with names of its own."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace(_INK, "currentColor").replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(title, quote=True)}"', 1
    )
