"""Records: how the scripts here write down what they measured."""

import csv
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from rl_ae.files import write_atomically


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


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    found: list[float] = np.quantile(np.asarray(values), [0.25, 0.5, 0.75]).tolist()
    return found


def in_new_process(function: Callable[..., Any], *arguments: Any, imported: Sequence[str] = ()) -> Any:
    """What a function returns in a process of its own, whose memory nobody has used before.

    Args:
        function: A module's.
        arguments: Its arguments.
        imported: Modules that the process finds imported, seconds earlier: it is forked from one that has imported
            them and done nothing else, and whose memory it shares. The first call's count.
    """
    context = multiprocessing.get_context("forkserver" if imported else "spawn")
    if imported:
        context.set_forkserver_preload(list(imported))
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
