"""A suite's labels beside each other and beside published methods."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import statistics
from benchmarks.collection import Record
from benchmarks.published import (
    Benchmark,
    Method,
    benchmark_of,
    normalise,
    published_methods,
    same_budget,
    task_key,
)
from benchmarks.statistics import Array, Estimate, Scores

#: Column → metric.
METRICS: dict[str, statistics.Metric] = {
    "IQM": statistics.interquartile_mean,
    "median": statistics.median,
    "mean": statistics.mean,
    "optimality gap": statistics.optimality_gap,
}
#: Task → scores of its seeds.
TaskScores = dict[str, Array]


class Aggregate(NamedTuple):
    """Metrics of a method over tasks.

    Attributes:
        method: A label, or a published method.
        own: Whether it is a label.
        tasks: Over how many tasks.
        runs: Over how many runs.
        estimates: Name of the metric → estimate.
    """

    method: str
    own: bool
    tasks: int
    runs: int
    estimates: dict[str, Estimate]


class Improvement(NamedTuple):
    """How probably one method beats another.

    Attributes:
        method: A label.
        other: Another label, or a published method.
        tasks: How many tasks both were run on.
        estimate: Of the probability.
    """

    method: str
    other: str
    tasks: int
    estimate: Estimate


@dataclasses.dataclass(frozen=True)
class Suite:
    """The runs of a suite.

    Attributes:
        name: Its name.
        records: Its runs.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.
    """

    name: str
    records: Sequence[Record]
    resamples: int = statistics.RESAMPLES
    seed: int = 0

    @property
    def benchmark(self) -> Benchmark:
        """What is known about it."""
        return benchmark_of(self.name)

    @property
    def labels(self) -> list[str]:
        """All labels, in order."""
        return sorted({record.label for record in self.records})

    @property
    def tasks(self) -> list[str]:
        """All tasks, in order."""
        return sorted({record.task for record in self.records})

    @property
    def budgets(self) -> dict[str, float]:
        """Task → the frames of most of its finished runs; the most frames of equally many."""
        counts = Counter((record.task, record.frames) for record in self.records if record.evaluation)
        rising = sorted((count, *run) for run, count in counts.items())
        return {task: frames for _, task, frames in rising}  # the last of each task stays

    @property
    def finished(self) -> list[Record]:
        """The finished runs of their task's budget."""
        budgets = self.budgets
        return [
            record for record in self.records if record.evaluation and same_budget(budgets[record.task], record.frames)
        ]

    @property
    def other_budgets(self) -> list[Record]:
        """The finished runs that are not compared, because they had more or fewer frames."""
        compared = {record.name for record in self.finished}
        return [record for record in self.records if record.evaluation and record.name not in compared]

    @property
    def published(self) -> list[Method]:
        """Published methods at the budgets of the tasks."""
        return published_methods(self.benchmark, self.budgets)

    def scores(self, label: str) -> TaskScores:
        """Returns of a label's finished runs, by task."""
        runs = [record for record in self.finished if record.label == label]
        tasks = sorted({record.task for record in runs})
        return {task: np.array([record.score for record in runs if record.task == task]) for task in tasks}

    def estimate(self, metric: statistics.Metric, *methods: Scores) -> Estimate:
        """A metric with its interval; without one for a single task, which nothing can be aggregated over."""
        found = statistics.estimate(metric, *methods, resamples=self.resamples, seed=self.seed)
        return found if min(map(len, methods)) > 1 else Estimate(found.value, None)

    def normalised(self) -> tuple[dict[str, TaskScores], dict[str, TaskScores]]:
        """Scores on the scale of 0 to 1: of our labels, and of published methods with seeds on any of their tasks."""
        own = {label: scores for label in self.labels if (scores := self._normalise(self.scores(label)))}
        published = {}
        for method in self.published:
            seeds = {task: score.seeds for task, score in method.scores.items()}
            known = {task: scores for task, scores in seeds.items() if scores is not None and len(scores) > 1}
            if known:
                published[method.name] = self._normalise(known)
        return own, published

    @property
    def unscaled(self) -> list[str]:
        """Tasks with finished runs that have no scale of 0 to 1."""
        return sorted({record.task for record in self.finished if self.benchmark.scale(record.task) is None})

    def _normalise(self, scores: TaskScores) -> TaskScores:
        found = {task_key(task): normalise(self.benchmark, task, returns) for task, returns in scores.items()}
        return {task: values for task, values in found.items() if values is not None}

    def aggregates(self, tasks: set[str] | None = None) -> list[Aggregate]:
        """Metrics over the tasks of each method; over those alone that are given, for methods that have them all."""
        own, published = self.normalised()
        candidates = [(True, *item) for item in own.items()] + [(False, *item) for item in published.items()]
        found = []
        for is_own, name, scores in candidates:
            if tasks is None or tasks <= scores.keys():
                chosen = [scores[task] for task in sorted(tasks or scores)]
                estimates = {title: self.estimate(metric, chosen) for title, metric in METRICS.items()}
                found.append(Aggregate(name, is_own, len(chosen), sum(map(len, chosen)), estimates))
        return found

    def common_tasks(self) -> set[str]:
        """The tasks that all labels have, if some label has others too; else none."""
        own, _ = self.normalised()
        tasks = [set(scores) for scores in own.values()]
        if not tasks or all(each == tasks[0] for each in tasks):
            return set()
        return set.intersection(*tasks)

    def improvements(self) -> list[Improvement]:
        """Each label against each later one and against each published method with seeds, over their common tasks."""
        own, published = self.normalised()
        pairs = [*itertools.combinations(own.items(), 2), *itertools.product(own.items(), published.items())]
        found = []
        for (method, scores), (other, others) in pairs:
            if tasks := sorted(scores.keys() & others.keys()):
                both = [[each[task] for task in tasks] for each in (scores, others)]
                estimate = self.estimate(statistics.probability_of_improvement, *both)
                found.append(Improvement(method, other, len(tasks), estimate))
        return found
