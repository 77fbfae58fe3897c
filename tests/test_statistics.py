"""Statistics over tasks and seeds: closed forms, naive loops, and intervals that cover the truth."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import statistics

METRICS = [
    statistics.mean,
    statistics.median,
    statistics.optimality_gap,
    statistics.interquartile_mean,
]


def matrix(seeds, tasks, seed=0):
    return np.random.default_rng(seed).gamma(1.5, 0.5, (seeds, tasks))


# ---------------------------------------------------------------------- point estimates


@settings(max_examples=40)
@given(seeds=st.integers(1, 9), tasks=st.integers(1, 7), seed=st.integers(0, 1000))
def test_metrics_of_a_full_matrix_are_the_papers(seeds, tasks, seed):
    scores = matrix(seeds, tasks, seed)
    by_task = list(scores.T)
    assert statistics.interquartile_mean(by_task) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    assert statistics.mean(by_task) == pytest.approx(scores.mean())
    assert statistics.median(by_task) == pytest.approx(np.median(scores.mean(axis=0)))
    assert statistics.optimality_gap(by_task) == pytest.approx(1.0 - np.minimum(scores, 1.0).mean())
    assert statistics.optimality_gap(by_task, 0.3) == pytest.approx(0.3 - np.minimum(scores, 0.3).mean())


def test_metrics_of_known_numbers():
    scores = [np.array([0.0, 0.2, 0.4, 0.6]), np.array([0.8, 1.0, 1.2, 6.0])]
    assert statistics.interquartile_mean(scores) == pytest.approx((0.4 + 0.6 + 0.8 + 1.0) / 4)
    assert statistics.mean(scores) == pytest.approx((0.3 + 2.25) / 2)
    assert statistics.median([*scores, np.array([0.1])]) == pytest.approx(0.3)
    assert statistics.optimality_gap(scores) == pytest.approx((0.7 + 0.05) / 2)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("counts", [(2, 3), (1, 4, 6), (5, 5, 1)])
def test_a_task_weighs_the_same_with_fewer_seeds(metric, counts):
    generator = np.random.default_rng(0)
    scores = [generator.random(count) * 2 for count in counts]
    full = [np.repeat(task, np.lcm.reduce(counts) // len(task)) for task in scores]
    assert metric(scores) == pytest.approx(metric(full))


def test_interquartile_mean_with_unequal_seeds_is_scipys_of_the_repeated_scores():
    scores = [np.array([0.9, 0.1]), np.array([0.5, 0.7, 2.0])]
    repeated = np.concatenate([np.repeat(scores[0], 3), np.repeat(scores[1], 2)])
    assert statistics.interquartile_mean(scores) == pytest.approx(stats.trim_mean(repeated, 0.25))


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_carry_resamples_along(metric):
    resampled = statistics.resample([*matrix(4, 2).T, np.array([0.4, 0.1])], 5, np.random.default_rng(1))
    together = metric(resampled)
    assert together.shape == (5,)
    assert together == pytest.approx([metric([task[row] for task in resampled]) for row in range(5)])


values = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=6).map(np.array)


@settings(max_examples=40)
@given(st.lists(st.tuples(values, values), min_size=1, max_size=4))
def test_probability_of_improvement_counts_pairs(tasks):
    scores, others = zip(*tasks, strict=True)
    naive = []
    for mine, theirs in tasks:
        wins = 0.0
        for x, y in itertools.product(mine, theirs):
            wins += 1.0 if x > y else 0.5 if x == y else 0.0
        naive.append(wins / (len(mine) * len(theirs)))
    found = statistics.probability_of_improvement(scores, others)
    assert found == pytest.approx(np.mean(naive))
    assert statistics.probability_of_improvement(others, scores) == pytest.approx(1.0 - found)


def test_probability_of_improvement_is_mann_whitneys_statistic():
    x, y = matrix(5, 1)[:, 0], matrix(8, 1, seed=1)[:, 0]
    statistic = stats.mannwhitneyu(x, y, alternative="greater").statistic
    assert statistics.probability_of_improvement([x], [y]) == pytest.approx(statistic / 40)


def test_probability_of_improvement_wants_the_same_tasks():
    with pytest.raises(ValueError, match="same tasks, got 2 and 1"):
        statistics.probability_of_improvement([np.ones(3), np.ones(3)], [np.ones(3)])


# ---------------------------------------------------------------------- the bootstrap


def test_resampling_never_mixes_tasks():
    scores = [np.arange(3.0), 10 + np.arange(5.0), 100 + np.arange(2.0)]
    resampled = statistics.resample(scores, 400, np.random.default_rng(0))
    assert [task.shape for task in resampled] == [(400, 3), (400, 5), (400, 2)]
    for task, drawn in zip(scores, resampled, strict=True):
        assert set(drawn.ravel()) == set(task)
        assert drawn.mean() == pytest.approx(task.mean(), abs=0.2)
        assert len(np.unique(drawn, axis=0)) > 1


def test_interval_without_spread_within_tasks_is_a_point_however_far_the_tasks_are_apart():
    interval = statistics.stratified_interval(statistics.mean, [np.full(3, 0.0), np.full(3, 100.0)])
    assert interval == (50.0, 50.0)


def test_interval_of_a_mean_has_the_bootstraps_closed_width():
    scores = list(matrix(30, 4).T)
    low, high = statistics.stratified_interval(statistics.mean, scores, resamples=5000)
    deviation = np.sqrt(sum(task.var() / len(task) for task in scores)) / len(scores)
    assert (high - low) / 2 == pytest.approx(stats.norm.ppf(0.975) * deviation, rel=0.06)
    assert (low + high) / 2 == pytest.approx(np.mean(scores), abs=0.2 * deviation)
    narrow = statistics.stratified_interval(statistics.mean, scores, resamples=5000, confidence=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * stats.norm.ppf(0.75) * deviation, rel=0.06)


def test_intervals_contain_the_truth():
    generator = np.random.default_rng(0)
    truths = np.array([0.2, 0.5, 0.9])
    hits = []
    for repetition in range(200):
        scores = list(generator.normal(truths, 0.1, (12, 3)).T)
        low, high = statistics.stratified_interval(statistics.mean, scores, resamples=300, seed=repetition)
        hits.append(low <= truths.mean() <= high)
    assert 0.87 <= np.mean(hits) <= 0.99


def test_two_methods_are_resampled_independently():
    scores = [np.array([0.0, 1.0]), np.array([0.0, 1.0])]
    interval = statistics.stratified_interval(statistics.probability_of_improvement, scores, scores)
    assert interval.low < 0.25  # a paired bootstrap would always give 0.5
    assert interval.high > 0.75


def test_intervals_are_the_same_for_the_same_seed():
    scores = list(matrix(5, 3).T)
    first, same, other = (statistics.stratified_interval(statistics.mean, scores, seed=seed) for seed in (0, 0, 1))
    assert first == same != other


def test_a_task_with_one_seed_has_an_estimate_but_no_interval():
    found = statistics.estimate(statistics.mean, [np.array([0.2, 0.4]), np.array([0.5])])
    assert found == (pytest.approx(0.4), None)
    beside = statistics.estimate(statistics.probability_of_improvement, [np.array([0.2, 0.4])], [np.array([0.3])])
    assert beside == (0.5, None)
    known = statistics.estimate(statistics.mean, [np.array([0.2, 0.4])])
    assert known.interval == (pytest.approx(0.2), pytest.approx(0.4))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "shape"),
        ([np.ones((2, 2))], r"shape \(seeds,\) for every task, got shapes \[\(2, 2\)\]"),
        ([np.array([])], "shape"),
        ([np.array([1.0, np.nan])], "finite"),
    ],
)
def test_scores_are_checked(scores, message):
    with pytest.raises(ValueError, match=message):
        statistics.stratified_interval(statistics.mean, scores)
