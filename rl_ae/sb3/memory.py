"""Memory: does a replay buffer of images fit before it is allocated, and what becomes of memory that is freed?"""

import ctypes
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from gymnasium import spaces

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
# of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1


class Memory(NamedTuple):
    """Bytes of memory.

    Attributes:
        free: What can be allocated now without swapping.
        limit: What this process can ever have: physical memory, or its control group's limit if that is lower.
    """

    free: int
    limit: int


def available_memory() -> Memory:
    """The memory of this machine, or of the container the process runs in."""
    memory = psutil.virtual_memory()
    free, limit = memory.available, memory.total
    for path in _limit_files():
        text = path.read_text().strip() if path.exists() else "max"
        if text.isdigit() and int(text) < limit:
            limit = int(text)
            free = min(free, limit - psutil.Process().memory_info().rss)
    return Memory(max(free, 0), limit)


def _limit_files() -> Iterator[Path]:
    """Where the memory limits of this process's control group and of those above it stand, of version 2 and 1."""
    lines = _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.exists() else []
    for line in ["0::/", "1:memory:/", *lines]:
        _, controllers, own = line.split(":", 2)
        version_1 = "memory" in controllers.split(",")
        if version_1 or not controllers:
            name = "memory.limit_in_bytes" if version_1 else "memory.max"
            group = (_CGROUP_ROOT / "memory" if version_1 else _CGROUP_ROOT) / own.lstrip("/")
            yield from (folder / name for folder in (group, *group.parents) if folder.is_relative_to(_CGROUP_ROOT))


def bytes_per_step(observation_space: spaces.Box, action_space: spaces.Box, optimize_memory_usage: bool) -> int:
    """Bytes that Stable-Baselines3's ``ReplayBuffer`` keeps of one transition of one environment."""
    frames = 1 if optimize_memory_usage else 2
    observation = int(np.prod(observation_space.shape)) * observation_space.dtype.itemsize
    action = int(np.prod(action_space.shape)) * 4
    reward_done_timeout = 3 * 4
    return frames * observation + action + reward_done_timeout


def check_replay_memory(
    buffer_size: int,
    observation_space: spaces.Box,
    action_space: spaces.Box,
    optimize_memory_usage: bool = False,
    memory: Memory | None = None,
) -> str:
    """Compare what a replay buffer needs with what there is.

    Args:
        buffer_size: Transitions, over all environments.
        observation_space: Of one environment.
        action_space: Of one environment.
        optimize_memory_usage: Stable-Baselines3's single-array variant.
        memory: What there is; measured if omitted.

    Returns:
        The arithmetic in one line, for the log.

    Raises:
        MemoryError: If the buffer can never fit: it would be killed in the middle of the run.

    Warns:
        UserWarning: If it does not fit now.
    """
    fit = compare(buffer_size, bytes_per_step(observation_space, action_space, optimize_memory_usage), memory)
    if not fit.ever:
        raise MemoryError(fit.advice)
    if not fit.now:
        warnings.warn(fit.advice, stacklevel=2)
    return fit.report


class Fit(NamedTuple):
    """What a replay buffer needs beside what there is.

    Attributes:
        report: The arithmetic in one line, for the log.
        advice: The same, with a ``buffer_size`` that fits.
        now: Whether the buffer fits into the memory that is free.
        ever: Whether it fits into all the memory that this process can have.
    """

    report: str
    advice: str
    now: bool
    ever: bool


def compare(buffer_size: int, each: int, memory: Memory | None = None) -> Fit:
    """Compare what transitions of ``each`` so many bytes need with what there is, which is measured if omitted."""
    free, limit = available_memory() if memory is None else memory
    needed = buffer_size * each
    report = (
        f"replay buffer needs {needed / 1e9:.1f} GB ({buffer_size:_} transitions of {each:_} bytes), "
        f"{free / 1e9:.1f} GB free of {limit / 1e9:.1f} GB"
    )
    advice = f"{report}: buffer_size={int(0.9 * free) // each:_} fits"
    return Fit(report, advice, now=needed <= free, ever=needed <= limit)


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it allocates next.

    By default glibc hands large blocks, such as the feature maps of a minibatch, back to the system when they are
    freed, and every update pays for mapping them anew, page by page: 30,000 page faults and a fifth of the update's
    time at 64×64. The peak grows by a few percent, for what lies between blocks in use. Call it before training, in
    processes whose memory is yours to decide on; ``rl-ae train`` does.

    Returns:
        Whether it took effect: with glibc, which allocates for torch on Linux's CPUs, and with no other library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
