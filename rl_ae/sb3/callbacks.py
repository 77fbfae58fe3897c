"""Callbacks: curves, logs, progress, reconstructions and checkpoints of a run."""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Image
from tqdm import tqdm

from rl_ae.files import write_atomically
from rl_ae.sb3.agent import AutoencoderAgent
from rl_ae.sb3.auxiliary import AuxiliaryLossCallback
from rl_ae.sb3.checkpoint import CheckpointWriter
from rl_ae.sb3.evaluation import compare, spread_observations
from rl_ae.stopping import StopSignals

Row = dict[str, float]
_COUNTS = ("step", "frames", "episodes")
_COLUMNS = (*_COUNTS, "seconds", "return", "reconstruction", "evaluation")


class LearningCurve(BaseCallback):
    """A row every so many steps, in memory and in a CSV file; dumps Stable-Baselines3's logs with it.

    Columns: ``step`` (agent steps), ``frames`` (environment frames), ``seconds`` (of training, over all sessions),
    ``episodes`` (finished), ``return`` (unscaled, mean over the episodes finished since the last row; NaN without any),
    ``reconstruction`` (the loss's term of that name, summed over an observation, at the last update: squared error or
    nats; NaN before the first),
    ``evaluation`` (mean return of deterministic episodes, if :attr:`evaluation` made some since the last row).

    Args:
        path: CSV file, rewritten whole with every checkpoint.
        every: Steps between two rows.
        frames_per_step: Action repeat.
        elapsed: Seconds trained in earlier sessions.
        rows: Rows of earlier sessions.
    """

    def __init__(
        self, path: Path, every: int, frames_per_step: int, elapsed: float = 0.0, rows: list[Row] | None = None
    ) -> None:
        super().__init__()
        self.path, self.every, self.frames_per_step = path, every, frames_per_step
        self.rows = [] if rows is None else rows
        #: Returns of the last finished episodes.
        self.recent: list[float] = [row["return"] for row in self.rows if np.isfinite(row["return"])][-5:]
        self.reconstruction = float("nan")
        #: Whose results get a column.
        self.evaluation: EvalCallback | None = None
        self._elapsed, self._started = elapsed, time.monotonic()
        self._episodes = int(self.rows[-1]["episodes"]) if self.rows else 0
        self._finished: list[float] = []

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all sessions."""
        return self._elapsed + time.monotonic() - self._started

    def _on_training_start(self) -> None:
        self._started = time.monotonic()
        self._last = self.num_timesteps

    def _on_step(self) -> bool:
        self.reconstruction = self.logger.name_to_value.get("train/reconstruction", self.reconstruction)
        for info in self.locals["infos"]:
            if "episode" in info:
                self._finished.append(float(info["episode"]["r"]))
                self.recent = [*self.recent[-4:], self._finished[-1]]
        return True

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._last >= self.every:
            self.add_row()

    def add_row(self) -> None:
        """Add a row for the present step, if there is none, and dump the logs."""
        step = self.model.num_timesteps
        if isinstance(self.model, AutoencoderAgent):
            self.model.log_metrics()
        self.reconstruction = self.logger.name_to_value.get("train/reconstruction", self.reconstruction)
        self.model.dump_logs()
        self._last = step
        if self.rows and self.rows[-1]["step"] == step:
            return
        self._episodes += len(self._finished)
        self.rows.append(
            {
                "step": step,
                "frames": step * self.frames_per_step,
                "seconds": round(self.seconds, 1),
                "episodes": self._episodes,
                "return": float(np.mean(self._finished)) if self._finished else float("nan"),
                "reconstruction": float(self.reconstruction),
                "evaluation": self._take_evaluation(),
            }
        )
        self._finished = []

    def _take_evaluation(self) -> float:
        if self.evaluation is None or not np.isfinite(self.evaluation.last_mean_reward):
            return float("nan")
        result = float(self.evaluation.last_mean_reward)
        self.evaluation.last_mean_reward = -np.inf  # SB3's own mark for "none yet"
        return result

    def write(self) -> None:
        """Write the rows to the CSV file."""

        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, _COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomically(self.path, write)


def read_curve(path: Path) -> list[Row]:
    """The rows of a :class:`LearningCurve`'s file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {name: int(value) if name in _COUNTS else float(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]


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
        interval = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs no animation
        self.bar = tqdm(
            total=self.total, initial=self.num_timesteps, unit="step", dynamic_ncols=True, mininterval=interval
        )

    def _on_step(self) -> bool:
        mean_return = f"{np.mean(self.curve.recent):.1f}" if self.curve.recent else "–"
        loss = self.curve.reconstruction
        random = self.num_timesteps <= getattr(self.model, "learning_starts", 0)
        seen = f"reconstruction loss {loss:.4g}" if np.isfinite(loss) else "random steps" if random else "learning"
        self.bar.set_postfix_str(f"return {mean_return}, {seen}", refresh=False)
        self.bar.update(self.num_timesteps - self.bar.n)
        return True

    def _on_training_end(self) -> None:
        self.bar.close()


class Heartbeat(BaseCallback):
    """Where the run is, in a small JSON file that others may read while it goes on.

    ``step``, ``steps``, ``first_step`` (of this session), ``seconds`` (of training, over all sessions), ``return``
    (mean of the last five episodes, ``null`` before the first) and ``time`` (seconds since 1970).

    Args:
        path: JSON file, replaced whole.
        curve: Where returns and seconds are read from.
        total: Steps of the whole run.
        every: Seconds between two beats.
    """

    def __init__(self, path: Path, curve: LearningCurve, total: int, every: float = 5.0) -> None:
        super().__init__()
        self.path, self.curve, self.total, self.every = path, curve, total, every
        self._next = 0.0

    def _on_training_start(self) -> None:
        self._first = self.num_timesteps
        self._beat()

    def _on_rollout_start(self) -> None:
        if time.monotonic() >= self._next:
            self._beat()

    def _on_training_end(self) -> None:
        self._beat()

    def _beat(self) -> None:
        self._next = time.monotonic() + self.every
        state = {
            "step": self.num_timesteps,
            "steps": self.total,
            "first_step": self._first,
            "seconds": round(self.curve.seconds, 1),
            "return": float(np.mean(self.curve.recent)) if self.curve.recent else None,
            "time": time.time(),
        }
        write_atomically(self.path, lambda path: path.write_text(json.dumps(state)))

    def _on_step(self) -> bool:
        return True


class StopOnSignal(BaseCallback):
    """Ends training after the step in which a signal came.

    Args:
        signals: Who takes note of them.
    """

    def __init__(self, signals: StopSignals) -> None:
        super().__init__()
        self.signals = signals

    def _on_step(self) -> bool:
        return not self.signals.received


class TensorboardReconstructions(BaseCallback):
    """Frames above their reconstructions, from the replay buffer, in TensorBoard.

    Args:
        every: Steps between two pictures.
        frame_channels: Channels of the newest frame of a stack, 1 or 3.
        frames: Frames in a picture.
    """

    model: AutoencoderAgent

    def __init__(self, every: int, frame_channels: int, frames: int = 8) -> None:
        super().__init__()
        self.every, self.frame_channels, self.frames = every, frame_channels, frames
        self._next = 0

    def _init_callback(self) -> None:
        if isinstance(self.model.observation_space, spaces.Dict):
            raise ValueError(f"TensorboardReconstructions shows images alone, got {self.model.observation_space}")

    def _on_rollout_start(self) -> None:
        buffer, learning = self.model.replay_buffer, self.model.learner.step > 0
        if self.num_timesteps < self._next or not learning or buffer is None or buffer.size() < self.frames:
            return
        self._next = self.num_timesteps + self.every
        observations = spread_observations(buffer, self.frames)
        pair = compare(observations, self.model.policy.autoencoder, self.frame_channels)
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
        auxiliary: What trains a stock agent's autoencoder; a callback that comes before this one.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        every: int,
        curve: LearningCurve,
        auxiliary: AuxiliaryLossCallback | None = None,
    ) -> None:
        super().__init__()
        self.writer, self.every, self.curve, self.auxiliary = writer, every, curve, auxiliary

    def _on_training_start(self) -> None:
        self._last = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._last >= self.every:
            self.save()

    def save(self) -> None:
        """Write a checkpoint now. The curve goes first: a resumed run drops the rows after its checkpoint."""
        self.curve.write()
        self.writer.save(self.model, {"seconds": self.curve.seconds}, self.auxiliary)
        self._last = self.model.num_timesteps

    def _on_step(self) -> bool:
        return True
