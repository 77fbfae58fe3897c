"""Environments: any Gymnasium environment as stacked uint8 frames.

A *step* is one decision of the agent, a *frame* one step of the environment: ``frames = steps × action_repeat``.
"""

import dataclasses
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import AddRenderObservation, FrameStackObservation, TransformObservation, TransformReward
from PIL import Image
from stable_baselines3.common.monitor import Monitor

from rl_ae.pixels import MIN_IMAGE_SIZE

Frame = np.ndarray[Any, np.dtype[np.uint8]]


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Repeat each action and sum the rewards, until the episode ends.

    Args:
        env: Environment.
        times: Frames a step, ≥ 1.

    Raises:
        ValueError: If ``times`` is below 1.
    """

    def __init__(self, env: gym.Env[Any, Any], times: int) -> None:
        super().__init__(env)
        if times < 1:
            raise ValueError(f"an action is repeated at least once, got {times}")
        self.times = times

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step ``times`` frames."""
        total = 0.0
        for _ in range(self.times):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def shrink(frame: Frame, size: tuple[int, int], grayscale: bool, crop: tuple[int, int, int, int] | None) -> Frame:
    """Crop a frame, average it down to ``size`` and put its channels first.

    Args:
        frame: (H, W, 3), (H, W, 1) or (H, W).
        size: (H, W) of the result.
        grayscale: Return luminance, one channel.
        crop: (left, upper, right, lower) in pixels of the frame; all of it if ``None``.

    Returns:
        (C, H, W), C = 1 or 3.
    """
    image = Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame)
    image = image.convert("L") if grayscale else image.convert("RGB")
    pixels = np.asarray(image.resize(size[::-1], Image.Resampling.BOX, box=crop))
    return pixels[None] if grayscale else pixels.transpose(2, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """How an environment becomes pixels.

    Attributes:
        size: Height and width of a frame.
        grayscale: One channel a frame instead of three.
        frame_stack: Frames in an observation, oldest first.
        action_repeat: Environment frames an agent step.
        crop: Left, upper, right and lower edge of what is cut out of the frame before it is shrunk; in its pixels.
        reward_scale: Factor on the reward the agent learns from; reported returns are never scaled.

    Raises:
        ValueError: If a number is out of range.
    """

    size: tuple[int, int] = (84, 84)
    grayscale: bool = False
    frame_stack: int = 3
    action_repeat: int = 1
    crop: tuple[int, int, int, int] | None = None
    reward_scale: float = 1.0

    def __post_init__(self) -> None:
        height, width = self.size
        if min(self.size) < MIN_IMAGE_SIZE:
            raise ValueError(f"size must be at least {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE}, got {height}×{width}")
        if min(self.frame_stack, self.action_repeat) < 1:
            raise ValueError(f"frame_stack and action_repeat must be ≥ 1, got {self.frame_stack}, {self.action_repeat}")
        if min(self.size) <= self.observation_shape[0]:
            raise ValueError(
                "observations need more rows and columns than channels, because Stable-Baselines3 takes the smallest "
                f"dimension for the channels; got {self.observation_shape}"
            )

    @property
    def frame_channels(self) -> int:
        """Channels of one frame."""
        return 1 if self.grayscale else 3

    @property
    def observation_shape(self) -> tuple[int, int, int]:
        """(frame_stack·C, H, W)."""
        return self.frame_stack * self.frame_channels, *self.size


def make_pixel_env(
    env: str | gym.Env[Any, Any], pixels: PixelConfig = PixelConfig(), **env_kwargs: Any
) -> gym.Env[Frame, Any]:
    """A Gymnasium environment whose observations are its last frames.

    Observations that are ``uint8`` images are used; any other environment is rendered, off screen. ``Monitor`` records
    its returns.

    Args:
        env: An environment; or the id of a registered one, ``package:Id-v0`` to import the module that registers it.
        pixels: Size, stack, action repeat, crop.
        **env_kwargs: Arguments of the environment itself.

    Returns:
        An environment with observations (frame_stack·C, H, W), ``uint8``.

    Raises:
        ValueError: If the id is unknown, or the environment neither returns nor renders images.
        ImportError: If a package the environment needs is missing; names the extra that has it.
    """
    frames = Monitor(_make(env, pixels.action_repeat, env_kwargs))
    _check_crop(pixels.crop, frames.observation_space)
    shrunk = TransformObservation(
        frames,
        lambda frame: shrink(frame, pixels.size, pixels.grayscale, pixels.crop),
        spaces.Box(0, 255, (pixels.frame_channels, *pixels.size), np.uint8),
    )
    stacked = TransformObservation(
        FrameStackObservation(shrunk, pixels.frame_stack, padding_type="reset"),
        lambda stack: stack.reshape(pixels.observation_shape),  # from (frame_stack, C, H, W)
        spaces.Box(0, 255, pixels.observation_shape, np.uint8),
    )
    if pixels.reward_scale == 1.0:
        return stacked
    return TransformReward(stacked, lambda reward: pixels.reward_scale * float(reward))


def wrap_pixels(env: gym.Env[Any, Any], **pixels: Any) -> gym.Env[Frame, Any]:
    """:func:`make_pixel_env` for whoever names a wrapper and its arguments: ``make_vec_env``, or rl-baselines3-zoo.

    Args:
        env: An environment.
        **pixels: Fields of :class:`PixelConfig`.

    Raises:
        ValueError: As :func:`make_pixel_env`.
    """
    return make_pixel_env(env, PixelConfig(**pixels))


#: What an id or an entry point contains → the extra that installs what the environment needs.
_EXTRAS = {
    "envs.box2d": "box2d",
    "envs.classic_control": "demo",
    "envs.mujoco": "dmc",
    "dm_control": "dmc",
    "shimmy": "dmc",
    "ALE/": "atari",
    "ale_py": "atari",
}


def _make(env: str | gym.Env[Any, Any], action_repeat: int, env_kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    """The environment with repeated actions and image observations; see :func:`make_pixel_env` for what it raises."""
    if isinstance(env, gym.Env):
        if env_kwargs:
            raise ValueError(f"an environment that exists takes no arguments, got {sorted(env_kwargs)}")
        return _with_frames(ActionRepeat(env, action_repeat))
    try:
        try:
            made = gym.make(env, **{"render_mode": "rgb_array", **env_kwargs})
        except TypeError:  # an environment that observes images may know no render_mode
            made = gym.make(env, **env_kwargs)
        return _with_frames(ActionRepeat(made, action_repeat))
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise ImportError(f"{env} needs a package that is not installed: {_advice(env)} ({error})") from error
    except TypeError as error:
        raise ValueError(f"{env} does not take the arguments {sorted(env_kwargs)}: {error}") from error
    except gym.error.Error as error:
        raise ValueError(
            f"unknown environment: {str(error).rstrip('.')}. Environments of another package are known once it is "
            f"imported: write module:Id-v0, and {_advice(env)}"
        ) from error


def _advice(env: str) -> str:
    entry_point = str(gym.registry[env].entry_point) if env in gym.registry else ""
    for part, extra in _EXTRAS.items():
        if part in env or part in entry_point:
            return f'pip install "rl-ae[{extra}]"'
    return "install what its documentation names"


def _with_frames(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment itself if it observes images, else the environment rendered."""
    space = env.observation_space
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3):
        if len(space.shape) == 2 or space.shape[-1] in (1, 3):
            return env
        if space.shape[0] not in (1, 3):
            raise ValueError(f"expected frames of 1 or 3 channels, first or last, or of none; got {space.shape}")
        channels_last = spaces.Box(0, 255, (*space.shape[1:], space.shape[0]), np.uint8)
        return TransformObservation(env, lambda frame: frame.transpose(1, 2, 0), channels_last)
    if env.render_mode != "rgb_array":
        raise ValueError(
            f"{env.spec and env.spec.id} observes {space} and its render_mode is {env.render_mode!r}: "
            "expected uint8 images or render_mode='rgb_array'"
        )
    return AddRenderObservation(env, render_only=True)


def _check_crop(crop: tuple[int, int, int, int] | None, frames: spaces.Space[Any]) -> None:
    assert frames.shape is not None
    height, width = frames.shape[:2]
    if crop is not None:
        left, upper, right, lower = crop
        if not (0 <= left < right <= width and 0 <= upper < lower <= height):
            raise ValueError(
                f"crop (left, upper, right, lower) = {crop} is not inside the frame, {height}×{width} pixels"
            )
