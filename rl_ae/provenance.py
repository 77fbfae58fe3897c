"""Provenance: on which machine, with which versions and from which commit something was measured."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("rl-ae", "torch", "stable-baselines3", "gymnasium", "numpy")


def describe_machine() -> dict[str, Any]:
    """Processor, its instructions, cores, threads and GPU, and the versions that compute on them."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "capabilities": sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that what is learned depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def git_commit() -> str | None:
    """The commit this package is imported from, with ``+changes`` if files differ; ``None`` outside a repository."""
    root = Path(__file__).parents[1]
    try:
        commit, status = (
            subprocess.run(["git", "-C", root, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "rl_ae", "benchmarks"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if status else commit
