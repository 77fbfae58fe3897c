"""Published scores to stand beside ours, and how the returns of a benchmark are normalised.

The numbers are in ``benchmarks/published/``, and where each was read is in ``sources.csv`` there.
"""

import csv
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.statistics import Array

FOLDER = Path(__file__).parent / "published"
#: Budgets that differ by less count as the same.
FRAMES_TOLERANCE = 0.01
#: DMC pays at most 1 a frame, for 1,000 frames.
DMC_RETURN = 1000.0

Normalise = Callable[[str], tuple[float, float] | None]


class Score(NamedTuple):
    """What a method reached on a task.

    Attributes:
        mean: Over seeds.
        std: Their sample standard deviation; ``None`` if it is not published.
        seeds: The score of each seed; ``None`` if they are not published.
    """

    mean: float
    std: float | None
    seeds: Array | None


class Method(NamedTuple):
    """A published method.

    Attributes:
        name: Its name.
        source: Where the numbers were read, and what to know about them.
        scores: Task, as :func:`task_key` spells it → score.
    """

    name: str
    source: str
    scores: dict[str, Score]


class Benchmark(NamedTuple):
    """What is known about a family of suites.

    Attributes:
        published: Name in the files of published scores; ``None`` if there are none.
        scale: Task → the returns that count as 0 and as 1; ``None`` for a task without.
        normalisation: In words.
    """

    published: str | None
    scale: Normalise
    normalisation: str


def task_key(task: str) -> str:
    """A task's name without what differs between spellings: ``cartpole-swingup`` is ``cartpole_swingup``."""
    return task.replace("-", "_").casefold()


def benchmark_of(suite: str) -> Benchmark:
    """The benchmark that a suite belongs to by the letters its name begins with, as ``dmc`` in ``dmc100k``."""
    found = re.match("[a-z]*", suite.casefold())
    return BENCHMARKS.get(found.group() if found else "", UNKNOWN)


def normalise(benchmark: Benchmark, task: str, returns: Array) -> Array | None:
    """Returns on the benchmark's scale of 0 to 1; ``None`` if the task has none."""
    scale = benchmark.scale(task)
    if scale is None:
        return None
    zero, one = scale
    return (returns - zero) / (one - zero)


def same_budget(frames: float, others: float) -> bool:
    """Whether two numbers of frames are nearly the same."""
    return abs(frames - others) <= FRAMES_TOLERANCE * frames


def published_methods(benchmark: Benchmark, budgets: Mapping[str, float]) -> list[Method]:
    """The methods that were published on some tasks.

    Args:
        benchmark: Of the tasks.
        budgets: Task → environment frames.

    Returns:
        Methods with a score at the budget of one of the tasks or more, in the order of their file.
    """
    frames = {task_key(task): budget for task, budget in budgets.items()}
    methods = {name: Method(name, source, {}) for name, source in _sources(benchmark.published).items()}
    for (name, at, task), score in _scores(benchmark.published).items():
        if task in frames and same_budget(at, frames[task]):
            methods[name].scores[task] = score
    return [method for method in methods.values() if method.scores]


def published_frames(benchmark: Benchmark) -> list[int]:
    """The budgets with published scores."""
    return sorted({frames for _, frames, _ in _scores(benchmark.published)})


def _read(name: str, benchmark: str | None) -> list[dict[str, str]]:
    with (FOLDER / name).open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["benchmark"] == benchmark]


@functools.cache
def _sources(benchmark: str | None) -> dict[str, str]:
    return {row["method"]: row["source"] for row in _read("sources.csv", benchmark)}


@functools.cache
def _scores(benchmark: str | None) -> dict[tuple[str, int, str], Score]:
    """(method, frames, task) → score."""
    scores = {}
    for row in _read("tables.csv", benchmark):
        std = float(row["std"]) if row["std"] else None
        scores[row["method"], int(row["frames"]), task_key(row["task"])] = Score(float(row["mean"]), std, None)
    for row in _read("seeds.csv", benchmark):
        seeds = np.array(row["scores"].split(), dtype=float)
        std = float(seeds.std(ddof=1)) if len(seeds) > 1 else None
        scores[row["method"], int(row["frames"]), task_key(row["task"])] = Score(float(seeds.mean()), std, seeds)
    return scores


def _full_return(_task: str) -> tuple[float, float]:
    return 0.0, DMC_RETURN


def _human(task: str) -> tuple[float, float] | None:
    """The scores of the random policy and of the human tester, of the 26 games of Atari-100k."""
    by_method = {
        method: score.mean for (method, _, game), score in _scores("atari100k").items() if game == task_key(task)
    }
    return (by_method["random"], by_method["human"]) if by_method else None


def _no_scale(_task: str) -> None:
    return None


HUMAN_NORMALISED = "(return − random) / (human − random), with the random and human scores published for the 26 games"
#: First letters of a suite → benchmark. CALE plays Atari's games with continuous actions: same scale, no scores here.
BENCHMARKS = {
    "dmc": Benchmark("dmc", _full_return, "return / 1000"),
    "atari": Benchmark("atari100k", _human, HUMAN_NORMALISED),
    "cale": Benchmark(None, _human, HUMAN_NORMALISED),
}
UNKNOWN = Benchmark(None, _no_scale, "none known")
