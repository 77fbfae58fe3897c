"""One function for every environment: the suites by their prefix, all else by Gymnasium."""

import dataclasses
import importlib.util
from typing import Any

import gymnasium as gym

from rl_ae.envs.atari import Atari, ContinuousAtari
from rl_ae.envs.dmc import DMControl
from rl_ae.envs.frames import Frame, PixelConfig, stack_frames
from rl_ae.envs.registered import make_registered, watch
from rl_ae.envs.suites import Suite, unknown

#: prefix → suite: ``"dmc:cheetah-run"``, ``"ale:Pong"``, ``"cale:Pong"``.
SUITES: dict[str, type[Suite]] = {"dmc": DMControl, "ale": Atari, "cale": ContinuousAtari}
_DEFAULT_PIXELS = PixelConfig()


def make_pixel_env(
    env: str | gym.Env[Any, Any], pixels: PixelConfig = _DEFAULT_PIXELS, training: bool = True, **env_kwargs: Any
) -> gym.Env[Frame, Any]:
    """An environment whose observations are its last frames.

    Observations that are ``uint8`` images are used; any other environment is rendered, off screen. ``Monitor`` records
    its returns.

    Args:
        env: An environment; the name of one of a suite, ``dmc:cheetah-run``, ``ale:Pong`` or ``cale:Pong``; or the id
            of a registered one, ``package:Id-v0`` to import the module that registers it.
        pixels: Size, stack, action repeat, crop.
        training: Whether to learn from; else it is the evaluation's, of whole games and their own rewards. They differ
            for Atari only.
        **env_kwargs: Options of the suite, the fields of its class in :data:`SUITES`; or arguments of the environment
            itself.

    Returns:
        An environment with observations (frame_stack·C, H, W), ``uint8``.

    Raises:
        ValueError: If the name or an argument is unknown, or the environment neither returns nor renders images.
        ImportError: If a package the environment needs is missing, names the extra that has it; or if MuJoCo cannot be
            rendered, names the libraries.
    """
    return stack_frames(_make(env, pixels, training, env_kwargs), pixels)


def wrap_pixels(env: gym.Env[Any, Any], **pixels: Any) -> gym.Env[Frame, Any]:
    """:func:`make_pixel_env` for whoever names a wrapper and its arguments: ``make_vec_env``, or rl-baselines3-zoo.

    Args:
        env: An environment.
        **pixels: Fields of :class:`PixelConfig`.

    Raises:
        ValueError: As :func:`make_pixel_env`.
    """
    return make_pixel_env(env, PixelConfig(**pixels))


def _make(
    env: str | gym.Env[Any, Any], pixels: PixelConfig, training: bool, env_kwargs: dict[str, Any]
) -> gym.Env[Any, Any]:
    """The environment with repeated actions and images; see :func:`make_pixel_env` for what it raises."""
    if isinstance(env, gym.Env):
        if env_kwargs:
            raise ValueError(f"an environment that exists takes no arguments, got {sorted(env_kwargs)}")
        return watch(env, pixels.action_repeat)
    prefix, colon, name = env.partition(":")
    if colon and prefix in SUITES:
        return _options(env, SUITES[prefix], env_kwargs).make(name, pixels, training)
    if colon and "-v" not in name and not _can_import(prefix):
        raise unknown(f"environment {env!r}, of the suite", prefix, SUITES)
    if "distraction" in env_kwargs:
        raise ValueError(f"distractions are of dmc:domain-task environments, {env} has none")
    return make_registered(env, pixels.action_repeat, env_kwargs)


def _options(env: str, suite: type[Suite], env_kwargs: dict[str, Any]) -> Suite:
    assert dataclasses.is_dataclass(suite)
    known = [field.name for field in dataclasses.fields(suite)]
    if wrong := sorted(env_kwargs.keys() - set(known)):
        raise ValueError(f"{env} does not take the arguments {wrong}, expected some of {', '.join(known)}")
    return suite(**env_kwargs)


def _can_import(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # a package above it is missing, or it is empty
        return False
