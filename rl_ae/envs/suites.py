"""What is common to suites of environments: each is a class whose fields are its options."""

import abc
import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import gymnasium as gym

from rl_ae.envs.frames import PixelConfig


class Suite(abc.ABC):
    """Options of a suite of environments. Subclasses are frozen dataclasses, their fields the options."""

    @abc.abstractmethod
    def make(self, name: str, pixels: PixelConfig, training: bool) -> gym.Env[Any, Any]:
        """An environment of the suite.

        Args:
            name: Its name in the suite.
            pixels: How it becomes pixels; of this, a suite sees to the repeated actions.
            training: Whether to learn from; else it is the evaluation's.

        Returns:
            Observations (H, W, 3), ``uint8``; a ``Monitor`` inside that reports the returns of whole episodes.

        Raises:
            ValueError: If the suite has no such environment or cannot do what ``pixels`` says.
            ImportError: If a package is missing; names the extra that has it.
        """


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """An error that names what was perhaps meant, and all there is.

    Args:
        kind: What the name is of.
        name: What was asked for.
        known: What could have been.
    """
    names = sorted(known)
    by_lower_case = {each.lower(): each for each in names}
    close = [by_lower_case[each] for each in difflib.get_close_matches(name.lower(), by_lower_case)]
    meant = f", did you mean {' or '.join(close)}?" if close else ","
    return ValueError(f"unknown {kind} {name!r}{meant} expected one of {', '.join(names)}")


def missing(env: str, extra: str, error: ImportError) -> ImportError:
    """An error that names the extra with what an environment needs.

    Args:
        env: Name of the environment.
        extra: The extra.
        error: What importing raised.
    """
    return ImportError(f'{env} needs a package that is not installed: pip install "rl-ae[{extra}]" ({error})')


def import_extra(module: str, env: str, extra: str) -> ModuleType:
    """Import a module of an optional extra.

    Args:
        module: Name of the module.
        env: Name of the environment that needs it.
        extra: The extra that has it.

    Raises:
        ImportError: If it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(env, extra, error) from error
