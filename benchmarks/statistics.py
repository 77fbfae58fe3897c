"""Statistics over tasks and seeds, after Agarwal et al., arXiv 2108.13264, in NumPy alone.

Scores are a sequence of arrays, one a task, with the scores of its seeds in the last axis; leading axes (resamples)
are carried along. Tasks may have different numbers of seeds: each task weighs the same. With as many seeds everywhere
all of it equals what rliable computes of the (seeds, tasks) matrix.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Scores = Sequence[Array]
#: From the scores of one or more methods, each (R, seeds) a task, to one number a resample, (R,).
Metric = Callable[..., Array]

RESAMPLES = 2000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A confidence interval.

    Attributes:
        low: Lower end.
        high: Upper end.
    """

    low: float
    high: float


class Estimate(NamedTuple):
    """A number and how far it is known.

    Attributes:
        value: The point estimate.
        interval: Its confidence interval; ``None`` where the data say nothing about it.
    """

    value: float
    interval: Interval | None


def mean(scores: Scores) -> Array:
    """Mean over tasks of the tasks' means."""
    found: Array = np.mean(_task_means(scores), axis=0)
    return found


def median(scores: Scores) -> Array:
    """Median over tasks of the tasks' means."""
    found: Array = np.median(_task_means(scores), axis=0)
    return found


def optimality_gap(scores: Scores, threshold: float = 1.0) -> Array:
    """γ − mean(min(x, γ)): how far below the threshold γ the runs are on average; less is better."""
    return threshold - mean([np.minimum(task, threshold) for task in scores])


def interquartile_mean(scores: Scores) -> Array:
    """Mean of the runs of all tasks without the best and the worst quarter of them.

    Where tasks have different numbers of seeds a run weighs 1 / seeds: the result is the trimmed mean of a matrix in
    which each task's scores are repeated until all have as many.
    """
    each = math.lcm(*(task.shape[-1] for task in scores))
    runs = np.concatenate(scores, axis=-1)
    repeats = np.concatenate([np.full(task.shape[-1], each // task.shape[-1]) for task in scores])
    order = np.argsort(runs, axis=-1, kind="stable")
    ends = np.cumsum(repeats[order], axis=-1)
    total = each * len(scores)
    cut = int(0.25 * total)
    kept = np.clip(ends, cut, total - cut) - np.clip(ends - repeats[order], cut, total - cut)
    found: Array = np.sum(np.take_along_axis(runs, order, axis=-1) * kept, axis=-1) / (total - 2 * cut)
    return found


def probability_of_improvement(scores: Scores, others: Scores) -> Array:
    """P(X > Y) + ½ P(X = Y) for a run X of one method and Y of another on the same task, averaged over tasks.

    The Mann–Whitney statistic over the number of pairs, a task.

    Raises:
        ValueError: If the methods were not run on equally many tasks.
    """
    _check_tasks([scores, others])
    pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(scores, others, strict=True)]
    wins = [np.mean((x > y) + 0.5 * (x == y), axis=(-2, -1)) for x, y in pairs]
    found: Array = np.mean(np.stack(wins), axis=0)
    return found


def resample(scores: Scores, resamples: int, generator: np.random.Generator) -> list[Array]:
    """Draw each task's seeds anew, with replacement and from that task alone; (seeds,) becomes (R, seeds)."""
    return [task[generator.integers(len(task), size=(resamples, len(task)))] for task in scores]


def stratified_interval(
    metric: Metric, *methods: Scores, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> Interval | None:
    """Percentile interval of a metric over stratified bootstrap resamples.

    Args:
        metric: Of one method's scores, or of several methods', which are resampled independently.
        *methods: Their scores, (seeds,) a task.
        resamples: Bootstrap resamples.
        seed: Of the resampling; the same seed gives the same interval.
        confidence: Of the interval.

    Returns:
        The interval; ``None`` if a task has a single seed, whose spread nobody knows.

    Raises:
        ValueError: If there are no scores, or a score is not finite.
    """
    _check_scores(methods)
    if min(len(task) for scores in methods for task in scores) < 2:
        return None
    generator = np.random.default_rng(seed)
    values = metric(*(resample(scores, resamples, generator) for scores in methods))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def estimate(metric: Metric, *methods: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """A metric and its interval; arguments as of :func:`stratified_interval`."""
    interval = stratified_interval(metric, *methods, resamples=resamples, seed=seed)
    return Estimate(float(metric(*methods)), interval)


def _task_means(scores: Scores) -> Array:
    """Means over seeds, (tasks, …)."""
    return np.stack([np.mean(task, axis=-1) for task in scores])


def _check_tasks(methods: Sequence[Scores]) -> None:
    tasks = [len(scores) for scores in methods]
    if len(set(tasks)) > 1:
        raise ValueError(f"methods are compared on the same tasks, got {' and '.join(map(str, tasks))} of them")


def _check_scores(methods: Sequence[Scores]) -> None:
    for scores in methods:
        if not scores or any(task.ndim != 1 or not len(task) for task in scores):
            shapes = [task.shape for task in scores]
            raise ValueError(f"expected scores of shape (seeds,) for every task, got shapes {shapes}")
        if not all(np.isfinite(task).all() for task in scores):
            raise ValueError("scores must be finite")
