"""An environment that can be told to fail; as a module, so that collecting processes can make it by name."""

import os
import resource
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from conftest import DotEnv


class Fragile(DotEnv):
    """A dot whose episodes have 4 to 7 steps.

    Args:
        notes: Folder: of its own notes, and of those it obeys. ``full``: no file can grow beyond 2,000 bytes.
        doomed: Seed of the episode in which the process is killed.
        deaths: How many times it is.
        pause: Seconds a step takes.
    """

    def __init__(self, notes="", doomed=-1, deaths=0, pause=0.0):
        super().__init__(shape=(3, 24, 24))
        self.notes, self.doomed, self.deaths, self.pause = Path(notes), doomed, deaths, pause

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        self.episode_length = int(self.np_random.integers(4, 8))
        if seed == self.doomed and len(list(self.notes.glob("death-*"))) < self.deaths:
            (self.notes / f"death-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        limit = 2_000 if (self.notes / "full").exists() else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return observation, info

    def step(self, action):
        time.sleep(self.pause)
        return super().step(action)

    def _observe(self):
        noise = np.random.default_rng(int(1e6 * abs(self.position[0]))).integers(0, 100, (3, 24, 24))
        return np.maximum(super()._observe(), noise).astype(np.uint8)


gym.register("Fragile-v0", Fragile)
