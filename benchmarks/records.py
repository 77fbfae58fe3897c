"""Records: how the scripts here write down what they measured, and where."""

import csv
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl_ae.sb3.pictures import write_atomically

_PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy")


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, whole or not at all."""
    write_atomically(path, lambda file: file.write_text(json.dumps(data, indent=2) + "\n"))


def write_rows(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write some columns of rows as CSV, whole or not at all."""

    def write(file: Path) -> None:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, threads, GPU and versions."""
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
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    found: list[float] = np.quantile(np.asarray(values), [0.25, 0.5, 0.75]).tolist()
    return found


def in_new_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, whose memory nobody has used before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()
