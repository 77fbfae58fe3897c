"""Frames: real ones, collected once, for autoencoders that are trained without an agent."""

import dataclasses
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rl_ae.envs import PixelConfig, action_repeat, make_pixel_env
from rl_ae.files import write_atomically
from rl_ae.losses import psnr
from rl_ae.pixels import to_unit

#: Seed of the first held-out episode; those to train on count from 0.
HELD_OUT_SEED = 1_000_000
SIZE = (64, 64)


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames (N, 3, 64, 64), ``uint8``.

    Attributes:
        train: To train on.
        held_out: Of other episodes.
    """

    train: Tensor
    held_out: Tensor

    def mean_frame_psnr(self) -> float:
        """PSNR of the training frames' mean on the held-out ones: what needs no latent."""
        mean = to_unit(self.train).mean(dim=0)
        return psnr((to_unit(self.held_out) - mean).square().mean()).item()


#: An episode's frames, by its seed.
Episodes = Callable[[int], Iterator[np.ndarray]]


def _car_racing() -> Episodes:
    """CarRacing driven by random actions, which are held for a while so that the car leaves the start.

    Short episodes, because the car ends on the grass, without the seconds in which the camera comes down to it.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # no window, and none is needed
    env = make_pixel_env("CarRacing-v3", PixelConfig(size=SIZE, frame_stack=1, action_repeat=4))
    held, zoom, kept = 5, 15, 50  # decisions

    def episode(seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        env.reset(seed=seed)
        for decision in range(zoom + kept):
            if decision % held == 0:  # gas on average, and the brake now and then
                brake = 0.2 if rng.random() < 0.2 else 0.0
                action = np.array([rng.uniform(-0.6, 0.6), rng.uniform(0.0, 1.0), brake], np.float32)
            frame, _, terminated, truncated, _ = env.step(action)
            if decision >= zoom:
                yield frame
            if terminated or truncated:  # it has left the field
                return

    return episode


def _dmc(task: str) -> Callable[[], Episodes]:
    """A task of the DeepMind Control Suite, uniform actions held for two decisions each, 100 frames an episode."""

    def open_env() -> Episodes:
        env = make_pixel_env(f"dmc:{task}", PixelConfig(size=SIZE, frame_stack=1, action_repeat=action_repeat(task)))

        def episode(seed: int) -> Iterator[np.ndarray]:
            rng = np.random.default_rng(seed)
            env.reset(seed=seed)
            for decision in range(100):
                if decision % 2 == 0:
                    action = rng.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32)
                frame, _, terminated, truncated, _ = env.step(action)
                yield frame
                if terminated or truncated:
                    return

        return episode

    return open_env


#: Name → opens an environment.
SOURCES: dict[str, Callable[[], Episodes]] = {"car_racing": _car_racing, "cheetah-run": _dmc("cheetah-run")}


def collect(
    episodes: Episodes, first_seed: int, count: int, folder: Path, after_frames: Callable[[int], Any]
) -> np.ndarray:
    """Frames (count, 3, 64, 64), ``uint8``, of episodes with seeds from a number upwards, which a folder keeps."""
    found: list[np.ndarray] = []
    missing = count
    for seed in itertools.count(first_seed):
        path = folder / f"{seed}.npz"
        if not path.exists():
            frames = np.reshape(list(episodes(seed)), (-1, 3, *SIZE)).astype(np.uint8)
            write_atomically(path, lambda file, frames=frames: np.savez_compressed(file, frames=frames))
        with np.load(path) as episode:
            found.append(episode["frames"][:missing])
        missing -= len(found[-1])
        after_frames(len(found[-1]))
        if missing == 0:
            break
    return np.concatenate(found)


def load_frames(path: Path, source: str, train: int, held_out: int) -> Frames:
    """The frames in a file, collected if there is none; a collection that was killed goes on.

    Args:
        path: An ``.npz`` file; until it is there, a folder of its name holds episodes.
        source: A name in :data:`SOURCES`.
        train: Frames to train on.
        held_out: Frames to measure on, of other episodes.

    Raises:
        ValueError: If the file holds more or fewer.
    """
    if not path.exists():
        episodes, folder = SOURCES[source](), path.with_name(f"{path.stem}_episodes")
        with progress_bar(train + held_out, "frame") as bar:
            seen = collect(episodes, 0, train, folder, bar.update)
            unseen = collect(episodes, HELD_OUT_SEED, held_out, folder, bar.update)
        write_atomically(path, lambda file: np.savez_compressed(file, train=seen, held_out=unseen))
        shutil.rmtree(folder)
    with np.load(path) as arrays:
        frames = Frames(torch.from_numpy(arrays["train"]), torch.from_numpy(arrays["held_out"]))
    if (found := (len(frames.train), len(frames.held_out))) != (train, held_out):
        raise ValueError(f"{path} holds {found} frames, expected {(train, held_out)}; use another --runs")
    return frames


def progress_bar(total: int, unit: str) -> Any:
    """A bar for a terminal, and a line now and then for a log file."""
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, unit=unit, dynamic_ncols=True, mininterval=interval, smoothing=0)
