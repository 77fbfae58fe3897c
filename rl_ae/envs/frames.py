"""From an environment with images of any size to stacked ``uint8`` frames of one size."""

import dataclasses
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import AddRenderObservation, FrameStackObservation, TransformObservation, TransformReward
from PIL import Image

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


def with_images(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment itself if it observes images, else the environment rendered.

    Args:
        env: An environment.

    Returns:
        Observations (H, W, 1), (H, W, 3) or (H, W), ``uint8``.

    Raises:
        ValueError: If it neither returns nor renders images.
    """
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


def stack_frames(env: gym.Env[Any, Any], pixels: PixelConfig) -> gym.Env[Frame, Any]:
    """Crop, shrink and stack what :func:`with_images` observes, and scale the reward.

    Args:
        env: An environment that observes images.
        pixels: Size, stack, crop, factor on the reward.

    Returns:
        Observations (frame_stack·C, H, W), ``uint8``.

    Raises:
        ValueError: If the crop is not inside the image.
    """
    _check_crop(pixels.crop, env.observation_space)
    shrunk = TransformObservation(
        env,
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


def _check_crop(crop: tuple[int, int, int, int] | None, frames: spaces.Space[Any]) -> None:
    assert frames.shape is not None
    height, width = frames.shape[:2]
    if crop is not None:
        left, upper, right, lower = crop
        if not (0 <= left < right <= width and 0 <= upper < lower <= height):
            raise ValueError(
                f"crop (left, upper, right, lower) = {crop} is not inside the frame, {height}×{width} pixels"
            )
