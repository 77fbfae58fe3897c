"""Shared by all tests: one thread, and a tiny pixel environment whose state is known."""

import os
import typing

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from benchmarks.records import in_new_process
from rl_ae import precision

torch.set_num_threads(1)
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")


class DotEnv(gym.Env):
    """A bright square on black that actions push; the reward is minus its distance from the centre."""

    metadata: typing.ClassVar = {"render_modes": ["rgb_array"]}

    def __init__(self, shape=(3, 20, 20), actions=2, episode_length=10, dtype=np.uint8, high=255, low=0):
        self.observation_space = spaces.Box(low, high, shape, dtype)
        self.action_space = spaces.Box(-2.0, 2.0, (actions,), np.float32)
        self.episode_length = episode_length
        self.position = np.zeros(2)

    def _observe(self):
        image = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        row, column = ((self.position + 1) / 2 * (np.array(image.shape[1:]) - 4)).round().astype(int)
        image[:, row : row + 4, column : column + 4] = self.observation_space.high.max()
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.uniform(-1, 1, 2), 0
        return self._observe(), {}

    def step(self, action):
        self.position = np.clip(self.position + 0.1 * np.resize(action, 2), -1, 1)
        self.steps += 1
        reward = -float(np.linalg.norm(self.position))
        return self._observe(), reward, False, self.steps >= self.episode_length, {}


def step_critic(agent, batch):
    """The critic's step alone, as the paper's update makes it."""
    return agent._step_critic(batch, agent._target_q_values(batch, None))[1]


def step_representation(agent, batch):
    """The representation's step alone."""
    return agent._step_representation(batch, agent._encode(batch.observations))


def in_clean_process(function, *arguments):
    """Call a function of a test module in a process that has none of this one's state, only its imports."""
    return in_new_process(
        function, *arguments, imported=["benchmarks.execution", "rl_ae.sb3.collecting", "torch._dynamo"]
    )


@pytest.fixture
def dot_env():
    return DotEnv()


@pytest.fixture
def bf16(monkeypatch):
    """bfloat16 on every processor: where it has no instructions for it the arithmetic is the same, and slow."""
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: True)


@pytest.fixture(autouse=True, scope="session")
def logs_of_sb3(tmp_path_factory):
    """A folder for Stable-Baselines3's logger, which else makes a new one in the system's for every agent that learns.

    Processes that tests start inherit it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In continuous integration only a missing GPU excuses a skipped test."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail") and "gpu" not in item.keywords:
        report.outcome = "failed"
        report.longrepr = f"skipped in continuous integration: {report.longrepr}"
    return report
