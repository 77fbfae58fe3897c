"""FrameReplayBuffer returns what Stable-Baselines3's buffers return, and keeps every frame once."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from conftest import DotEnv
from rl_ae.sb3 import FrameReplayBuffer

ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
DISCRETE = spaces.Discrete(3)


# ---------------------------------------------------------------------- random streams of stacked episodes


@dataclasses.dataclass
class Layout:
    """How frames (C, 2, 2) become an observation."""

    name: str
    channels: int = 1

    @property
    def order(self):
        return "last" if self.name.endswith("last") else "first"

    def stack(self, frames):
        """(n, C, 2, 2) to an observation."""
        n = len(frames)
        return {
            "channels_first": lambda: frames.reshape(n * self.channels, 2, 2),
            "channels_last": lambda: frames.transpose(2, 3, 0, 1).reshape(2, 2, n * self.channels),
            "gymnasium_chw": lambda: frames,
            "gymnasium_hwc": lambda: frames.transpose(0, 2, 3, 1),
            "vector_last": lambda: frames.reshape(n, -1).ravel(),
        }[self.name]()


LAYOUTS = ["channels_first", "channels_last", "gymnasium_chw", "gymnasium_hwc", "vector_last"]


@dataclasses.dataclass
class Stream:
    """Transitions of ``n_envs`` environments, as ``OffPolicyAlgorithm`` passes them on.

    Few values a pixel, so that frames repeat and episodes begin as others ended.
    """

    rng: np.random.Generator
    layout: Layout
    n_stack: int
    n_envs: int
    dtype: type
    longest_episode: int
    padding: str

    def __post_init__(self):
        self.windows = [self.start() for _ in range(self.n_envs)]
        self.left = [self.length() for _ in range(self.n_envs)]

    def frame(self):
        return self.rng.integers(0, 2, (self.layout.channels, 2, 2)).astype(self.dtype)

    def length(self):
        return self.rng.integers(1, self.longest_episode + 1)

    def start(self):
        first = self.frame()
        pad = {"zero": lambda: np.zeros_like(first), "repeat": lambda: first, "other": self.frame}[self.padding]
        return [*(pad() for _ in range(self.n_stack - 1)), first]

    def observe(self):
        return np.stack([self.layout.stack(np.stack(window)) for window in self.windows])

    def space(self):
        shape = self.layout.stack(np.zeros((self.n_stack, self.layout.channels, 2, 2))).shape
        return spaces.Box(0, 255, shape, self.dtype)

    def step(self):
        """(observation, next observation, done, infos)."""
        observation = self.observe()
        self.windows = [[*window[1:], self.frame()] for window in self.windows]
        next_observation = self.observe()
        dones, infos = np.zeros(self.n_envs, bool), []
        for env in range(self.n_envs):
            self.left[env] -= 1
            reset_unseen = self.rng.random() < 0.05  # by a second learn()
            dones[env] = self.left[env] == 0 and not reset_unseen
            infos.append({"TimeLimit.truncated": self.rng.random() < 0.5} if dones[env] else {})
            if self.left[env] == 0 or reset_unseen:
                self.windows[env], self.left[env] = self.start(), self.length()
        return observation, next_observation, dones, infos


@st.composite
def cases(draw):
    n_envs = draw(st.integers(1, 3))
    n_steps = draw(st.integers(1, 5))
    return {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "layouts": [
            (Layout(draw(st.sampled_from(LAYOUTS)), draw(st.integers(1, 3))), draw(st.integers(1, 4))) for _ in range(2)
        ],
        "n_envs": n_envs,
        "n_steps": n_steps,
        "rows": draw(st.integers(n_steps, 12)),
        "steps": draw(st.integers(1, 40)),
        "dtype": draw(st.sampled_from([np.uint8, np.float32])),
        "longest_episode": draw(st.sampled_from([1, 2, 5, 30])),
        "padding": draw(st.sampled_from(["zero", "repeat", "other"])),
        "handle_timeout_termination": draw(st.booleans()),
        "actions": draw(st.sampled_from([ACTIONS, DISCRETE])),
        "normalize": draw(st.booleans()),
        "storage": draw(st.sampled_from(["memory", "memory", "device"])),
    }


def normalizer():
    env = VecNormalize(DummyVecEnv([DotEnv]), norm_obs=False)
    env.ret_rms.var = np.array(7.0)
    return env


NORMALIZER = normalizer()


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif one is not None:
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other)


def same_draws(buffer, reference, seed, batch_size, env):
    """Both draw the same and leave the generator in the same state."""
    samples, states = [], []
    for source in (buffer, reference):
        np.random.seed(seed)
        samples.append(source.sample(batch_size, env=env))
        states.append(np.random.get_state()[1].tolist() + [np.random.get_state()[2]])
    assert states[0] == states[1]
    assert type(samples[0]) is type(samples[1])
    for one, other in zip(*samples, strict=True):
        same(one, other)


def keeps_what_is_referred_to(part):
    """No frame is lost, none is kept for nothing."""
    used = np.unique(part.references[part.references >= 0])
    assert part.store.kept == len(used)
    assert not set(used.tolist()) & set(part.store._free)


def replay(case, streams, buffer, reference, join):
    """Add a stream to both and compare draws on the way."""
    rng = np.random.default_rng(case["seed"])
    env = NORMALIZER if case["normalize"] else None
    for step in range(case["steps"]):
        observations, next_observations, dones, infos = join([stream.step() for stream in streams])
        actions = np.array([case["actions"].sample() for _ in range(case["n_envs"])])
        rewards = rng.normal(size=case["n_envs"])
        for target in (buffer, reference):
            target.add(observations, next_observations, actions, rewards, dones, infos)
        if step % 7 == 0 or step == case["steps"] - 1:
            batch_size = min(16, case["rows"] * case["n_envs"])
            same_draws(buffer, reference, int(rng.integers(2**32)), batch_size, env)
            for part in buffer._parts.values():
                if hasattr(part, "references"):
                    keeps_what_is_referred_to(part)


def make_streams(case, count):
    """Streams of the same episodes: same generator, same lengths."""
    names = ("n_envs", "dtype", "longest_episode", "padding")
    return [
        Stream(np.random.default_rng(case["seed"]), layout, n_stack, **{name: case[name] for name in names})
        for layout, n_stack in case["layouts"][:count]
    ]


@settings(max_examples=500, deadline=None)
@given(case=cases())
def test_it_returns_what_sb3s_buffers_return(case):
    (stream,) = make_streams(case, 1)
    common = {"device": "cpu", "n_envs": case["n_envs"]}
    common["handle_timeout_termination"] = case["handle_timeout_termination"]
    arguments = (case["rows"] * case["n_envs"], stream.space(), case["actions"])
    n_step = {"n_steps": case["n_steps"], "gamma": 0.9}
    buffer = FrameReplayBuffer(
        *arguments,
        **common,
        n_stack=stream.n_stack,
        channels_order=stream.layout.order,
        storage=case["storage"],
        **(n_step if case["n_steps"] > 1 else {}),
    )
    if case["n_steps"] > 1:
        reference = NStepReplayBuffer(*arguments, **common, **n_step)
    else:
        reference = ReplayBuffer(*arguments, **common)
    replay(case, [stream], buffer, reference, lambda steps: steps[0])
