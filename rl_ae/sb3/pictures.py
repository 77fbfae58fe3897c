"""Pictures: reconstructions, videos and learning curves as files."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rl_ae.files import write_atomically

Frames = np.ndarray[Any, np.dtype[np.uint8]]

#: Videos and strips are enlarged by whole numbers until a frame is at least this tall.
DISPLAY_HEIGHT = 192
#: Of films, where no environment says how fast its time passes.
FRAMES_PER_SECOND = 20


def enlarge(frames: Frames) -> Frames:
    """Repeat pixels until frames (T, H, W, 3) are at least ``DISPLAY_HEIGHT`` tall, by an even factor."""
    factor = 2 * math.ceil(DISPLAY_HEIGHT / frames.shape[1] / 2)
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def save_reconstructions(path: Path, frames: Frames, reconstructions: Frames) -> Path:
    """Write frames (T, H, W, 3) in a row above their reconstructions, as one PNG."""
    rows = [np.concatenate(list(enlarge(images)), axis=1) for images in (frames, reconstructions)]
    return write_atomically(path, Image.fromarray(np.concatenate(rows)).save)


def side_by_side(frames: Frames, reconstructions: Frames) -> Frames:
    """Frames (T, H, W, 3) left of their reconstructions, enlarged."""
    return np.concatenate([enlarge(frames), enlarge(reconstructions)], axis=2)


def save_film(path: Path, film: Frames, frames_per_second: float) -> Path:
    """Write frames (T, H, W, 3), even in height and width, as a film.

    Args:
        path: Ending in ``.mp4``, which needs the extra ``video``, or in ``.gif``. Without a suffix it gets ``.mp4``
            where that extra is installed, else ``.gif``.
        film: The frames.
        frames_per_second: Playing speed; of a ``.gif`` at most 50, because browsers slow down what is faster.

    Returns:
        The path with its suffix.

    Raises:
        ImportError: If the extra is needed and not there.
        ValueError: If the path has another suffix.
    """
    encodes = find_spec("imageio") is not None and find_spec("imageio_ffmpeg") is not None
    path = path if path.suffix else path.with_suffix(".mp4" if encodes else ".gif")
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"a film is written as .mp4 or .gif, got {path}")
    if path.suffix == ".gif":
        first, *rest = (Image.fromarray(image) for image in film)
        milliseconds = max(round(1000 / frames_per_second), 20)
        return write_atomically(
            path, lambda file: first.save(file, save_all=True, append_images=rest, duration=milliseconds, loop=0)
        )
    if not encodes:
        raise ImportError('.mp4 needs imageio and ffmpeg: pip install "rl-ae[video]", or write a .gif')
    import imageio.v3 as imageio  # noqa: PLC0415  the extra "video"

    return write_atomically(path, lambda file: imageio.imwrite(file, film, fps=frames_per_second, macro_block_size=2))


def save_learning_curve(path: Path, rows: Sequence[Mapping[str, float]], title: str) -> Path:
    """Plot returns and reconstruction loss over agent steps.

    Args:
        path: PNG to write.
        rows: Rows with ``step``, and ``return``, ``reconstruction`` and ``evaluation``, which may be NaN.
        title: Above the plot.
    """
    matplotlib.use("Agg")
    figure = Figure(figsize=(8, 5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    finished = [row for row in rows if np.isfinite(row["return"])]
    steps, returns = [row["step"] for row in finished], [row["return"] for row in finished]
    top.plot(steps, returns, ".", color="tab:blue", alpha=0.4, label="episodes")
    if len(returns) >= 5:
        mean = np.convolve(returns, np.ones(5) / 5, mode="valid")
        top.plot(steps[4:], mean, color="tab:blue", label="mean of 5")
    evaluated = [row for row in rows if np.isfinite(row["evaluation"])]
    top.plot(
        [row["step"] for row in evaluated],
        [row["evaluation"] for row in evaluated],
        "s--",
        color="tab:green",
        label="evaluation, deterministic",
    )
    if finished or evaluated:
        top.legend()
    else:
        top.text(0.5, 0.5, "no episode has finished", transform=top.transAxes, ha="center")
    top.set(title=title, ylabel="return")
    seen = [row for row in rows if np.isfinite(row["reconstruction"])]
    bottom.plot([row["step"] for row in seen], [row["reconstruction"] for row in seen], color="tab:orange")
    if seen and min(row["reconstruction"] for row in seen) > 0.0:  # densities may be above 1
        bottom.set_yscale("log")
        for set_formatter in (bottom.yaxis.set_major_formatter, bottom.yaxis.set_minor_formatter):
            set_formatter("{x:.4g}")
    bottom.set(xlabel="agent steps", ylabel="reconstruction loss")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    return write_atomically(path, lambda file: figure.savefig(file, dpi=120))
