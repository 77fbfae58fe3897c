"""Playing for probes: frames of whole episodes, and the simulator's state behind each."""

import sys
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from rl_ae.analysis.disentanglement import Floats, Integers
from rl_ae.envs.states import State, state_reader
from rl_ae.sb3.evaluation import FIRST_START_SEED, Observations, Predictor

#: Episodes that are played, and the most decisions in each.
EPISODES, STEPS = 20, 150
#: The most decisions that an action is held for.
HOLD = 8
#: The name and the group of a target that is no state.
REWARD = "reward"


class ProbeSet(NamedTuple):
    """Observations of whole episodes, in order, and what lay behind them. Starts are left out: no reward led there.

    Attributes:
        observations: (N, C, H, W), ``uint8``.
        actions: What was done next, (N, A); a row of an index's zeros and one for discrete ones.
        episodes: Of every row, (N,).
        targets: The state and the reward that came with the observation, (N, K).
        names: Of the targets.
        groups: Of the targets: those of :mod:`rl_ae.envs.states`, and ``reward``.
    """

    observations: Observations
    actions: Floats
    episodes: Integers
    targets: Floats
    names: tuple[str, ...]
    groups: tuple[str, ...]


class HeldActions:
    """Actions that stay for a while, so that something comes of them: random ones, or an agent's turn to choose.

    A turn takes 1 to ``hold`` decisions, uniformly. With an agent every second one is its own, on average, and in it
    the agent chooses anew each time, what it thinks best: so that the seed decides everything.

    Args:
        action_space: What random actions are drawn from; seeded here.
        seed: Of all draws.
        hold: Most decisions of a turn.
        agent: Who else acts.
    """

    def __init__(
        self, action_space: gym.Space[Any], seed: int = 0, hold: int = HOLD, agent: Predictor | None = None
    ) -> None:
        self.action_space, self.hold, self.agent = action_space, hold, agent
        # not the actions' own numbers again, on which the durations would depend
        self._rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        self._left, self._held = 0, None
        action_space.seed(seed)

    def predict(self, observation: Observations, *, deterministic: bool = True) -> tuple[Any, None]:
        """The next action."""
        if self._left == 0:
            self._left = int(self._rng.integers(1, self.hold + 1))
            agents_turn = self.agent is not None and self._rng.random() < 0.5
            self._held = None if agents_turn else self.action_space.sample()
        self._left -= 1
        if self._held is None:
            assert self.agent is not None
            return self.agent.predict(observation, deterministic=True)[0], None
        return self._held, None


def play(
    env: gym.Env[Any, Any],
    policy: Predictor,
    episodes: int = EPISODES,
    steps: int = STEPS,
    seed: int = 0,
    progress_bar: bool = True,
) -> ProbeSet:
    """Play episodes, and write down every observation and the state behind it.

    Args:
        env: Of images; :func:`~rl_ae.envs.states.state_reader` must know its state.
        policy: Who acts.
        episodes: To play, ≥ 3.
        steps: Most decisions of each.
        seed: Of the starts.
        progress_bar: Show one.

    Raises:
        ValueError: If a number is too small or the state is not known.
    """
    if episodes < 3 or steps < 2:
        raise ValueError(f"a probe needs episodes ≥ 3 and steps ≥ 2, got {episodes} and {steps}")
    read = state_reader(env)
    observations, actions, labels, states, rewards = [], [], [], [], []
    with progress(range(episodes * steps), "play", progress_bar) as bar:
        for episode in range(episodes):
            observation, _ = env.reset(seed=FIRST_START_SEED + seed + episode)
            action, _ = policy.predict(np.asarray(observation), deterministic=True)
            for _ in range(steps):
                observation, reward, terminated, truncated, _ = env.step(action)
                action, _ = policy.predict(np.asarray(observation), deterministic=True)
                observations.append(np.asarray(observation))
                actions.append(_as_vector(action, env.action_space))
                labels.append(episode)
                states.append(read())
                rewards.append(float(reward))
                bar.update()
                if terminated or truncated:
                    break
    names, groups = _names(states[0])
    return ProbeSet(
        np.stack(observations),
        np.stack(actions),
        np.array(labels, np.int64),
        np.column_stack([np.array([_values(state) for state in states]), rewards]),
        (*names, REWARD),
        (*groups, REWARD),
    )


def progress(steps: range, description: str, shown: bool) -> "tqdm[int]":
    """A bar over some steps; for a log file a line now and then."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(steps, description, disable=not shown, leave=False, unit="step", mininterval=interval)


def _as_vector(action: Any, space: gym.Space[Any]) -> Floats:
    vector: Floats = np.asarray(spaces.flatten(space, action), np.float64)
    return vector


def _names(state: State) -> tuple[list[str], list[str]]:
    pairs = [(name, group) for group, numbers in state.items() for name in numbers]
    return [name for name, _ in pairs], [group for _, group in pairs]


def _values(state: State) -> list[float]:
    return [value for numbers in state.values() for value in numbers.values()]
