"""Environments that Gymnasium makes, by id; and environments that exist."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor

from rl_ae.envs.frames import ActionRepeat, with_images
from rl_ae.envs.gl import rendering

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


def make_registered(env: str, action_repeat: int, env_kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    """A registered environment with repeated actions and images; :func:`~rl_ae.envs.make_pixel_env` says the rest.

    Args:
        env: Its id, ``package:Id-v0`` to import the module that registers it.
        action_repeat: Frames a step.
        env_kwargs: Its arguments.

    Raises:
        ValueError: If the id or an argument is unknown, or it neither returns nor renders images.
        ImportError: If a package is missing, or OpenGL.
    """
    try:
        with _rendering(env):
            try:
                made = gym.make(env, **{"render_mode": "rgb_array", **env_kwargs})
            except TypeError:  # an environment that observes images may know no render_mode
                made = gym.make(env, **env_kwargs)
            return _watch(made, action_repeat)
    except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
        raise ImportError(f"{env} needs a package that is not installed: {_advice(env)} ({error})") from error
    except TypeError as error:
        raise ValueError(f"{env} does not take the arguments {sorted(env_kwargs)}: {error}") from error
    except gym.error.Error as error:
        raise ValueError(
            f"unknown environment: {str(error).rstrip('.')}. Environments of another package are known once it is "
            f"imported: write module:Id-v0, and {_advice(env)}"
        ) from error


def watch(env: gym.Env[Any, Any], action_repeat: int) -> gym.Env[Any, Any]:
    """Repeat actions, observe images, record returns.

    Args:
        env: An environment.
        action_repeat: Frames a step.

    Raises:
        ValueError: If it neither returns nor renders images.
        ImportError: If it is MuJoCo's and cannot be rendered.
    """
    with _rendering(env.spec.id if env.spec else ""):
        return _watch(env, action_repeat)


def _watch(env: gym.Env[Any, Any], action_repeat: int) -> gym.Env[Any, Any]:
    return Monitor(with_images(ActionRepeat(env, action_repeat)))


def _rendering(env: str) -> AbstractContextManager[None]:
    return rendering(env) if _needs(env, "dmc") else nullcontext()


def _describe(env: str) -> str:
    """The id and where it leads to."""
    return f"{env} {gym.registry[env].entry_point if env in gym.registry else ''}"


def _needs(env: str, extra: str) -> bool:
    return any(part in _describe(env) for part, needed in _EXTRAS.items() if needed == extra)


def _advice(env: str) -> str:
    for extra in _EXTRAS.values():
        if _needs(env, extra):
            return f'pip install "rl-ae[{extra}]"'
    return "install what its documentation names"
