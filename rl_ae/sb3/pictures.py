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


def enlarge(frames: Frames) -> Frames:
    """Repeat pixels until frames (T, H, W, 3) are at least ``DISPLAY_HEIGHT`` tall, by an even factor."""
    factor = 2 * math.ceil(DISPLAY_HEIGHT / frames.shape[1] / 2)
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def save_reconstructions(path: Path, frames: Frames, reconstructions: Frames) -> Path:
    """Write frames (T, H, W, 3) in a row above their reconstructions, as one PNG."""
    rows = [np.concatenate(list(enlarge(images)), axis=1) for images in (frames, reconstructions)]
    return write_atomically(path, Image.fromarray(np.concatenate(rows)).save)


def save_video(path: Path, frames: Frames, reconstructions: Frames, frames_per_second: float) -> Path:
    """Write a video with each frame (T, H, W, 3) left of its reconstruction.

    Args:
        path: Without suffix: ``.mp4`` where the ``video`` extra is installed, ``.gif`` where it is not.
        frames: (T, H, W, 3).
        reconstructions: (T, H, W, 3).
        frames_per_second: Playing speed.

    Returns:
        The path with its suffix.
    """
    film = np.concatenate([enlarge(frames), enlarge(reconstructions)], axis=2)
    if find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None:
        first, *rest = (Image.fromarray(image) for image in film)
        milliseconds = round(1000 / frames_per_second)
        return write_atomically(
            path.with_suffix(".gif"),
            lambda file: first.save(file, save_all=True, append_images=rest, duration=milliseconds, loop=0),
        )
    import imageio.v3 as imageio  # noqa: PLC0415  the extra "video"

    return write_atomically(
        path.with_suffix(".mp4"),
        lambda file: imageio.imwrite(file, film, fps=frames_per_second, macro_block_size=2),
    )


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
