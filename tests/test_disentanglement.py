"""Disentanglement scores of representations whose disentanglement is known."""

import csv
import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import disentanglement as bench
from rl_ae import ConvConfig
from rl_ae.analysis import concentration, dci, disentanglement, factor_vae_score, mig, sap

SIZES = (3, 4, 5)


@pytest.fixture(scope="module")
def factors():
    return np.random.default_rng(0).integers(SIZES, size=(2_000, 3))


def perfect(factors):
    """Each factor in a dimension of its own, in another order, sign and unit; and one dimension of nothing."""
    return np.column_stack([-0.3 * factors[:, 2], factors[:, 0] + 5.0, 2.0 * factors[:, 1], np.zeros(len(factors))])


def duplicated(factors):
    return np.hstack([factors, factors]).astype(float)


def useless(factors):
    return np.random.default_rng(len(factors)).normal(size=(len(factors), 4))


def mixed(factors):
    """An invertible mixture: everything is there, nothing is apart."""
    standard = factors / np.sqrt((np.square(SIZES) - 1) / 12)
    return standard @ [[2, 2, -1], [-1, 2, 2], [2, -1, 2]] / 3


def test_mig_of_known_representations(factors):
    assert mig(perfect(factors), factors).score == pytest.approx(1, abs=0.01)
    assert mig(duplicated(factors), factors).score == pytest.approx(0)
    assert mig(useless(factors), factors).score < 0.02
    assert mig(mixed(factors), factors).score < 0.15


def test_mig_by_hand():
    factors = np.array([[0], [0], [1], [1]])
    latents = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    result = mig(latents, factors)
    # H(v) = ln 2, H(z₂) = H(¼) = 2 ln 2 - ¾ ln 3, H(z₂, v) = 1.5 ln 2
    second = 1.5 * np.log(2) - 0.75 * np.log(3)
    assert result.information[:, 0] == pytest.approx([np.log(2), second])
    assert result.gaps == pytest.approx([1 - second / np.log(2)])
    assert result.score == pytest.approx(0.6887, abs=1e-4)


def test_mig_cuts_dimensions_into_bins_of_equal_width():
    factors = np.arange(4)[:, None]
    latents = np.column_stack([np.arange(4.0), np.zeros(4)])
    assert mig(latents, factors, bins=4).information[0, 0] == pytest.approx(np.log(4))
    assert mig(latents, factors, bins=2).information[0, 0] == pytest.approx(np.log(2))
    assert mig(latents, factors, bins=2).gaps == pytest.approx([0.5])


def test_mig_depends_on_neither_units_nor_names(factors):
    latents = mixed(factors)
    renamed = np.array([7, -2, 40, 0, 3])[factors]
    assert mig(latents, renamed).gaps == pytest.approx(mig(100 - 3 * latents[:, ::-1], factors).gaps, abs=0.02)
    assert mig(latents, renamed).gaps == pytest.approx(mig(latents, factors).gaps)


def test_concentration_by_hand():
    assert concentration(np.eye(3)) == pytest.approx(1)
    assert concentration(np.ones((3, 4))) == pytest.approx(0)
    assert concentration(np.zeros((3, 4))) == 0
    # a row on one column weighs 2 of 3, a row on two of four columns 1 of 3 with 1 - ½
    assert concentration([[2, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0]]) == pytest.approx(2 / 3 + 1 / 3 / 2)


def test_dci_of_known_representations(factors):
    apart, twice, nothing, mixture = (
        dci(represent(factors), factors, trees=5) for represent in (perfect, duplicated, useless, mixed)
    )
    assert apart[:3] == pytest.approx((1, 1, 1), abs=0.01)
    assert apart.importance == pytest.approx(np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 0]]), abs=0.01)
    assert twice.informativeness == pytest.approx(1)
    assert nothing.disentanglement < 0.1
    assert nothing.completeness < 0.1
    assert nothing.informativeness == pytest.approx(np.mean([1 / size for size in SIZES]), abs=0.05)
    assert mixture.disentanglement < 0.2
    assert mixture.informativeness > 0.6


def test_dci_of_duplicates_is_disentangled_but_not_complete(factors):
    result = dci(duplicated(factors), factors, trees=5)
    assert result.disentanglement == pytest.approx(1)
    # trees take either of two equal dimensions: evenly, two of six
    assert result.completeness == pytest.approx(1 - np.log(2) / np.log(6), abs=0.05)


def test_sap_of_known_representations(factors):
    assert sap(perfect(factors), factors).score == pytest.approx(1, abs=0.01)
    assert sap(duplicated(factors), factors).score == pytest.approx(0)
    assert sap(useless(factors), factors).score < 0.01
    assert sap(mixed(factors), factors).score < 0.1


def test_sap_by_hand():
    factors = np.array([[0], [1], [2], [3]])
    latents = np.column_stack([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], np.full(4, 0.1)])
    result = sap(latents, factors)
    # covariances ½ and ¼ of variances ¼ and 5/4; a constant predicts nothing
    assert result.predictability[:, 0] == pytest.approx([0.8, 0.2, 0])
    assert result.score == pytest.approx(0.6)


def test_sap_of_a_category_is_the_gap_in_accuracy():
    factors = np.random.default_rng(0).integers(2, size=(1_000, 2))
    latents = np.column_stack([2.0 * factors[:, 0] - 1, 1 - 2.0 * factors[:, 1]])
    result = sap(latents, factors, categorical=[0])
    assert result.predictability[0, 0] == 1  # the sign is the category
    assert result.predictability[1, 0] == pytest.approx(0.5, abs=0.1)
    assert result.gaps == pytest.approx([0.5, 1], abs=0.1)
    assert sap(latents[:, [0, 0, 1]], factors, categorical=[0]).gaps[0] == 0


def test_factor_vae_score_of_known_representations():
    few = {"train_votes": 150, "test_votes": 150, "variance_samples": 2_000}
    apart = factor_vae_score(perfect, SIZES, **few)
    assert apart.score == 1
    assert apart.active.tolist() == [True, True, True, False]
    assert (apart.votes > 0).tolist() == [
        [False, False, True],
        [True, False, False],
        [False, True, False],
        [False, False, False],
    ]
    assert apart.votes.sum() == 150
    assert factor_vae_score(duplicated, SIZES, **few).score == 1
    assert factor_vae_score(useless, SIZES, **few, batch_size=16).score < 0.5


def test_factor_vae_score_lets_collapsed_dimensions_not_vote():
    def encode(factors):
        noise = 1e-3 * np.random.default_rng(int(factors.sum())).normal(size=(len(factors), 1))
        return np.hstack([factors, noise, np.zeros_like(noise)])

    few = {"train_votes": 60, "test_votes": 60, "variance_samples": 500}
    assert factor_vae_score(encode, SIZES, **few).active.tolist() == [True, True, True, False, False]
    assert factor_vae_score(encode, SIZES, **few, min_deviation=0).active.tolist() == [True, True, True, True, False]
    nothing_left = factor_vae_score(lambda factors: np.zeros((len(factors), 2)), SIZES, **few)
    assert nothing_left.score == 0
    assert not nothing_left.votes.any()


def test_factor_vae_score_fixes_one_factor_a_vote():
    batches = []

    def encode(factors):
        batches.append(factors.copy())
        return factors

    factor_vae_score(encode, SIZES, batch_size=32, train_votes=20, test_votes=10, variance_samples=100)
    assert [len(batch) for batch in batches] == [100] + [32] * 30
    assert [int((np.ptp(batch, axis=0) == 0).sum()) for batch in batches] == [0] + [1] * 30
    assert all((batch >= 0).all() and (batch < SIZES).all() for batch in batches)


def test_scores_repeat(factors):
    latents = mixed(factors)
    assert mig(latents, factors).score == mig(latents, factors).score
    for score in (
        lambda seed: dci(latents, factors, trees=2, seed=seed),
        lambda seed: sap(latents, factors, seed=seed),
    ):
        assert score(0)[:2][0] == score(0)[:2][0]
    votes = {"train_votes": 50, "test_votes": 50, "variance_samples": 100}
    assert factor_vae_score(mixed, SIZES, **votes).score == factor_vae_score(mixed, SIZES, **votes).score


@pytest.mark.parametrize("score", [mig, dci, sap])
@pytest.mark.parametrize(
    ("latents", "factors", "message"),
    [
        (np.zeros(4), np.zeros((4, 2), int), r"\(N, D\) with D ≥ 2, got \(4,\)"),
        (np.zeros((4, 1)), np.zeros((4, 2), int), r"D ≥ 2, got \(4, 1\)"),
        (np.zeros((4, 2)), np.zeros((3, 2), int), r"\(4, F\), got \(3, 2\)"),
        (np.zeros((4, 2)), np.zeros(4, int), r"\(4, F\), got \(4,\)"),
        (np.zeros((0, 2)), np.zeros((0, 2), int), r"\(0, F\), got \(0, 2\)"),
        (np.zeros((4, 2)), np.zeros((4, 2)), "integer factors, got float64"),
        (np.full((4, 2), np.nan), np.zeros((4, 2), int), "finite latents, got 8"),
        (np.zeros((4, 2)), np.eye(4, 2, -2, dtype=int) * [1, 0], r"got 1 in columns \[1\]"),
    ],
)
def test_bad_arrays_are_refused(score, latents, factors, message):
    with pytest.raises(ValueError, match=message):
        score(latents, factors)


def test_other_bad_input_is_refused(factors):
    latents = mixed(factors)
    with pytest.raises(ValueError, match="bins ≥ 2, got 1"):
        mig(latents, factors, bins=1)
    with pytest.raises(ValueError, match="at least 2 factors, got 1"):
        dci(latents, factors[:, :1])
    with pytest.raises(ValueError, match=r"leaves rows on both sides, got 1\.0 of 2000"):
        dci(latents, factors, test_fraction=1.0)
    with pytest.raises(ValueError, match=r"from 0 to 2 in categorical, got \[3\]"):
        sap(latents, factors, categorical=[3])
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        concentration([1, 2, 3])
    with pytest.raises(ValueError, match=r"from -1\.0 to 1\.0"):
        concentration([[1, -1]])
    with pytest.raises(ValueError, match=r"factor_sizes \(3,\)"):
        factor_vae_score(perfect, (3,))
    with pytest.raises(ValueError, match="got 1, 10000, 1000 and 1000"):
        factor_vae_score(perfect, SIZES, batch_size=1)
    with pytest.raises(ValueError, match=r"\(10000, D\) from encode, got \(10000,\)"):
        factor_vae_score(lambda factors: factors[:, 0], SIZES)


def test_without_scikit_learn_the_extra_is_named(factors, monkeypatch):
    monkeypatch.setattr(disentanglement, "find_spec", lambda name: None)
    latents = mixed(factors)
    for score in (lambda: dci(latents, factors), lambda: sap(latents, factors, categorical=[0])):
        with pytest.raises(ImportError, match=r'pip install "rl-ae\[report\]"'):
            score()
    assert 0 <= sap(latents, factors).score <= 1


# ---------------------------------------------------------------------- the benchmark


class KilledError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def small_bench(monkeypatch, tmp_path):
    """Arguments of a benchmark of seconds: two variants with few filters and six steps."""
    conv = ConvConfig(filters=(4, 4, 4, 4), kernel_size=4, strides=(2, 2, 2, 2), padding=1)
    monkeypatch.setattr(bench, "SHARED", {**bench.SHARED, "latent_dim": 3, "conv": conv, "hidden": (16,)})
    monkeypatch.setattr(bench, "VARIANTS", {"vae": {}, "factor": {"gamma": 35.0, "discriminator_hidden": 16}})
    monkeypatch.setattr(bench, "BATCH_SIZE", 8)
    monkeypatch.setattr(bench, "CURVE_EVERY", 1)
    monkeypatch.setattr(bench, "CHECKPOINT_EVERY", 2)
    folders = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    return bench.Arguments(("vae", "factor"), (0, 1), 6, **folders, samples=300, votes=5, trees=1)


def test_a_killed_run_ends_like_one_that_was_not(small_bench, tmp_path):
    def kill():
        if broken.learner.step == 5:
            raise KilledError

    whole = bench.Run(tmp_path / "whole", "factor", 3)
    whole.train(6, lambda: None)
    broken = bench.Run(tmp_path / "broken", "factor", 3)
    with pytest.raises(KilledError):
        broken.train(6, kill)
    torch.randn(5)
    resumed = bench.Run(tmp_path / "broken", "factor", 3)
    assert resumed.learner.step == 4
    resumed.train(6, lambda: None)
    for name, part in whole.learner.parts():
        torch.testing.assert_close(
            dict(resumed.learner.parts())[name].state_dict(), part.state_dict(), rtol=0, atol=0, msg=name
        )
    unhurried = [[{**row, "seconds": 0} for row in run.rows] for run in (whole, resumed)]
    assert unhurried[0] == unhurried[1]
    assert [row["step"] for row in resumed.rows] == [1, 2, 3, 4, 5, 6]


def test_the_benchmark_writes_its_results_and_runs_nothing_twice(small_bench, monkeypatch):
    order = []
    train = bench.Run.train
    monkeypatch.setattr(
        bench.Run, "train", lambda run, *rest: (order.append((run.variant, run.seed)), train(run, *rest))
    )
    bench.train_all(small_bench)
    assert order == [("vae", 0), ("factor", 0), ("vae", 1), ("factor", 1)]
    bench.train_all(small_bench)
    assert len(order) == 4

    names = {path.name for path in small_bench.results.iterdir()}
    curves = {f"{variant}_seed{seed}.csv" for variant, seed in order}
    assert names == {"scores.csv", "table.md", "traversals.png", *curves}
    with (small_bench.results / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["seed"], row["steps"]) for row in rows] == [
        ("vae", "0", "6"),
        ("vae", "1", "6"),
        ("factor", "0", "6"),
        ("factor", "1", "6"),
    ]
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("mig", "sap", "factor_vae", "mig_x"))
    assert all(400 < float(row["reconstruction"]) < 3_000 for row in rows)  # 4096 ln 2 = 2839 for grey

    text = (small_bench.results / "table.md").read_text()
    assert bench.report(small_bench) + "\n" == text
    assert text.count("\n") == 4
    assert "| vae | 2 | 6 |" in text
    with pytest.raises(FileNotFoundError, match="no finished run in"):
        bench.report(dataclasses.replace(small_bench, runs=small_bench.runs / "empty"))


def test_traversals_move_one_dimension_a_row_in_the_order_asked_for(small_bench, tmp_path):
    run = bench.Run(tmp_path / "run", "vae", 0)
    spans = [(-2.0, 2.0)] * 3
    picture = bench.traverse(run, [2, 0, 1], spans)
    assert picture.shape == (3 * 64, 11 * 64)
    assert np.array_equal(picture[:64], bench.traverse(run, [2], spans)[:64])
    assert not np.array_equal(picture[:64], bench.traverse(run, [2], [(-1.0, 1.0)] * 3))
    tiles = picture.reshape(3, 64, 11, 64).swapaxes(1, 2)
    assert all(not np.array_equal(row[0], row[-1]) for row in tiles)


def test_a_run_with_other_settings_is_refused(small_bench, tmp_path):
    run = bench.Run(tmp_path / "run", "vae", 0)
    run.train(2, lambda: None)
    with pytest.raises(ValueError, match=r"holds another run: .*'seed': 1.*'seed': 0.*another --runs"):
        bench.Run(tmp_path / "run", "vae", 1)
    with pytest.raises(ValueError, match="at step 2, beyond 1"):
        bench.Run(tmp_path / "run", "vae", 0).train(1, lambda: None)
    with pytest.raises(ValueError, match=r"got \['gan'\]"):
        bench.Arguments(variants=("gan",))


@pytest.mark.parametrize("variant", sorted(bench.VARIANTS))
def test_every_variant_has_ten_latents_one_rate_and_the_variational_ones_nats(variant):
    config = bench.variant_config(variant)
    assert config.latent_dim == 10
    assert config.per_element == (variant in ("ae", "rae"))
    rate = 5e-4 if variant == "btcvae" else 1e-3
    assert config.encoder_learning_rate == config.decoder_learning_rate == rate
