r"""Probes: what of a state can be read from a latent, by a linear map and by a small network?

All compare latents (N, D), usually the modes, with targets (N, K): positions, velocities, rewards. Rows come from
episodes, and no episode is on both sides of a split: the frames of one resemble each other, so that a probe could
remember what it should read. N rows, D latent dimensions, K targets, T held-out rows.

A score is R² on the held-out rows, :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2` with their own mean: 1 for a
target that is read exactly, 0 for its mean, below 0 for worse than that. A target that is constant in any part of the
split has none, and its score is NaN.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rl_ae.analysis.disentanglement import Booleans, Floats, Integers, require_scikit_learn

#: Penalties of ridge regression that are tried, for features of a mean variance of 1 and per row.
STRENGTHS = tuple(10.0**exponent for exponent in range(-7, 3))
#: Spread below which a target counts as constant, of its greatest absolute value: rounding in a simulator.
CONSTANT = 1e-6
#: Scores below are drawn as this one; the numbers above the bars are the true ones.
LOWEST_BAR = -0.5


class Split(NamedTuple):
    """Row numbers, of different episodes each.

    Attributes:
        fit: To fit probes on.
        validation: To choose a probe's strength on, or when to stop.
        test: To measure on.
    """

    fit: Integers
    validation: Integers
    test: Integers

    @property
    def train(self) -> Integers:
        """All rows but those to measure on."""
        return np.sort(np.concatenate([self.fit, self.validation]))


class LinearMap(NamedTuple):
    """``features @ weights + bias``.

    Attributes:
        weights: (D, K).
        bias: (K,).
    """

    weights: Floats
    bias: Floats

    def __call__(self, features: ArrayLike) -> Floats:
        result: Floats = np.asarray(features, np.float64) @ self.weights + self.bias
        return result


class Probed(NamedTuple):
    """What a probe read from the held-out rows.

    Attributes:
        predictions: (T, K).
        scores: R² of each target, (K,); NaN where it is constant in a part of the split.
    """

    predictions: Floats
    scores: Floats


class Summary(NamedTuple):
    """A row of a table of probes.

    Attributes:
        representation: What was read: the latent, or a control.
        probe: By what: ridge, MLP …
        means: Mean R² by the targets' groups.
    """

    representation: str
    probe: str
    means: Mapping[str, float]


def split_episodes(
    episodes: ArrayLike, *, test_fraction: float = 0.25, validation_fraction: float = 0.2, seed: int = 0
) -> Split:
    """Deal whole episodes out, at least one to each part.

    Args:
        episodes: The episode of every row, any integers, (N,).
        test_fraction: Share of the episodes to measure on.
        validation_fraction: Share of the remaining ones to choose on.
        seed: Of the order in which they are dealt.

    Raises:
        ValueError: If there are fewer than 3 episodes, or a share is not between 0 and 1.
    """
    labels = np.asarray(episodes)
    names = np.unique(labels)
    if labels.ndim != 1 or len(names) < 3:
        raise ValueError(f"a split takes the rows (N,) of at least 3 episodes, got {len(names)} in {labels.shape}")
    if not (0 < test_fraction < 1 and 0 < validation_fraction < 1):
        raise ValueError(f"shares must be between 0 and 1, got {test_fraction} and {validation_fraction}")
    order = np.random.default_rng(seed).permutation(names)
    tests = min(max(round(test_fraction * len(names)), 1), len(names) - 2)
    validations = min(max(round(validation_fraction * (len(names) - tests)), 1), len(names) - tests - 1)
    test, validation, fit = np.split(order, [tests, tests + validations])
    return Split(*(np.flatnonzero(np.isin(labels, part)) for part in (fit, validation, test)))


def successors(episodes: ArrayLike) -> Integers:
    """Rows whose next row is of the same episode, for targets that lie one step ahead."""
    labels = np.asarray(episodes)
    return np.flatnonzero(labels[:-1] == labels[1:])


def varying(targets: ArrayLike, split: Split) -> Booleans:
    """Which targets (N, K) vary in every part of a split, (K,): those that have a score."""
    values = np.asarray(targets, np.float64)
    floor = CONSTANT * np.abs(values).max(axis=0)
    varies: Booleans = np.all([np.ptp(values[rows], axis=0) > floor for rows in split], axis=0)
    return varies


def r_squared(targets: ArrayLike, predictions: ArrayLike) -> Floats:
    """R² of every target, (K,), of targets and predictions (T, K); NaN where a target is constant.

    Raises:
        ValueError: If the shapes differ or there are fewer than two rows.
    """
    y, predicted = _pair(targets, predictions)
    total = np.square(y - y.mean(axis=0)).sum(axis=0)
    error = np.square(y - predicted).sum(axis=0)
    varies = np.ptp(y, axis=0) > 0  # rounding of the mean would leave a sum above 0
    scores: Floats = 1.0 - np.divide(error, total, out=np.full_like(error, np.nan), where=varies)
    return scores


def pooled_r_squared(targets: ArrayLike, predictions: ArrayLike) -> float:
    """R² over all columns at once, each counted by its variance: for latents, whose dimensions have no names.

    Dimensions that have collapsed, and only tremble, so hardly count.

    Raises:
        ValueError: As :func:`r_squared`.
    """
    y, predicted = _pair(targets, predictions)
    total = np.square(y - y.mean(axis=0)).sum()
    return float(1.0 - np.square(y - predicted).sum() / total) if np.ptp(y, axis=0).any() else float("nan")


def fit_ridge(features: ArrayLike, targets: ArrayLike, strength: float) -> LinearMap:
    r"""Ridge regression: :math:`\min_{W, b} \frac1N \lVert Y - b - X W / s \rVert^2 + \alpha \lVert W \rVert^2`.

    The features are divided by one number, s, the root of their mean variance, so that a strength means the same for
    every unit of a latent; not dimension by dimension, which would blow up those that have collapsed. Solved in its
    dual form, N unknowns, where there are more dimensions than rows.

    Args:
        features: (N, D).
        targets: (N, K).
        strength: α > 0.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.
        ImportError: Without scikit-learn.
    """
    x, y = _check(features, targets)
    require_scikit_learn()
    from sklearn.linear_model import Ridge  # type: ignore[import-untyped]  # noqa: PLC0415  the extra "report"

    scale = float(np.sqrt(x.var(axis=0).mean())) or 1.0
    model = Ridge(alpha=strength * len(x), solver="cholesky").fit(x / scale, y)
    return LinearMap(model.coef_.reshape(y.shape[1], -1).T / scale, np.broadcast_to(model.intercept_, y.shape[1]))


def probe_ridge(latents: ArrayLike, targets: ArrayLike, split: Split, strengths: Sequence[float] = STRENGTHS) -> Probed:
    """Read targets linearly: each with the strength that reads it best on the validation's episodes.

    The map is then fitted anew on fit and validation rows together.

    Args:
        latents: (N, D).
        targets: (N, K).
        split: Of the N rows.
        strengths: That are tried, see :func:`fit_ridge`.

    Raises:
        ValueError: If shapes do not fit or a number is not finite.
        ImportError: Without scikit-learn.
    """
    x, y = _check(latents, targets)
    candidates = (fit_ridge(x[split.fit], y[split.fit], strength) for strength in strengths)
    held_out = x[split.validation], y[split.validation]
    errors = np.array([np.square(candidate(held_out[0]) - held_out[1]).sum(axis=0) for candidate in candidates])
    chosen = errors.argmin(axis=0)
    predictions = np.empty((len(split.test), y.shape[1]))
    for index in np.unique(chosen):
        columns = chosen == index
        final = fit_ridge(x[split.train], y[split.train][:, columns], strengths[index])
        predictions[:, columns] = final(x[split.test])
    return _probed(y, predictions, split)


def probe_mlp(
    latents: ArrayLike,
    targets: ArrayLike,
    split: Split,
    *,
    hidden: tuple[int, ...] = (128, 128),
    epochs: int = 100,
    patience: int = 10,
    seed: int = 0,
) -> Probed:
    """Read all targets with one small network, the best on the validation's episodes that an epoch left.

    The network is spared those without a score (:func:`varying`), which would only disturb it; their prediction is
    their mean.

    Args:
        latents: (N, D).
        targets: (N, K).
        split: Of the N rows.
        hidden: Widths of its hidden layers.
        epochs: Most passes over the fit rows.
        patience: Passes without a gain after which it stops.
        seed: Of its weights and batches.

    Raises:
        ValueError: If shapes do not fit or a number is not finite or below 1.
        ImportError: Without scikit-learn.
    """
    x, y = _check(latents, targets)
    if min(epochs, patience, *hidden) < 1:
        raise ValueError(f"expected epochs, patience and hidden ≥ 1, got {epochs}, {patience} and {hidden}")
    require_scikit_learn()
    from sklearn.neural_network import MLPRegressor  # type: ignore[import-untyped]  # noqa: PLC0415  "report"

    varies = varying(y, split)
    predictions = np.broadcast_to(y[split.fit].mean(axis=0), (len(split.test), y.shape[1])).copy()
    if not varies.any():
        return _probed(y, predictions, split)
    inputs, _ = _standardized(x, split.fit)
    wanted, (mean, deviation) = _standardized(y[:, varies], split.fit)
    rows = wanted[split.fit]
    model = MLPRegressor(hidden_layer_sizes=hidden, batch_size=min(64, len(rows)), random_state=seed)
    best, lowest, waited = np.empty(0), np.inf, 0
    for _ in range(epochs):
        model.partial_fit(inputs[split.fit], rows.ravel() if rows.shape[1] == 1 else rows)
        error = np.square(_columns(model.predict(inputs[split.validation])) - wanted[split.validation]).sum()
        waited += 1
        if error < lowest:
            best, lowest, waited = _columns(model.predict(inputs[split.test])), error, 0
        elif waited == patience:
            break
    predictions[:, varies] = best * deviation + mean
    return _probed(y, predictions, split)


def group_means(scores: ArrayLike, groups: Sequence[str]) -> dict[str, float]:
    """Mean R² of each group, in the order they come, over the targets that have one; NaN where none has.

    Args:
        scores: (K,).
        groups: The group of every target.
    """
    by_group: dict[str, list[float]] = {group: [] for group in groups}
    for score, group in zip(np.asarray(scores, np.float64), groups, strict=True):
        if np.isfinite(score):
            by_group[group].append(float(score))
    return {group: float(np.mean(values)) if values else float("nan") for group, values in by_group.items()}


def plot_scores(summaries: Sequence[Summary], title: str = "") -> Figure:
    """Bars of mean R²: a panel a probe, a cluster a group, a colour a representation.

    A representation that was read by one probe only stands in its panel alone. What is below -0.5 is drawn as that,
    with its true number.

    Args:
        summaries: Rows of the table.
        title: Above the panels.

    Raises:
        ValueError: If there are none.
    """
    if not summaries:
        raise ValueError("expected at least one row to draw, got none")
    probes = list(dict.fromkeys(row.probe for row in summaries))
    names = list(dict.fromkeys(row.representation for row in summaries))
    groups = list(dict.fromkeys(group for row in summaries for group in row.means))
    width = 0.85 / len(names)
    size = (max(1.1 * len(groups) + 0.35 * len(groups) * len(names), 6), 2.6 * len(probes) + 1)
    figure = Figure(figsize=size, layout="constrained")
    for axes, probe in zip(figure.subplots(len(probes), squeeze=False)[:, 0], probes, strict=True):
        rows = [row for row in summaries if row.probe == probe]
        for place, row in enumerate(rows):
            index = names.index(row.representation)
            at = np.arange(len(groups)) + (place - (len(rows) - 1) / 2) * width
            values = np.array([row.means.get(group, np.nan) for group in groups])
            bars = axes.bar(at, np.maximum(values, LOWEST_BAR), width, color=f"C{index % 10}", label=row.representation)
            labels = [f"{value:.2f}" if np.isfinite(value) else "" for value in values]
            axes.bar_label(bars, labels, fontsize=6, padding=1)
        axes.set(ylabel=f"R², {probe}", xlim=(-0.5, len(groups) - 0.5), ylim=(LOWEST_BAR - 0.1, 1.1))
        axes.set_xticks(range(len(groups)), groups)
        axes.axhline(0.0, color="0.3", linewidth=0.8)
        axes.grid(axis="y", alpha=0.3)
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}  # noqa: B905
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 5), fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


# ---------------------------------------------------------------------- arrays


def _probed(targets: Floats, predictions: Floats, split: Split) -> Probed:
    scores = r_squared(targets[split.test], predictions)
    return Probed(predictions, np.where(varying(targets, split), scores, np.nan))


def _check(features: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64, if they fit together."""
    x, y = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"expected latents of shape (N, D), got {x.shape}")
    if y.ndim != 2 or len(y) != len(x) or not y.size:
        raise ValueError(f"expected targets of shape ({len(x)}, K), got {y.shape}")
    for name, values in (("latents", x), ("targets", y)):
        if not np.isfinite(values).all():
            raise ValueError(f"expected finite {name}, got {np.count_nonzero(~np.isfinite(values))} that are not")
    return x, y


def _pair(targets: ArrayLike, predictions: ArrayLike) -> tuple[Floats, Floats]:
    y, predicted = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
    if y.ndim != 2 or y.shape != predicted.shape or len(y) < 2:
        raise ValueError(f"expected targets and predictions (T, K) with T ≥ 2, got {y.shape} and {predicted.shape}")
    return y, predicted


def _standardized(values: Floats, rows: Integers) -> tuple[Floats, tuple[Floats, Floats]]:
    """Values with the mean of some rows at 0 and their deviation 1, where there is one; and both."""
    mean, deviation = values[rows].mean(axis=0), values[rows].std(axis=0)
    deviation = np.where(deviation > CONSTANT * np.abs(values).max(axis=0), deviation, 1.0)
    return (values - mean) / deviation, (mean, deviation)


def _columns(predictions: Floats) -> Floats:
    """Scikit-learn drops the axis of a single target."""
    return predictions.reshape(len(predictions), -1)
