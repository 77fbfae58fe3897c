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

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from rl_ae.analysis import plot_interpolation, plot_reconstructions, plot_samples, plot_traversals, walk_prior
from rl_ae.analysis.figures import last_frame
from rl_ae.autoencoders import Autoencoder
from rl_ae.autoencoders.base import WEIGHTS_FILE
from rl_ae.envs import PixelConfig, shrink
from rl_ae.files import write_atomically
from rl_ae.pixels import count_frame_channels, to_unit
from rl_ae.sb3.checkpoint import STATE_FILE, load_autoencoder_agent
from rl_ae.sb3.evaluation import FIRST_START_SEED, Observations, Predictor, RandomPolicy, compare, play_episode
from rl_ae.sb3.pictures import FRAMES_PER_SECOND, Frames, enlarge, save_film, side_by_side
from rl_ae.sb3.run_config import RunConfig
from rl_ae.sb3.runs import Run

#: Observations of an episode or a file that are looked at, spread evenly.
MOST_OBSERVATIONS = 256
#: Of those, the ones whose reconstructions are drawn.
RECONSTRUCTED = 8
#: Latent dimensions whose traversals are drawn, the most active ones.
TRAVERSED = 10

#: Observations of an episode or of files that are filmed, from the first on.
MOST_FILMED = 1_000
#: Draws of the prior that a walk visits, and frames from one to the next.
STOPS, FRAMES_A_STOP = 8, 20

Kind = Literal["reconstructions", "traversals", "interpolation", "samples", "video", "walk"]
#: From a number of observations to which of them are wanted, ascending.
Choose = Callable[[int], "np.ndarray[Any, np.dtype[np.int64]]"]


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


class Footage(NamedTuple):
    """Observations of an episode, or of files.

    Attributes:
        images: (T, C, H, W) in [0, 1].
        steps: Of each its number in the episode, or in all files together, (T,).
        frames_per_second: Observations a second of the environment's own time.
        episode_return: Of the episode, unscaled; ``None`` of files.
    """

    images: Tensor
    steps: np.ndarray[Any, np.dtype[np.int64]]
    frames_per_second: float
    episode_return: float | None = None


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

    def frame_channels(self, grayscale: bool) -> int:
        """Channels of one frame: the run's, or a saved autoencoder's.

        Args:
            grayscale: A saved autoencoder's channels are grey frames, though 3 divides their number.

        Raises:
            ValueError: If the autoencoder is of vectors.
        """
        shape = self.autoencoder.observation_shape
        if len(shape) != 3:
            raise ValueError(f"figures need an autoencoder of images, this one is of vectors {shape}")
        if self.config is not None:
            return self.config.pixels.frame_channels
        return count_frame_channels(shape[0], 1 if grayscale else None)


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
    """Write a picture or a film of an autoencoder.

    Args:
        kind: What is drawn.
        folder: Written by ``save_pretrained``, or a run's.
        source: Where frames come from; samples and walks need none.
        out: The picture, of a format that Matplotlib writes, or the film, of one that
            :func:`~rl_ae.sb3.pictures.save_film` writes; show_<kind> in the folder if omitted.
        rows: Latent dimensions whose traversals are drawn, the most active ones.
        seed: Of episode, samples and walk.

    Returns:
        The picture's or film's path.

    Raises:
        FileNotFoundError: If a folder or a file is missing.
        ValueError: If one is of the wrong kind, frames are of the wrong shape, or the autoencoder has no such figure.
    """
    subject = load_subject(folder)
    try:
        frame_channels = subject.frame_channels(source.grayscale)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    gather = functools.partial(gather_footage, subject, source, seed)
    look = _Look(subject.autoencoder, frame_channels, rows, seed, gather)
    if kind in _FILMS:
        film, frames_per_second = _FILMS[kind](look)
        return save_film(folder / f"show_{kind}" if out is None else out, film, frames_per_second)
    figure = _FIGURES[kind](look)
    path = folder / f"show_{kind}.png" if out is None else out
    return write_atomically(path, functools.partial(figure.savefig, format=path.suffix[1:] or "png"))


class _Look(NamedTuple):
    """What figures and films are made of; see :func:`show`."""

    autoencoder: Autoencoder
    frame_channels: int
    rows: int
    seed: int
    gather: Callable[..., Footage]

    @property
    def generator(self) -> torch.Generator:
        """Of samples and walks."""
        return torch.Generator().manual_seed(self.seed)


# ---------------------------------------------------------------------- figures


def _draw_reconstructions(look: _Look) -> Figure:
    images = look.gather().images
    shown = images[spread(len(images), RECONSTRUCTED)]
    return plot_reconstructions(look.autoencoder, shown, frame_channels=look.frame_channels)


def _draw_traversals(look: _Look) -> Figure:
    images = look.gather().images
    middle = images[len(images) // 2]
    return plot_traversals(look.autoencoder, middle, look.rows, reference=images, frame_channels=look.frame_channels)


def _draw_interpolation(look: _Look) -> Figure:
    images = look.gather().images
    if len(images) < 2:
        raise ValueError("an interpolation needs two frames, got one")
    return plot_interpolation(look.autoencoder, images[0], images[-1], frame_channels=look.frame_channels)


def _draw_samples(look: _Look) -> Figure:
    return plot_samples(look.autoencoder, generator=look.generator, frame_channels=look.frame_channels)


_FIGURES: dict[Kind, Callable[[_Look], Figure]] = {
    "reconstructions": _draw_reconstructions,
    "traversals": _draw_traversals,
    "interpolation": _draw_interpolation,
    "samples": _draw_samples,
}


# ---------------------------------------------------------------------- films


def _film_episode(look: _Look) -> tuple[Frames, float]:
    """Each frame left of what its latent alone decodes to, at the environment's own speed."""
    footage = look.gather(_beginning)
    return side_by_side(*compare(footage.images, look.autoencoder, look.frame_channels)), footage.frames_per_second


def _film_walk(look: _Look) -> tuple[Frames, float]:
    """What lies between draws of the prior, and back to the first."""
    images = walk_prior(look.autoencoder, STOPS, FRAMES_A_STOP, look.generator)
    return enlarge(last_frame(images, look.frame_channels)), FRAMES_PER_SECOND


_FILMS: dict[Kind, Callable[[_Look], tuple[Frames, float]]] = {"video": _film_episode, "walk": _film_walk}


# ---------------------------------------------------------------------- observations


def spread(count: int, most: int = MOST_OBSERVATIONS) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At most so many of the numbers below ``count``, evenly, with the first and the last."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _beginning(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(min(count, MOST_FILMED))


def gather_footage(subject: Subject, source: FrameSource, seed: int, choose: Choose = spread) -> Footage:
    """Observations for an autoencoder to look at.

    Args:
        subject: Whose they are to be; a run's agent plays in the run's environment unless the source says otherwise.
        source: Where they come from.
        seed: Of the episode that is played.
        choose: Which of the episode's, or of each file's.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is nowhere to take them from, or they are of the wrong shape or type.
    """
    frame_channels = subject.frame_channels(source.grayscale)
    if source.frames:
        return _read_files(subject.autoencoder, source, frame_channels, choose)
    channels, height, width = subject.autoencoder.observation_shape
    policy: Predictor
    if source.env is not None:
        pixels = PixelConfig(
            size=(height, width),
            grayscale=frame_channels == 1,
            frame_stack=channels // frame_channels,
            action_repeat=source.action_repeat,
            crop=source.crop,
        )
        config = RunConfig(env=source.env, env_kwargs=source.env_kwargs, pixels=pixels)
        env = config.make_env(training=False)
        policy = RandomPolicy(env.action_space, seed)
    elif subject.config is not None and subject.agent is not None:
        config = subject.config
        env, policy = config.make_env(training=False), subject.agent
    else:
        raise ValueError("a saved autoencoder has no environment: give it an env or frames")
    with contextlib.closing(env):
        episode = play_episode(policy, env, FIRST_START_SEED + seed)
        speed = _frames_per_second(env) / config.pixels.action_repeat
    steps = choose(len(episode.observations))
    return Footage(_to_images(episode.observations[steps]), steps, speed, episode.episode_return)


def _frames_per_second(env: gym.Env[Any, Any]) -> float:
    """Frames a second of an environment's own time."""
    control: Any = getattr(env.unwrapped, "_env", None)
    if hasattr(control, "control_timestep"):  # dm_control's: Shimmy's metadata have its milliseconds instead
        return 1.0 / float(control.control_timestep())
    return float(env.metadata.get("render_fps", FRAMES_PER_SECOND))


def _read_files(autoencoder: Autoencoder, source: FrameSource, frame_channels: int, choose: Choose) -> Footage:
    """Of each file some observations, in a row."""
    images, steps, before = [], [], 0
    for path in source.frames:
        observations = _read_file(path, autoencoder.image_shape(autoencoder.config), frame_channels, source.crop)
        chosen = choose(len(observations))
        images.append(_to_images(observations[chosen]))
        low, high = images[-1].min().item(), images[-1].max().item()
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(f"{path}: expected floats in [0, 1], got values from {low:g} to {high:g}")
        steps.append(before + chosen)
        before += len(observations)
    return Footage(torch.cat(images), np.concatenate(steps), FRAMES_PER_SECOND)


def _read_file(
    path: Path, shape: tuple[int, int, int], frame_channels: int, crop: tuple[int, int, int, int] | None
) -> Observations:
    """The observations (T, C, H, W) of a file."""
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
    return observations


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
    return to_unit(torch.from_numpy(np.array(observations)))
