"""Probes of latents of which it is known what can be read from them."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from rl_ae.analysis import disentanglement, probes
from rl_ae.analysis.probes import (
    STRENGTHS,
    Summary,
    fit_ridge,
    group_means,
    plot_scores,
    pooled_r_squared,
    probe_mlp,
    probe_ridge,
    r_squared,
    split_episodes,
    successors,
    varying,
)

EPISODES = np.repeat(np.arange(12), 50)
ROWS = len(EPISODES)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(1).normal(size=(ROWS, 6))


@pytest.fixture(scope="module")
def split():
    return split_episodes(EPISODES)


@pytest.mark.parametrize("read", [probe_ridge, probe_mlp])
def test_a_linear_map_is_read(read, latents, split):
    targets = latents @ np.random.default_rng(2).normal(size=(6, 4)) * [1.0, 1e3, 1e-3, 1.0] + 7.0
    exact = {probe_ridge: 1e-6, probe_mlp: 0.03}[read]
    result = read(latents, targets, split)
    np.testing.assert_allclose(result.scores, 1.0, atol=exact)
    assert result.predictions.shape == (len(split.test), 4)
    np.testing.assert_allclose(r_squared(targets[split.test], result.predictions), result.scores)


@pytest.mark.parametrize("read", [probe_ridge, probe_mlp])
def test_noise_is_not_read(read, latents, split):
    noise = np.random.default_rng(3).normal(size=(ROWS, 20))
    scores = read(latents, noise, split).scores
    assert scores.mean() <= 0 and scores.max() < 0.05


def test_a_product_takes_a_network(latents, split):
    product = (latents[:, :1] * latents[:, 1:2]).copy()
    assert probe_ridge(latents, product, split).scores[0] < 0.1
    assert probe_mlp(latents, product, split).scores[0] > 0.7


def test_what_marks_an_episode_is_of_no_use_in_another(rng):
    """Rows dealt out one by one would give 1 here: the latent says which episode it is, and that is all."""
    latents = np.eye(12)[EPISODES] + 0.01 * rng.normal(size=(ROWS, 12))
    targets = rng.normal(size=(12, 30))[EPISODES] + 0.01 * rng.normal(size=(ROWS, 30))
    assert probe_ridge(latents, targets, split_episodes(EPISODES)).scores.mean() < 0
    shuffled = split_episodes(rng.permutation(EPISODES))
    assert probe_ridge(latents, targets, shuffled).scores.min() > 0.99


@pytest.mark.parametrize("rows", [40, 5], ids=["more rows than dimensions", "fewer"])
def test_ridge_is_the_closed_form(rng, rows):
    x, y = rng.normal(2.0, 3.0, size=(rows, 9)), rng.normal(size=(rows, 2))
    centred, scale = x - x.mean(axis=0), np.sqrt(x.var(axis=0).mean())
    inputs = centred / scale
    normal = inputs.T @ inputs / rows + 0.3 * np.eye(9)
    expected = np.linalg.solve(normal, inputs.T @ (y - y.mean(axis=0)) / rows)
    found = fit_ridge(x, y, 0.3)
    np.testing.assert_allclose(found.weights * scale, expected, rtol=1e-8)
    np.testing.assert_allclose(found(x), y.mean(axis=0) + inputs @ expected, rtol=1e-8)


def test_ridge_depends_on_neither_unit_nor_rotation(latents, rng, split):
    targets = latents @ rng.normal(size=(6, 3)) + rng.normal(size=(ROWS, 3))
    moved = 1e-4 * latents @ ortho_group.rvs(6, random_state=0) + 5.0
    scores = probe_ridge(latents, targets, split).scores
    np.testing.assert_allclose(probe_ridge(moved, targets, split).scores, scores, rtol=1e-6)
    assert scores.min() > 0.3 and scores.max() < 0.99


def test_every_target_gets_the_strength_it_needs(rng):
    """As many dimensions as rows: what is exact wants no penalty, what is noise as much as there is."""
    episodes = np.repeat(np.arange(8), 20)
    latents = rng.normal(size=(160, 100))
    exact, noise = latents @ rng.normal(size=(100, 1)), rng.normal(size=(160, 8))
    split = split_episodes(episodes)
    scores = probe_ridge(latents, np.hstack([exact, noise]), split).scores
    assert scores[0] > 0.99 and scores[1:].mean() > -0.2
    weak = probe_ridge(latents, noise, split, strengths=STRENGTHS[:1]).scores
    assert weak.mean() < scores[1:].mean() - 0.5


def test_r_squared_by_hand():
    targets = np.array([[0.0, 1.0, 5.0], [2.0, 1.0, 5.0], [4.0, 4.0, 5.0]])
    predictions = np.array([[0.0, 2.0, 5.0], [2.0, 2.0, 5.0], [2.0, 2.0, 4.0]])
    scores = r_squared(targets, predictions)
    assert scores[:2] == pytest.approx([1 - 4 / 8, 0.0]) and np.isnan(scores[2])
    assert pooled_r_squared(targets, predictions) == pytest.approx(1 - (4 + 6 + 1) / (8 + 6))
    assert np.isnan(pooled_r_squared(np.ones((3, 2)), np.zeros((3, 2))))


def test_constant_targets_have_no_score(latents, split):
    wobbling = 3.0 + 1e-9 * latents[:, 1]
    rare = np.zeros(ROWS)
    rare[split.test] = latents[split.test, 0]  # nobody has seen it move
    targets = np.column_stack([latents[:, 0], np.full(ROWS, 0.1), wobbling, rare])
    assert varying(targets, split).tolist() == [True, False, False, False]
    for read in (probe_ridge, probe_mlp):
        assert np.isfinite(read(latents, targets, split).scores).tolist() == [True, False, False, False]
    assert group_means([0.5, np.nan, 1.0, np.nan], "xxyz") == pytest.approx(
        {"x": 0.5, "y": 1.0, "z": np.nan}, nan_ok=True
    )


@pytest.mark.parametrize("read", [probe_ridge, probe_mlp])
def test_held_out_rows_decide_nothing(read, latents, split):
    targets = latents @ np.random.default_rng(2).normal(size=(6, 2))
    expected = read(latents, targets, split).predictions
    half = len(split.test) // 2
    other_latents, other_targets = latents.copy(), targets.copy()
    other_latents[split.test[:half]] *= 100.0
    other_targets[split.test] = other_targets[split.test] ** 2
    predictions = read(other_latents, other_targets, split).predictions
    np.testing.assert_array_equal(predictions[half:], expected[half:])
    assert not np.array_equal(predictions[:half], expected[:half])


@pytest.mark.parametrize("part", ["fit", "validation", "test"])
def test_a_target_without_a_score_disturbs_no_other(part, latents, split, rng):
    targets = np.column_stack([latents[:, 0] * latents[:, 1], latents[:, 2] ** 2])
    switch = 100.0 * rng.integers(2, size=(ROWS, 1))
    switch[getattr(split, part)] = 0.0
    alone, beside = (probe_mlp(latents, np.hstack(sides), split) for sides in ([targets], [targets, switch]))
    np.testing.assert_array_equal(beside.scores, [*alone.scores, np.nan])
    np.testing.assert_allclose(beside.predictions[:, 2], switch[split.fit].mean())
    nothing = probe_mlp(latents, switch, split)
    assert np.isnan(nothing.scores).all() and np.ptp(nothing.predictions) == 0


@pytest.mark.parametrize("count", [3, 4, 12])
def test_no_episode_is_on_two_sides(count):
    labels = np.random.default_rng(count).permutation(np.repeat(np.arange(count) - 3, 7))
    parts = split_episodes(labels)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(7 * count))
    episodes = [set(labels[rows]) for rows in parts]
    assert all(episodes) and sum(map(len, episodes)) == len(set().union(*episodes)) == count
    assert [len(part) for part in episodes] == {3: [1, 1, 1], 4: [2, 1, 1], 12: [7, 2, 3]}[count]
    assert sorted(parts.train) == sorted([*parts.fit, *parts.validation])
    assert all(np.array_equal(a, b) for a, b in zip(parts, split_episodes(labels), strict=True))
    assert any(not np.array_equal(parts.test, split_episodes(labels, seed=seed).test) for seed in (1, 2, 3))


def test_successors_stay_in_their_episode():
    assert successors([0, 0, 0, 1, 2, 2]).tolist() == [0, 1, 4]


def test_bars_are_the_means():
    figure = plot_scores(
        [
            Summary("latent", "ridge", {"positions": 0.9, "velocities": 0.5}),
            Summary("random", "ridge", {"positions": 0.2, "velocities": -3.0}),
            Summary("ceiling", "MLP", {"positions": 0.99}),
        ],
        "title",
    )
    ridge, mlp = figure.axes
    assert [[bar.get_height() for bar in bars] for bars in ridge.containers] == [[0.9, 0.5], [0.2, probes.LOWEST_BAR]]
    assert "-3.00" in [text.get_text() for text in ridge.texts]
    assert [label.get_text() for label in ridge.get_xticklabels()] == ["positions", "velocities"]
    assert mlp.containers[0][0].get_height() == 0.99 and np.isnan(mlp.containers[0][1].get_height())
    [ceiling] = mlp.containers[0][:1]
    assert ceiling.get_x() + ceiling.get_width() / 2 == pytest.approx(mlp.get_xticks()[0])  # alone in its panel
    assert ridge.get_xlim() == mlp.get_xlim()  # though there is nothing to see at its right
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["latent", "random", "ceiling"]
    assert ridge.containers[0][0].get_facecolor() != ridge.containers[1][0].get_facecolor()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_episodes([0, 0, 1]), "at least 3 episodes, got 2"),
        (lambda: split_episodes(EPISODES, test_fraction=1.0), "between 0 and 1, got 1.0"),
        (lambda: fit_ridge(np.zeros(3), np.zeros((3, 1)), 1.0), r"latents of shape \(N, D\), got \(3,\)"),
        (lambda: fit_ridge(np.zeros((3, 1)), np.zeros((2, 1)), 1.0), r"targets of shape \(3, K\), got \(2, 1\)"),
        (lambda: fit_ridge(np.full((3, 1), np.nan), np.zeros((3, 1)), 1.0), "finite latents, got 3 that are not"),
        (lambda: r_squared(np.zeros((3, 1)), np.zeros((3, 2))), r"got \(3, 1\) and \(3, 2\)"),
        (lambda: plot_scores([]), "at least one row"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_network_needs_epochs(latents, split):
    with pytest.raises(ValueError, match="epochs, patience and hidden ≥ 1, got 0"):
        probe_mlp(latents, latents, split, epochs=0)


def test_scikit_learn_is_asked_for(monkeypatch):
    monkeypatch.setattr(disentanglement, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"rl-ae\[report\]"):
        fit_ridge(np.zeros((3, 1)), np.zeros((3, 1)), 1.0)
