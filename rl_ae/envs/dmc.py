"""The DeepMind Control Suite (Tassa et al., arXiv 1801.00690) from pixels, through shimmy."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformAction
from stable_baselines3.common.monitor import Monitor

from rl_ae.envs.distractions import DISTRACTIONS
from rl_ae.envs.frames import ActionRepeat, PixelConfig, with_images
from rl_ae.envs.gl import rendering
from rl_ae.envs.suites import Suite, import_extra, unknown

#: Frames a step of the six tasks of PlaNet (CURL, arXiv 2004.04136, Table 3).
ACTION_REPEAT = {
    "ball_in_cup-catch": 4,
    "cartpole-swingup": 8,
    "cheetah-run": 4,
    "finger-spin": 2,
    "reacher-easy": 4,
    "walker-walk": 2,
}
#: … and of all others (DrQ-v2, arXiv 2107.09645).
_OTHER_ACTION_REPEAT = 2
#: Cameras that show more than the first (DrQ, arXiv 2004.13649, its code).
_CAMERA = {"quadruped": 2}
#: From here on MuJoCo's bound of a control means none.
_UNBOUNDED = 1e10


def action_repeat(task: str) -> int:
    """Frames a step that papers use for a task: :data:`ACTION_REPEAT`, else 2.

    Args:
        task: ``domain-task``, with or without ``dmc:``.
    """
    return ACTION_REPEAT.get(task.removeprefix("dmc:"), _OTHER_ACTION_REPEAT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DMControl(Suite):
    """Tasks of the DeepMind Control Suite, ``domain-task``. Episodes end by truncation, after 1000 frames.

    Frames are rendered at their final size, so nothing is cropped or resampled. Actions are those of the task in
    ``float32``.

    Attributes:
        camera: Index of the task's camera, -1 for the free one; by default the first, for quadruped the third.
        distraction: A name of :data:`~rl_ae.envs.DISTRACTIONS`: none, color, video or video_hard.
        distraction_seed: Of the distraction.

    Raises:
        ValueError: If there is no such distraction, or the seed is negative.
    """

    camera: int | None = None
    distraction: str = "none"
    distraction_seed: int = 0

    def __post_init__(self) -> None:
        if self.distraction not in DISTRACTIONS:
            raise unknown("distraction", self.distraction, DISTRACTIONS)
        if self.distraction_seed < 0:
            raise ValueError(f"distraction_seed must be ≥ 0, got {self.distraction_seed}")

    def make(self, name: str, pixels: PixelConfig, training: bool) -> gym.Env[Any, Any]:
        """The task, rendered; the same for training and evaluation. See :class:`Suite`."""
        env_name = f"dmc:{name}"
        if pixels.crop is not None:
            raise ValueError(f"{env_name} is rendered at its final size: choose a camera, not crop={pixels.crop}")
        with rendering(env_name):
            for module in ("shimmy", "dm_control.suite"):
                import_extra(module, env_name, "dmc")
        tasks = _tasks()
        if name not in tasks:
            raise unknown("task of dm_control", name, tasks)
        with rendering(env_name):
            return Monitor(with_images(ActionRepeat(self._make_task(name, pixels.size), pixels.action_repeat)))

    def _make_task(self, name: str, size: tuple[int, int]) -> gym.Env[Any, Any]:
        camera = _CAMERA.get(name.partition("-")[0], 0) if self.camera is None else self.camera
        height, width = size
        with _quiet():
            env: gym.Env[Any, Any] = gym.make(
                f"dm_control/{name}-v0",
                render_mode="rgb_array",
                render_kwargs={"height": height, "width": width, "camera_id": camera},
            )
        bounded = _with_bounded_actions(env, name)
        distraction = DISTRACTIONS[self.distraction]
        return bounded if distraction is None else distraction(bounded, self.distraction_seed)


def _tasks() -> set[str]:
    suite = import_extra("dm_control.suite", "dmc", "dmc")
    return {f"{domain}-{task}" for domain, task in suite.ALL_TASKS}


def _with_bounded_actions(env: gym.Env[Any, Any], name: str) -> gym.Env[Any, Any]:
    """Actions in ``float32``, which agents compute in and Stable-Baselines3 asks for."""
    space = env.action_space
    assert isinstance(space, spaces.Box)
    if max(-space.low.min(), space.high.max()) >= _UNBOUNDED:
        raise ValueError(f"the actions of {name} have no bounds and its episodes no end: SAC and TD3 need both")
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return TransformAction(env, lambda action: action, spaces.Box(low, high, dtype=np.float32))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without dm_control's complaint that its own cheetah uses a deprecated attribute."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
