"""Environments: any Gymnasium environment, DeepMind Control and Atari as stacked ``uint8`` frames.

A *step* is one decision of the agent, a *frame* one step of the environment: ``frames = steps × action_repeat``.

:func:`make_pixel_env` makes them all: ``"Pendulum-v1"``, ``"dmc:cheetah-run"`` (:class:`DMControl`), ``"ale:Pong"``
(:class:`Atari`), ``"cale:Pong"`` (:class:`ContinuousAtari`). To add a suite: a subclass of :class:`Suite` with its
options as fields, and its prefix in :data:`SUITES`.
"""

from rl_ae.envs.atari import Atari, AtariProtocol, ContinuousAtari, JoystickActions
from rl_ae.envs.distractions import DISTRACTIONS, Distraction, MovingBackground, MovingSurroundings, RandomColors
from rl_ae.envs.dmc import ACTION_REPEAT, DMControl, action_repeat
from rl_ae.envs.frames import ActionRepeat, Frame, PixelConfig, shrink
from rl_ae.envs.gl import choose_gl
from rl_ae.envs.make import SUITES, make_pixel_env, wrap_pixels
from rl_ae.envs.suites import Suite

__all__ = [
    "ACTION_REPEAT",
    "DISTRACTIONS",
    "SUITES",
    "ActionRepeat",
    "Atari",
    "AtariProtocol",
    "ContinuousAtari",
    "DMControl",
    "Distraction",
    "Frame",
    "JoystickActions",
    "MovingBackground",
    "MovingSurroundings",
    "PixelConfig",
    "RandomColors",
    "Suite",
    "action_repeat",
    "choose_gl",
    "make_pixel_env",
    "shrink",
    "wrap_pixels",
]
