"""OpenGL for MuJoCo: with which library frames are rendered, and what to install if none can."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import gymnasium as gym

#: Values of ``MUJOCO_GL`` that render without a display, preferred ones first → libraries, one of which is needed.
_OFF_SCREEN = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6")}
_INSTALL = "apt-get install libegl1 libgl1 libosmesa6"


def choose_gl() -> None:
    """Set ``MUJOCO_GL`` to EGL, or else OSMesa, if it is not set and there is no display.

    dm_control reads the variable when it is imported, so this comes before; processes started later inherit it. Where
    there is a display, and on systems other than Linux, dm_control and Gymnasium choose.

    Raises:
        ImportError: If neither library can be loaded; names the packages that have them.
    """
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if sys.platform != "linux" or "MUJOCO_GL" in os.environ or has_display:
        return
    for backend, libraries in _OFF_SCREEN.items():
        if any(_can_load(library) for library in libraries):
            os.environ["MUJOCO_GL"] = backend
            return
    needed = [library for libraries in _OFF_SCREEN.values() for library in libraries]
    raise ImportError(f"rendering MuJoCo without a display needs one of {', '.join(needed)}: {_INSTALL}")


@contextlib.contextmanager
def rendering(env: str) -> Iterator[None]:
    """For the imports of what renders MuJoCo and its first frame: chooses OpenGL's library, explains failures.

    Args:
        env: Name of the environment.

    Raises:
        ImportError: If a renderer cannot be imported or cannot render. What says itself what is wrong passes: missing
            modules, unknown ids and arguments.
    """
    choose_gl()
    try:
        yield
    except (ModuleNotFoundError, ValueError, TypeError, gym.error.Error):
        raise
    except Exception as error:  # the renderers' failures have no common class
        backend = os.environ.get("MUJOCO_GL", "(not set)")
        raise ImportError(
            f"{env} cannot be rendered with MUJOCO_GL={backend} ({type(error).__name__}: {error}). Without a display "
            "it takes MUJOCO_GL=egl or osmesa, set before anything imports dm_control or mujoco, and the libraries: "
            f"{_INSTALL}"
        ) from error


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
