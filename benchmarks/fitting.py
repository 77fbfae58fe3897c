"""Fitting: an autoencoder's training on frames in memory, measured on the way, which goes on where it was killed."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.records import write_json
from rl_ae import Autoencoder, create_learner
from rl_ae.configs import AutoencoderConfig
from rl_ae.files import write_atomically
from rl_ae.pixels import to_unit


class Fit:
    """One variant and seed: its files, its learner, its curve.

    Args:
        folder: Made if it is not there.
        variant: What it is called.
        config: Of the autoencoder, for images of one shape.
        seed: Of weights, batches and noise.
        batch_size: Frames an update.
        cooldown: Share of all updates, at the end, in which the step sizes fall linearly to 0 (arXiv 2405.18392).

    Attributes:
        learner: In the state of the last checkpoint, or fresh.
        rows: The curve so far: ``step``, what was measured, and ``seconds`` of updates.
        cooled_for: The number of updates at whose end the step sizes are 0, if they have begun to fall.

    Raises:
        ValueError: If the folder holds a fit with other settings.
    """

    def __init__(
        self,
        folder: Path,
        variant: str,
        config: AutoencoderConfig,
        seed: int,
        batch_size: int,
        cooldown: float = 0.0,
    ) -> None:
        self.folder, self.variant, self.seed, self.batch_size = folder, variant, seed, batch_size
        self.cooldown = cooldown
        settings = json.loads(
            json.dumps({"variant": variant, "seed": seed, "batch_size": batch_size, "config": config.to_dict()})
        )
        path = folder / "run.json"
        if not path.exists():
            write_json(path, settings)
        elif (found := json.loads(path.read_text())) != settings:
            raise ValueError(f"{folder} holds another run: expected {settings}, got {found}; use another --runs")

        torch.manual_seed(seed)
        self.learner = create_learner(config)
        self._step_sizes = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.learner.optimizers]
        self.rows: list[dict[str, float]] = []
        self.cooled_for: int | None = None
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.learner.load_state_dict(state["learner"])
            self.rows, self.cooled_for = state["rows"], state.get("cooled_for")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def summary(self) -> Path:
        """Written by whoever trains it, once it is finished."""
        return self.folder / "summary.json"

    def is_finished(self, steps: int) -> bool:
        """Whether it has been trained and summarised with as many steps."""
        return self.summary.exists() and json.loads(self.summary.read_text())["steps"] == steps

    def check(self, steps: int) -> None:
        """Refuse to train to a step that lies behind, or that the step sizes were not to fall for.

        Raises:
            ValueError: If that is so.
        """
        if self.learner.step > steps:
            raise ValueError(f"{self.folder} is at step {self.learner.step}, beyond {steps}; use another --runs")
        if self.cooled_for not in (None, steps):
            raise ValueError(
                f"{self.folder} has been cooled down for {self.cooled_for} steps, not for {steps}; use another --runs"
            )
        if self.cooled_for is None and self.learner.step > (begin := self._cooling_begins(steps)):
            raise ValueError(
                f"{self.folder} is at step {self.learner.step} and not cooled down, which for {steps} steps begins at "
                f"{begin}; use another --runs"
            )

    def train(
        self,
        steps: int,
        frames: Tensor,
        measure: Callable[[Autoencoder], dict[str, float]],
        measure_every: int,
        after_step: Callable[[], Any],
    ) -> None:
        """Train on to a step, measuring on the way, each time with a checkpoint.

        Raises:
            ValueError: As :meth:`check`.
            FloatingPointError: If a loss is not finite.
        """
        self.check(steps)
        learner = self.learner
        seconds = self.rows[-1]["seconds"] if self.rows else 0.0
        while learner.step < steps:
            started = time.monotonic()
            # of batch and noise; a generator for each step, so that there is none to be stored
            rng = np.random.default_rng((self.seed, learner.step))
            torch.manual_seed(int(rng.integers(2**31)))
            batch = frames[rng.integers(len(frames), size=self.batch_size)]
            self._set_step_sizes(steps)
            metrics = learner.update(to_unit(batch))
            if not math.isfinite(metrics["total"]):
                raise FloatingPointError(f"{self.folder}: {metrics} at step {learner.step}")
            seconds += time.monotonic() - started
            if learner.step == steps or learner.step % measure_every == 0:
                self.rows.append({"step": learner.step, **measure(learner.autoencoder), "seconds": round(seconds, 1)})
                state = {"learner": learner.state_dict(), "rows": self.rows, "cooled_for": self.cooled_for}
                write_atomically(self.checkpoint, lambda path, state=state: torch.save(state, path))
            after_step()

    def _cooling_begins(self, steps: int) -> int:
        return steps - round(self.cooldown * steps)

    def _set_step_sizes(self, steps: int) -> None:
        """Those of the next update, of so many in all."""
        begin, step = self._cooling_begins(steps), self.learner.step
        if step >= begin:
            self.cooled_for = steps
        share = min((steps - step) / max(steps - begin, 1), 1.0)
        for optimizer, sizes in zip(self.learner.optimizers, self._step_sizes, strict=True):
            for group, size in zip(optimizer.param_groups, sizes, strict=True):
                group["lr"] = share * size
