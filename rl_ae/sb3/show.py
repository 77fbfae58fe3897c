"""What ``rl-ae show`` does: the autoencoder of a run, or a saved one, drawn.

A run brings its frames along: its agent plays an episode in its environment. A saved autoencoder is shown the frames of
an environment that is played at random, or of files.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from rl_ae.analysis import plot_interpolation, plot_reconstructions, plot_samples, plot_traversals
from rl_ae.autoencoders import Autoencoder
from rl_ae.autoencoders.base import WEIGHTS_FILE
from rl_ae.envs import PixelConfig, shrink
from rl_ae.files import write_atomically
from rl_ae.pixels import count_frame_channels, to_unit
from rl_ae.sb3.checkpoint import STATE_FILE, load_autoencoder_agent
from rl_ae.sb3.evaluation import FIRST_START_SEED, Observations, Predictor, RandomPolicy, play_episode
from rl_ae.sb3.run_config import RunConfig
from rl_ae.sb3.runs import Run

#: Observations of an episode or a file that are looked at, spread evenly.
MOST_OBSERVATIONS = 256
#: Of those, the ones whose reconstructions are drawn.
RECONSTRUCTED = 8
#: Latent dimensions whose traversals are drawn, the most active ones.
TRAVERSED = 10

Kind = Literal["reconstructions", "traversals", "interpolation", "samples"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameSource:
    """Where frames come from; a run's own environment if nothing is given. Their size and stack are the autoencoder's.

    Attributes:
        env: Id of an environment, as in training; it is played at random.
        env_kwargs: Its arguments, a JSON object.
        frames: Files instead: observations (T, C, H, W) or (C, H, W) in .npy or .npz, uint8 or floats in [0, 1]; or
            pictures, which are shrunk as an environment's frames are.
        grayscale: The channels of a saved autoencoder are grey frames, though 3 divides their number.
        crop: Left, upper, right and lower edge of what is cut out of an environment's frames or a picture.
        action_repeat: Environment frames a step.

    Raises:
        ValueError: If both an environment and files are given, or neither but something about them.
    """

    env: str | None = None
    env_kwargs: str = "{}"
    frames: tuple[Path, ...] = ()
    grayscale: bool = False
    crop: tuple[int, int, int, int] | None = None
    action_repeat: int = 1

    def __post_init__(self) -> None:
        given = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
        if given >= {"env", "frames"}:
            raise ValueError(f"frames come from an env or from files: got {self.env} and {len(self.frames)} files")
        if given - {"grayscale"} and not given & {"env", "frames"}:
            raise ValueError(f"{', '.join(sorted(given))} would have no effect without an env or frames")


class Subject(NamedTuple):
    """An autoencoder that is looked at, and what it came with.

    Attributes:
        autoencoder: Of a run, or a saved one.
        config: The run's.
        agent: The run's.
    """

    autoencoder: Autoencoder
    config: RunConfig | None = None
    agent: Predictor | None = None


def load_subject(folder: Path) -> Subject:
    """The autoencoder in a folder, on the CPU.

    Args:
        folder: Written by ``save_pretrained``, or a run's.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds neither, or a broken one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if (folder / WEIGHTS_FILE).exists():
        return Subject(Autoencoder.from_pretrained(folder))
    run = Run(folder)
    if not run.has_checkpoint:
        raise ValueError(
            f"{folder} is neither a saved autoencoder nor a run with a checkpoint: it has no {WEIGHTS_FILE} and no "
            f"{run.checkpoint.name}/{STATE_FILE}"
        )
    config, agent = run.read_config(), load_autoencoder_agent(run.checkpoint, device="cpu", buffer_size=1)
    return Subject(agent.policy.autoencoder, config, agent)


def show(
    kind: Kind, folder: Path, source: FrameSource, out: Path | None = None, rows: int = TRAVERSED, seed: int = 0
) -> Path:
    """Write a picture of an autoencoder.

    Args:
        kind: What is drawn.
        folder: Written by ``save_pretrained``, or a run's.
        source: Where frames come from; samples need none.
        out: The picture, of a format that Matplotlib writes; show_<kind>.png in the folder if omitted.
        rows: Latent dimensions whose traversals are drawn, the most active ones.
        seed: Of episode and samples.

    Returns:
        The picture's path.

    Raises:
        FileNotFoundError: If a folder or a file is missing.
        ValueError: If one is of the wrong kind, frames are of the wrong shape, or the autoencoder has no such figure.
    """
    subject = load_subject(folder)
    autoencoder, shape = subject.autoencoder, subject.autoencoder.observation_shape
    if len(shape) != 3:
        raise ValueError(f"{folder}: figures need an autoencoder of images, this one is of vectors {shape}")
    if subject.config is None:
        frame_channels = count_frame_channels(shape[0], 1 if source.grayscale else None)
    else:
        frame_channels = subject.config.pixels.frame_channels
    if kind == "samples":
        generator = torch.Generator().manual_seed(seed)
        figure = plot_samples(autoencoder, generator=generator, frame_channels=frame_channels)
    else:
        images = _gather_images(subject, source, frame_channels, seed)
        figure = _FIGURES[kind](autoencoder, images, rows, frame_channels)
    path = folder / f"show_{kind}.png" if out is None else out
    return write_atomically(path, functools.partial(figure.savefig, format=path.suffix[1:] or "png"))


# ---------------------------------------------------------------------- figures of images


def _draw_reconstructions(autoencoder: Autoencoder, images: Tensor, rows: int, frame_channels: int) -> Figure:
    shown = images[_spread(len(images), RECONSTRUCTED)]
    return plot_reconstructions(autoencoder, shown, frame_channels=frame_channels)


def _draw_traversals(autoencoder: Autoencoder, images: Tensor, rows: int, frame_channels: int) -> Figure:
    middle = images[len(images) // 2]
    return plot_traversals(autoencoder, middle, rows, reference=images, frame_channels=frame_channels)


def _draw_interpolation(autoencoder: Autoencoder, images: Tensor, rows: int, frame_channels: int) -> Figure:
    if len(images) < 2:
        raise ValueError("an interpolation needs two frames, got one")
    return plot_interpolation(autoencoder, images[0], images[-1], frame_channels=frame_channels)


_FIGURES: dict[str, Callable[[Autoencoder, Tensor, int, int], Figure]] = {
    "reconstructions": _draw_reconstructions,
    "traversals": _draw_traversals,
    "interpolation": _draw_interpolation,
}


# ---------------------------------------------------------------------- images


def _gather_images(subject: Subject, source: FrameSource, frame_channels: int, seed: int) -> Tensor:
    """Observations (T, C, H, W) in [0, 1]."""
    channels, height, width = subject.autoencoder.observation_shape
    policy: Predictor
    if source.frames:
        read = functools.partial(
            _read_file, shape=(channels, height, width), frame_channels=frame_channels, crop=source.crop
        )
        return torch.cat([read(path) for path in source.frames])
    if source.env is not None:
        pixels = PixelConfig(
            size=(height, width),
            grayscale=frame_channels == 1,
            frame_stack=channels // frame_channels,
            action_repeat=source.action_repeat,
            crop=source.crop,
        )
        env = RunConfig(env=source.env, env_kwargs=source.env_kwargs, pixels=pixels).make_env(training=False)
        policy = RandomPolicy(env.action_space, seed)
    elif subject.config is not None and subject.agent is not None:
        env, policy = subject.config.make_env(training=False), subject.agent
    else:
        raise ValueError("a saved autoencoder has no environment: give it an env or frames")
    with contextlib.closing(env):
        return _to_images(play_episode(policy, env, FIRST_START_SEED + seed).observations)


def _read_file(
    path: Path, shape: tuple[int, int, int], frame_channels: int, crop: tuple[int, int, int, int] | None
) -> Tensor:
    """Observations (T, C, H, W) in [0, 1] of a file."""
    if path.suffix.lower() in {".npy", ".npz"}:
        observations = _read_array(path)
    else:
        with Image.open(path) as picture:
            frame = shrink(np.asarray(picture.convert("RGB")), shape[1:], frame_channels == 1, crop)
        observations = np.tile(frame, (shape[0] // frame_channels, 1, 1))  # as if nothing moved
    if observations.ndim == 3:
        observations = observations[None]
    if observations.shape[1:] != shape or not len(observations):
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{path}: expected observations of shape (T, {expected}), got {observations.shape}")
    images = _to_images(observations)
    low, high = images.min().item(), images.max().item()
    if not 0.0 <= low <= high <= 1.0:
        raise ValueError(f"{path}: expected floats in [0, 1], got values from {low:g} to {high:g}")
    return images


def _read_array(path: Path) -> Observations:
    """The array of a .npy or .npz file; of the former, rows are read when they are used."""
    try:
        content = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is not a file of arrays: {error}") from error
    if isinstance(content, np.ndarray):
        array: Observations = content
    else:
        with content:
            if len(content.files) != 1:
                raise ValueError(f"{path}: expected one array, got {content.files}")
            array = content[content.files[0]]
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{path}: expected uint8 or floats in [0, 1], got {array.dtype}")
    return array


def _to_images(observations: Observations) -> Tensor:
    """Some of the observations (T, C, H, W), in [0, 1]."""
    return to_unit(torch.from_numpy(np.array(observations[_spread(len(observations), MOST_OBSERVATIONS)])))


def _spread(count: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most so many of the numbers below ``count``, evenly, with the first and the last."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
