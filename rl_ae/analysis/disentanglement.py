"""Disentanglement scores: does each factor behind the images have a latent dimension of its own?

All compare latents (N, D), usually the modes, with the factors (N, F) the images were made from. N images, D latent
dimensions, F factors, K values of a factor. Estimators and settings are those of the comparison by Locatello et al.
(arXiv 1811.12359) unless a docstring says otherwise, so that numbers can be laid beside published ones.
"""

from collections.abc import Callable, Collection, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


class MIG(NamedTuple):
    """The mutual information gap.

    Attributes:
        score: Mean of the gaps, in [0, 1].
        gaps: Per factor, in [0, 1], (F,).
        information: Mutual information of every dimension with every factor in nats, (D, F).
    """

    score: float
    gaps: Floats
    information: Floats


class DCI(NamedTuple):
    """Disentanglement, completeness and informativeness.

    Attributes:
        disentanglement: 1 if each dimension predicts one factor only, in [0, 1].
        completeness: 1 if each factor is predicted by one dimension only, in [0, 1].
        informativeness: Accuracy of the prediction on held-out rows, mean over the factors, in [0, 1].
        importance: Of every dimension for predicting every factor, each column summing to 1, (D, F).
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Floats


class SAP(NamedTuple):
    """The separated attribute predictability.

    Attributes:
        score: Mean of the gaps, in [0, 1].
        gaps: Per factor, in [0, 1], (F,).
        predictability: Of every factor from every single dimension, in [0, 1], (D, F).
    """

    score: float
    gaps: Floats
    predictability: Floats


class FactorVAEScore(NamedTuple):
    """The score of FactorVAE.

    Attributes:
        score: Accuracy of the majority vote on votes it has not seen, in [0, 1]; chance is 1/F.
        votes: How often a dimension varied least while a factor was fixed, (D, F): the classifier.
        active: The dimensions that could vote, (D,).
    """

    score: float
    votes: Integers
    active: Booleans


def mig(latents: ArrayLike, factors: ArrayLike, *, bins: int = 20) -> MIG:
    r"""Mutual information gap (Chen et al. 2018, arXiv 1802.04942, section 4).

    .. math:: \frac1F \sum_f \frac{1}{H(v_f)} \bigl( I(z_{d(f)}; v_f) - \max_{d \neq d(f)} I(z_d; v_f) \bigr),
        \qquad d(f) = \arg\max_d I(z_d; v_f)

    The paper integrates over the encoder's distribution; here each dimension is cut into bins of equal width between
    its extremes. The estimate of I is too high by about :math:`(\text{bins} - 1)(K - 1) / 2N` nats for every
    dimension alike, so that the gaps are not.

    Args:
        latents: (N, D), D ≥ 2.
        factors: (N, F) integers.
        bins: Bins of each dimension, ≥ 2.

    Raises:
        ValueError: If shapes or types do not fit, a latent is not finite, a factor has one value only, or there are
            fewer bins.
    """
    latents, factors = _check(latents, factors)
    if bins < 2:
        raise ValueError(f"expected bins ≥ 2, got {bins}")
    low, high = latents.min(axis=0), latents.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    cells = np.minimum(((latents - low) / width * bins).astype(np.int64), bins - 1)
    labels = [np.unique(factor, return_inverse=True)[1] for factor in factors.T]
    entropies = np.array([_entropy(label) for label in labels])
    joint = np.array([[_entropy(cell + bins * label) for label in labels] for cell in cells.T])
    information = np.array([_entropy(cell) for cell in cells.T])[:, None] + entropies - joint
    gaps = _gap(information) / entropies
    return MIG(float(gaps.mean()), gaps, information)


def dci(latents: ArrayLike, factors: ArrayLike, *, trees: int = 100, test_fraction: float = 0.2, seed: int = 0) -> DCI:
    r"""Disentanglement, completeness, informativeness (Eastwood & Williams 2018, section 2).

    Boosted trees predict each factor from all dimensions; their importances :math:`R_{df}` say who predicts what.
    Disentanglement is :func:`concentration` of R, completeness that of its transpose. Instead of the paper's error of
    lasso or random forests, which treat factors as numbers, informativeness is the accuracy of a classifier.

    Args:
        latents: (N, D), D ≥ 2.
        factors: (N, F) integers, F ≥ 2.
        trees: Boosting rounds, with one tree for each value of a factor; time grows with N · trees · the sum of all K:
            three minutes on one core for N = 10,000 and 113 values.
        test_fraction: Part of the rows on which informativeness is measured; the others are fitted.
        seed: Of split and trees.

    Raises:
        ValueError: If shapes or types do not fit, a latent is not finite, or a factor has one value only.
        ImportError: Without scikit-learn.
    """
    require_scikit_learn()
    from sklearn.ensemble import GradientBoostingClassifier  # type: ignore[import-untyped]  # noqa: PLC0415

    latents, factors = _check(latents, factors)
    if factors.shape[1] < 2:
        raise ValueError(f"disentanglement needs at least 2 factors, got {factors.shape[1]}")
    train, test = _split(len(latents), test_fraction, seed)
    importances, accuracies = [], []
    for factor in factors.T:
        model = GradientBoostingClassifier(n_estimators=trees, random_state=seed)
        model.fit(latents[train], factor[train])
        importances.append(model.feature_importances_)
        accuracies.append(model.score(latents[test], factor[test]))
    importance = np.stack(importances, axis=1)
    return DCI(concentration(importance), concentration(importance.T), float(np.mean(accuracies)), importance)


def concentration(importance: ArrayLike) -> float:
    r"""How far each row of a matrix is concentrated on one column, :math:`\sum_r \rho_r (1 - H_n(P_r))`.

    :math:`P_r` is row r divided by its sum, :math:`H_n` the entropy to the base of the number of columns, :math:`\rho`
    the rows' shares of the whole (Eastwood & Williams 2018, section 2). 0 for a matrix of zeros.

    Args:
        importance: (R, n), not negative, n ≥ 2.

    Returns:
        In [0, 1].

    Raises:
        ValueError: If the shape does not fit, or an entry is negative or not finite.
    """
    importance = np.asarray(importance, dtype=np.float64)
    if importance.ndim != 2 or importance.shape[1] < 2:
        raise ValueError(f"expected importances of shape (R, n) with n ≥ 2, got {importance.shape}")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError(f"expected finite importances ≥ 0, got values from {importance.min()} to {importance.max()}")
    sums = importance.sum(axis=1)
    rows = importance[sums > 0]
    if not len(rows):
        return 0.0
    share = rows / rows.sum(axis=1, keepdims=True)
    logarithm = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy = -(share * logarithm).sum(axis=1) / np.log(importance.shape[1])
    return float(np.average(1 - entropy, weights=sums[sums > 0]))


def sap(
    latents: ArrayLike,
    factors: ArrayLike,
    *,
    categorical: Collection[int] = (),
    test_fraction: float = 0.5,
    seed: int = 0,
) -> SAP:
    r"""Separated attribute predictability (Kumar et al. 2018, arXiv 1711.00848, section 3).

    How well one dimension alone predicts a factor; the score is the gap between the best and the second best
    dimension, mean over the factors. For a factor with an order it is the share of its variance that a line explains,
    :math:`\operatorname{Cov}(z_d, v_f)^2 / (\operatorname{Var} z_d \operatorname{Var} v_f)`, 0 for a constant
    dimension. For a categorical one it is the accuracy of a linear SVM on held-out rows; its gap cannot exceed 1 - 1/K,
    because the second dimension still guesses.

    Args:
        latents: (N, D), D ≥ 2.
        factors: (N, F) integers.
        categorical: Columns of ``factors`` whose values have no order.
        test_fraction: Part of the rows on which the SVM is measured; it is fitted on the others.
        seed: Of split and SVM.

    Raises:
        ValueError: If shapes or types do not fit, a latent is not finite, a factor has one value only, or there is no
            such column.
        ImportError: Without scikit-learn, if a factor is categorical.
    """
    latents, factors = _check(latents, factors)
    if not set(categorical) <= set(range(factors.shape[1])):
        raise ValueError(f"expected columns from 0 to {factors.shape[1] - 1} in categorical, got {list(categorical)}")
    deviations, targets = latents - latents.mean(axis=0), factors - factors.mean(axis=0)
    covariance = deviations.T @ targets
    scale = np.square(deviations).sum(axis=0)[:, None] * np.square(targets).sum(axis=0)
    constant = np.ptp(latents, axis=0) == 0  # rounding of their mean would leave a scale above 0
    varies = (scale > 0) & ~constant[:, None]
    predictability = np.divide(covariance**2, scale, out=np.zeros_like(covariance), where=varies)
    if categorical:
        require_scikit_learn()
        from sklearn.svm import LinearSVC  # type: ignore[import-untyped]  # noqa: PLC0415

        train, test = _split(len(latents), test_fraction, seed)
        for column in categorical:
            factor = factors[:, column]
            for dimension, latent in enumerate(latents.T[:, :, None]):
                model = LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
                model.fit(latent[train], factor[train])
                predictability[dimension, column] = model.score(latent[test], factor[test])
    gaps = _gap(predictability)
    return SAP(float(gaps.mean()), gaps, predictability)


def factor_vae_score(
    encode: Callable[[Integers], ArrayLike],
    factor_sizes: Sequence[int],
    *,
    batch_size: int = 64,
    train_votes: int = 1_000,
    test_votes: int = 1_000,
    variance_samples: int = 10_000,
    min_deviation: float = 0.05,
    seed: int = 0,
) -> FactorVAEScore:
    r"""The score of FactorVAE (Kim & Mnih 2018, arXiv 1802.05983, section 4).

    A vote: draw a factor f, fix its value, draw the other factors of a batch, and see which dimension varies least,
    :math:`\arg\min_d \operatorname{Var}_b z_{bd} / \operatorname{Var} z_d`. The classifier answers each dimension with
    the factor that was fixed most often when that dimension won. Fewer votes than the comparison's 10,000 and 5,000:
    the standard error of the score is at most 1.6 %.

    Args:
        encode: Factors (B, F) → latents (B, D), D the same for all: renders the factors and encodes them.
        factor_sizes: K of each factor, F ≥ 2; its values are 0 to K - 1.
        batch_size: Rows behind one vote.
        train_votes: Votes the classifier is made of.
        test_votes: Votes it is measured on.
        variance_samples: Rows the variance of a dimension is estimated from.
        min_deviation: Dimensions with a smaller standard deviation do not vote: they have collapsed to the prior's
            mean, and their variance is noise. In units of the prior's standard deviation of 1; 0.05 in the comparison's
            settings. Without any dimension left the score is 0.
        seed: Of all draws.

    Raises:
        ValueError: If a number is out of range, or ``encode`` returns another shape or a value that is not finite.
    """
    sizes = np.asarray(factor_sizes)
    if sizes.ndim != 1 or len(sizes) < 2 or not np.issubdtype(sizes.dtype, np.integer) or sizes.min() < 2:
        raise ValueError(f"expected at least 2 factors of at least 2 values each, got factor_sizes {factor_sizes}")
    if min(batch_size, variance_samples) < 2 or min(train_votes, test_votes) < 1:
        raise ValueError(
            "expected batch_size and variance_samples ≥ 2 and train_votes and test_votes ≥ 1, got "
            f"{batch_size}, {variance_samples}, {train_votes} and {test_votes}"
        )
    rng = np.random.default_rng(seed)

    def variance(factors: Integers) -> Floats:
        latents = np.asarray(encode(factors), dtype=np.float64)
        if latents.ndim != 2 or len(latents) != len(factors) or not np.isfinite(latents).all():
            raise ValueError(f"expected finite latents of shape ({len(factors)}, D) from encode, got {latents.shape}")
        result: Floats = latents.var(axis=0, ddof=1)
        return result

    overall = variance(rng.integers(sizes, size=(variance_samples, len(sizes))))
    active = (overall > 0) & (np.sqrt(overall) >= min_deviation)

    def count(votes: int) -> Integers:
        counts = np.zeros((len(overall), len(sizes)), np.int64)
        for fixed in rng.integers(len(sizes), size=votes):
            factors = rng.integers(sizes, size=(batch_size, len(sizes)))
            factors[:, fixed] = factors[0, fixed]
            relative = np.divide(variance(factors), overall, out=np.full_like(overall, np.inf), where=active)
            counts[relative.argmin(), fixed] += 1
        return counts

    if not active.any():
        return FactorVAEScore(0.0, np.zeros((len(overall), len(sizes)), np.int64), active)
    votes = count(train_votes)
    unseen = count(test_votes)
    correct = unseen[np.arange(len(votes)), votes.argmax(axis=1)].sum()
    return FactorVAEScore(float(correct / test_votes), votes, active)


def _check(latents: ArrayLike, factors: ArrayLike) -> tuple[Floats, Integers]:
    """Latents as float64 and factors as they are, if they fit together."""
    latents, factors = np.asarray(latents, dtype=np.float64), np.asarray(factors)
    if latents.ndim != 2 or latents.shape[1] < 2:
        raise ValueError(f"expected latents of shape (N, D) with D ≥ 2, got {latents.shape}")
    if factors.ndim != 2 or len(factors) != len(latents) or not factors.size:
        raise ValueError(f"expected factors of shape ({len(latents)}, F), got {factors.shape}")
    if not np.issubdtype(factors.dtype, np.integer):
        raise ValueError(f"expected integer factors, got {factors.dtype}")
    if not np.isfinite(latents).all():
        raise ValueError(f"expected finite latents, got {np.count_nonzero(~np.isfinite(latents))} that are not")
    single = np.flatnonzero(np.ptp(factors, axis=0) == 0).tolist()
    if single:
        raise ValueError(f"expected at least 2 values of every factor, got 1 in columns {single}")
    return latents, factors


def _entropy(labels: Integers) -> float:
    """Of the empirical distribution of labels (N,), in nats."""
    _, counts = np.unique(labels, return_counts=True)
    share = counts / len(labels)
    return float(-(share * np.log(share)).sum())


def _gap(scores: Floats) -> Floats:
    """Best minus second best dimension of scores (D, F), (F,)."""
    second, best = np.sort(scores, axis=0)[-2:]
    gap: Floats = best - second
    return gap


def _split(rows: int, test_fraction: float, seed: int) -> tuple[Integers, Integers]:
    """Shuffled numbers of training and test rows."""
    tests = round(rows * test_fraction)
    if not 0 < tests < rows:
        raise ValueError(f"expected a test_fraction that leaves rows on both sides, got {test_fraction} of {rows} rows")
    order = np.random.default_rng(seed).permutation(rows)
    return order[tests:], order[:tests]


def require_scikit_learn() -> None:
    """Refuse to go on without scikit-learn, with the extra that has it.

    Raises:
        ImportError: If it is missing.
    """
    if find_spec("sklearn") is None:
        raise ImportError('this score needs scikit-learn: pip install "rl-ae[report]"')
