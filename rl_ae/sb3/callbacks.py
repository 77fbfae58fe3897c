"""Callbacks: progress, curves, reconstructions and checkpoints of a run."""

import csv
import time
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image
from tqdm import tqdm

from rl_ae.sb3.checkpoint import CheckpointWriter
from rl_ae.sb3.evaluation import compare
from rl_ae.sb3.pictures import write_atomically
from rl_ae.sb3.sac_ae import SACAE

Row = dict[str, float]


class LearningCurve(BaseCallback):
    """One row a finished training episode, in memory and in a CSV file.

    Columns: ``step`` (agent steps), ``frames`` (environment frames), ``seconds`` (of training, over all sessions),
    ``episode``, ``return`` (unscaled), ``reconstruction`` (the loss, mean over the last updates logged).

    Args:
        path: CSV file, rewritten whole with every checkpoint.
        frames_per_step: Action repeat.
        elapsed: Seconds trained in earlier sessions.
        rows: Rows of earlier sessions.
    """

    model: SACAE

    def __init__(self, path: Path, frames_per_step: int, elapsed: float = 0.0, rows: list[Row] | None = None) -> None:
        super().__init__()
        self.path, self.frames_per_step = path, frames_per_step
        self.rows = [] if rows is None else rows
        self._elapsed, self._started = elapsed, time.monotonic()
        self.reconstruction = float("nan")

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sessions."""
        return self._elapsed + time.monotonic() - self._started

    def _on_training_start(self) -> None:
        self._started = time.monotonic()

    def _on_step(self) -> bool:
        self.reconstruction = self.logger.name_to_value.get("train/reconstruction", self.reconstruction)
        for info in self.locals["infos"]:
            if "episode" in info:
                self.rows.append(
                    {
                        "step": self.num_timesteps,
                        "frames": self.num_timesteps * self.frames_per_step,
                        "seconds": round(self.seconds, 1),
                        "episode": len(self.rows) + 1,
                        "return": float(info["episode"]["r"]),
                        "reconstruction": float(self.reconstruction),
                    }
                )
        return True

    def write(self) -> None:
        """Write the rows to the CSV file."""

        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["step", "frames", "seconds", "episode", "return", "reconstruction"])
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomically(self.path, write)


def read_curve(path: Path) -> list[Row]:
    """The rows of a :class:`LearningCurve`'s file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


class Progress(BaseCallback):
    """A progress bar over agent steps with the last returns and the reconstruction loss.

    Args:
        curve: Where returns and losses are read from.
        total: Steps of the whole run.
    """

    def __init__(self, curve: LearningCurve, total: int) -> None:
        super().__init__()
        self.curve, self.total = curve, total

    def _on_training_start(self) -> None:
        self.bar = tqdm(total=self.total, initial=self.num_timesteps, unit="step", dynamic_ncols=True)

    def _on_step(self) -> bool:
        returns = [row["return"] for row in self.curve.rows[-5:]]
        self.bar.set_postfix_str(
            f"return {np.mean(returns) if returns else float('nan'):.1f}, "
            f"reconstruction loss {self.curve.reconstruction:.4g}",
            refresh=False,
        )
        self.bar.update(self.num_timesteps - self.bar.n)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


class TensorboardReconstructions(BaseCallback):
    """Frames above their reconstructions, from the replay buffer, in TensorBoard.

    Args:
        every: Steps between two pictures.
        frame_channels: Channels of the newest frame of a stack, 1 or 3.
        frames: Frames in a picture.
    """

    model: SACAE

    def __init__(self, every: int, frame_channels: int, frames: int = 8) -> None:
        super().__init__()
        self.every, self.frame_channels, self.frames = every, frame_channels, frames
        self._next = 0

    def _on_rollout_start(self) -> None:
        buffer = self.model.replay_buffer
        if self.num_timesteps < self._next or buffer is None or buffer.size() < self.frames:
            return
        self._next = self.num_timesteps + self.every
        newest = np.linspace(0, buffer.size() - 1, self.frames).astype(int)
        pair = compare(buffer.observations[newest, 0], self.model.policy.autoencoder, self.frame_channels)
        picture = np.concatenate([np.concatenate(list(images), axis=1) for images in pair])
        self.logger.record(
            "reconstructions",
            Image(torch.from_numpy(picture), "HWC"),
            exclude=("stdout", "log", "json", "csv"),
        )

    def _on_step(self) -> bool:
        return True


class Checkpoints(BaseCallback):
    """Write a checkpoint every so many steps, between two updates, when no transition is under way.

    Args:
        writer: Where to.
        every: Steps between two checkpoints.
        curve: Written with every checkpoint; its seconds are kept in it.
    """

    model: SACAE

    def __init__(self, writer: CheckpointWriter, every: int, curve: LearningCurve) -> None:
        super().__init__()
        self.writer, self.every, self.curve = writer, every, curve

    def _on_training_start(self) -> None:
        self._last = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.num_timesteps - self._last >= self.every:
            self.save()

    def save(self) -> None:
        """Write a checkpoint now."""
        self.writer.save(self.model, {"seconds": self.curve.seconds})
        self.curve.write()
        self._last = self.model.num_timesteps

    def _on_step(self) -> bool:
        return True
