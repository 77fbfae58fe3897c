"""Atari 2600 games, with the joystick's 18 discrete actions or with continuous ones (CALE, arXiv 2410.23810).

The preprocessing is DQN's (Mnih et al., Nature 518, 2015) in Stable-Baselines3's wrappers. Their ``WarpFrame``, and
Gymnasium's ``AtariPreprocessing``, need OpenCV to shrink and grey frames: :func:`~rl_ae.envs.shrink` does that here.
"""

import abc
import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.atari_wrappers import (
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
)
from stable_baselines3.common.monitor import Monitor

from rl_ae.envs.frames import PixelConfig
from rl_ae.envs.suites import Suite, import_extra, unknown

_NOOP, _FIRE = 0, 1
#: A television's; the emulator's own metadata say 30, as if every second frame was left out.
_FRAMES_PER_SECOND = 60


class JoystickActions(gym.Wrapper[Any, Any, Any, Any]):
    """Continuous Atari that takes an action of the joystick by its index as well, as Stable-Baselines3's wrappers do.

    Args:
        env: An Atari environment with ``continuous=True``.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        game: Any = env.unwrapped
        self._actions = [joystick_action(meaning) for meaning in game.get_action_meanings()]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step with (radius, angle, fire) of any float type, or with the index of a joystick's action."""
        if isinstance(action, int | np.integer):
            action = self._actions[int(action)]
        return self.env.step(np.asarray(action, np.float32))


def joystick_action(meaning: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The continuous action that pushes a joystick to where a discrete one has it.

    Args:
        meaning: What the action is called: ``NOOP``, ``FIRE``, ``UP``, …, ``DOWNLEFTFIRE``.

    Returns:
        (3,): radius, 0 or 1; angle in (-π, π]; fire, 0 or 1.
    """
    x, y = ("RIGHT" in meaning) - ("LEFT" in meaning), ("UP" in meaning) - ("DOWN" in meaning)
    return np.array([bool(x or y), math.atan2(y, x), meaning.endswith("FIRE")], np.float32)


class LifeEpisodes(EpisodicLifeEnv):
    """Every life an episode; and unlike Stable-Baselines3's, which goes on with the game, a seed starts a new one."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.was_real_done |= kwargs.get("seed") is not None
        return super().reset(**kwargs)


class FireAfterLife(gym.Wrapper[Any, Any, Any, Any]):
    """Begin every life of a game as :class:`LifeEpisodes` and ``FireResetEnv`` do: no operation, and two actions.

    For the evaluation: who never had to fire in training waits for the second ball of Breakout until time is up.

    Args:
        env: An Atari environment with ``FIRE`` for its action 1.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._lives = _lives(self.env)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        total = float(reward)
        if 0 < _lives(self.env) < self._lives:
            for start in (_NOOP, _FIRE, 2):
                if terminated or truncated:
                    break
                observation, reward, terminated, truncated, info = self.env.step(start)
                total += float(reward)
        self._lives = _lives(self.env)
        return observation, total, terminated, truncated, info


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtariProtocol(Suite):
    """What :class:`Atari` and :class:`ContinuousAtari` have in common: how games are played, DQN's way.

    A step repeats its action for ``pixels.action_repeat`` frames, 4 in DQN, and shows the maximum of the last two
    against flicker; without repeats a frame is shown as it is. Training learns from lives and clipped rewards; the
    evaluation is of whole games and their own rewards. Reported returns are of whole games, unclipped, in both.

    Attributes:
        sticky: Probability that a frame repeats the action before (Machado et al., arXiv 1709.06009, take 0.25).
        noop_max: Games begin with 1 to this many frames of no operation; 0 for none. Backgammon and VideoCheckers have
            no such action, unless in their ``full_action_space``.
        life_loss: In training, a lost life ends the episode.
        clip_reward: In training, rewards are -1, 0 or 1.
        max_frames: Frames after which a game is truncated; by default those of 30 minutes.

    Raises:
        ValueError: If a number is out of range.
    """

    sticky: float
    noop_max: int = 30
    life_loss: bool = True
    clip_reward: bool = True
    max_frames: int = 108_000

    def __post_init__(self) -> None:
        if not 0 <= self.sticky < 1:
            raise ValueError(f"sticky must be in [0, 1), got {self.sticky}")
        if self.noop_max < 0 or self.max_frames < 1:
            raise ValueError(f"noop_max must be ≥ 0 and max_frames ≥ 1, got {self.noop_max} and {self.max_frames}")

    @abc.abstractmethod
    def with_actions(self, name: str, **env_kwargs: Any) -> gym.Env[Any, Any]:
        """A game with its kind of actions, that ``step`` takes by their index as well.

        Args:
            name: Name of the game.
            **env_kwargs: Other arguments of it.
        """

    def make(self, name: str, pixels: PixelConfig, training: bool) -> gym.Env[Any, Any]:
        """The game ``name``, like ``SpaceInvaders``. See :class:`Suite`."""
        import_extra("ale_py", f"Atari's {name}", "atari")
        games = {env.removeprefix("ALE/").removesuffix("-v5") for env in gym.registry if env.startswith("ALE/")}
        if name not in games:
            raise unknown("game of Atari", name, games)
        env = self.with_actions(
            name,
            render_mode="rgb_array",
            frameskip=1,  # MaxAndSkipEnv repeats
            repeat_action_probability=self.sticky,
            max_num_frames_per_episode=self.max_frames,
        )
        env.metadata = {**env.metadata, "render_fps": _FRAMES_PER_SECOND}
        game: Any = env.unwrapped
        meanings: list[str] = game.get_action_meanings()
        # whether the game itself uses FIRE: the full set of actions always has it
        fires = "FIRE" in [action.name for action in game.ale.getMinimalActionSet()] and meanings[_FIRE] == "FIRE"
        if self.noop_max and meanings[_NOOP] == "NOOP":
            env = NoopResetEnv(env, self.noop_max)
        if pixels.action_repeat > 1:
            env = MaxAndSkipEnv(env, pixels.action_repeat)
        env = Monitor(env)  # inside, where games are whole and rewards unclipped
        if training and self.life_loss:
            env = LifeEpisodes(env)
        if fires:
            env = FireResetEnv(env)
        if fires and self.life_loss and not training:
            env = FireAfterLife(env)
        return ClipRewardEnv(env) if training and self.clip_reward else env


@dataclasses.dataclass(frozen=True, kw_only=True)
class Atari(AtariProtocol):
    """Games with discrete actions. :class:`AtariProtocol` has the other options.

    Attributes:
        sticky: As there; not in DQN.
        full_action_space: All 18 actions, not only those the game uses.
    """

    sticky: float = 0.0
    full_action_space: bool = False

    def with_actions(self, name: str, **env_kwargs: Any) -> gym.Env[Any, Any]:
        return gym.make(f"ALE/{name}-v5", full_action_space=self.full_action_space, **env_kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContinuousAtari(AtariProtocol):
    """Games with actions (radius, angle, fire) in [0, 1] × [-π, π] × [0, 1]. :class:`AtariProtocol` has the others.

    Attributes:
        sticky: As there; 0.25 as CALE's agents train for 50 million steps in Dopamine. They do so with
            ``life_loss=False``, and for 100 000 steps with lives, but without sticky actions.
        threshold: How far along an axis the joystick is pushed, or the button pressed, to count; above √½ no diagonal
            can be reached.

    Raises:
        ValueError: If a number is out of range.
    """

    sticky: float = 0.25
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {self.threshold}")

    def with_actions(self, name: str, **env_kwargs: Any) -> gym.Env[Any, Any]:
        env_kwargs |= {"continuous": True, "continuous_action_threshold": self.threshold}
        return JoystickActions(gym.make(f"ALE/{name}-v5", **env_kwargs))


def _lives(env: gym.Env[Any, Any]) -> int:
    game: Any = env.unwrapped
    return int(game.ale.lives())
