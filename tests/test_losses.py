"""Losses against closed forms, Monte Carlo, and plain transcriptions of their papers in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import Normal, kl_divergence

import rl_ae.losses
from rl_ae.adversary import Adversary
from rl_ae.latents import DeterministicLatent, GaussianLatent, QuantizedLatent, StochasticLatent
from rl_ae.likelihoods import Bernoulli, Gaussian, Laplace, LikelihoodHead, OptimalGaussian, SquaredError
from rl_ae.losses import (
    BetaBLoss,
    BetaHLoss,
    BTCLoss,
    Discriminator,
    FactorLoss,
    RAELoss,
    SQLoss,
    VAELoss,
    VQLoss,
    active_units,
    bernoulli_nll,
    code_kl,
    commitment,
    decompose_kl,
    density_ratio,
    discriminator_loss,
    exponential_schedule,
    free_nats,
    gaussian_nll,
    kl_standard_normal,
    laplace_nll,
    latent_l2,
    linear_schedule,
    optimal_gaussian_nll,
    permute_latents,
    perplexity,
    psnr,
    quantization_error,
    squared_error,
    stratified_weights,
    weigh,
)

B, D, N = 6, 4, 50


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gaussian(batch=B, scale=1.0):
    return GaussianLatent(scale * torch.randn(batch, D), 0.5 * torch.randn(batch, D))


def codes(batch=B, num_codes=7, dim=3, grid=(2, 3)):
    z = torch.randn(batch, dim, *grid)
    return StochasticLatent(z, torch.rand(batch, 1, *grid) + 0.5, torch.randn(num_codes, dim))


def quantized(batch=B):
    z, vectors = torch.randn(2, batch, 3, 2, 2)
    return QuantizedLatent(z, vectors, torch.randint(0, 7, (batch, 2, 2)))


#: Every exported loss module, with a latent it takes.
LOSSES = {
    "RAELoss": (lambda: RAELoss(0.3), lambda: DeterministicLatent(torch.randn(B, D))),
    "VAELoss": (lambda: VAELoss(2.0), gaussian),
    "BetaHLoss": (lambda: BetaHLoss(4.0), gaussian),
    "BetaBLoss": (lambda: BetaBLoss(10.0, 0.0, 25.0, capacity_steps=10), gaussian),
    "FactorLoss": (lambda: FactorLoss(Discriminator(D, 8, 3), 3.0), gaussian),
    "BTCLoss": (lambda: BTCLoss(6.0, estimator="mws"), gaussian),
    "BTCLoss (mss)": (lambda: BTCLoss(6.0), gaussian),
    "SQLoss": (lambda: SQLoss(7), codes),
    "VQLoss": (lambda: VQLoss(7, 0.25), quantized),
}
#: Which depend on who shares a batch, by definition.
BATCH_DEPENDENT = {"BTCLoss (mss)"}


def pixels(batch=B):
    return torch.rand(batch, 2, 3, 3), torch.rand(batch, 2, 3, 3)


def draw(latent):
    return latent.sample(torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------- one contract for every loss


def test_every_exported_loss_is_in_the_contract():
    exported = {
        name
        for name in rl_ae.losses.__all__
        if isinstance(kind := getattr(rl_ae.losses, name), type)
        and issubclass(kind, rl_ae.losses.Loss)
        and kind is not rl_ae.losses.Loss
    }
    # test_hierarchical.py has the contract of the one whose latent is more than tensors
    assert exported == {name.split()[0] for name in LOSSES} | {"HierarchicalLoss"}


@pytest.mark.parametrize("name", LOSSES)
def test_contract(name):
    make_loss, make_latent = LOSSES[name]
    loss, latent = make_loss(), make_latent()
    reconstruction, target = pixels()
    reconstruction.requires_grad_()
    latent = latent._replace(**{latent._fields[0]: latent[0].requires_grad_()})
    total, terms = loss(reconstruction, target, latent, draw(latent), step=3, n_data=N)
    assert total.ndim == 0 and "reconstruction" in terms
    assert terms["reconstruction"].item() == pytest.approx(squared_error(reconstruction, target).item())
    total.backward()
    assert reconstruction.grad.abs().sum() > 0 and latent[0].grad.abs().sum() > 0
    assert loss.state_dict().keys() == {
        key for key in loss.state_dict() if key.startswith("discriminator")
    }  # no counter, no optimizer
    # a function of the step that is passed, not of how often it was asked
    assert loss(reconstruction, target, latent, draw(latent), step=3, n_data=N).total == total


@pytest.mark.parametrize("name", LOSSES)
def test_duplicating_the_batch_changes_nothing(name):
    make_loss, make_latent = LOSSES[name]
    loss, latent = make_loss(), make_latent()
    reconstruction, target = pixels()
    z = draw(latent)

    def twice(tensor):
        return torch.cat([tensor, tensor]) if tensor.shape[0] == B else tensor

    once = loss(reconstruction, target, latent, z, n_data=N).total.item()
    doubled = loss(
        twice(reconstruction), twice(target), type(latent)(*map(twice, latent)), twice(z), n_data=N
    ).total.item()
    if name in BATCH_DEPENDENT:
        assert abs(doubled - once) > 1e-3
    else:
        assert doubled == pytest.approx(once, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_finite_in_bf16_autocast(name):
    make_loss, make_latent = LOSSES[name]
    loss, latent = make_loss(), make_latent()
    # posteriors as far out as a head can put them
    if isinstance(latent, GaussianLatent):
        latent = GaussianLatent(30.0 * latent.mu, torch.full_like(latent.logvar, -9.9).copysign(latent.mu))
    latent = type(latent)(*(t.bfloat16() if t.is_floating_point() else t for t in latent))
    parameter = nn.Parameter(torch.rand(B, 2, 3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        target = pixels()[1]
        total, terms = loss(2.0 * parameter, target, latent, draw(latent), n_data=N)
    total.backward()
    assert all(torch.isfinite(term) for term in (total, *terms.values()))
    assert torch.isfinite(parameter.grad).all()


# ---------------------------------------------------------------------- reconstruction


def test_terms_by_hand():
    reconstruction = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]]])
    target = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.0]]]])
    assert squared_error(reconstruction, target).item() == pytest.approx((1.0 + 0.5) / 2)
    assert latent_l2(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item() == pytest.approx(0.5 * 25 / 2)
    assert psnr(torch.tensor(0.01)).item() == pytest.approx(20.0)
    assert psnr(torch.tensor(1.0)).item() == 0.0


def test_likelihoods_are_torchs():
    mean, target = pixels()
    expected = -Normal(mean, 0.3).log_prob(target).sum() / B
    assert gaussian_nll(mean, target, 0.3).item() == pytest.approx(expected.item(), rel=1e-5)
    expected = -TorchLaplace(mean, 0.3).log_prob(target).sum() / B
    assert laplace_nll(mean, target, 0.3).item() == pytest.approx(expected.item(), rel=1e-5)
    logits, binary = torch.randn(B, 2, 3, 3), torch.rand(B, 2, 3, 3).round()
    expected = -TorchBernoulli(logits=logits).log_prob(binary).sum() / B
    assert bernoulli_nll(logits, binary).item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(Bernoulli(logits).mean, torch.sigmoid(logits))


def test_squared_error_is_a_gaussian_of_variance_one_half_without_its_constant():
    mean, target = pixels()
    constant = mean[0].numel() * 0.5 * math.log(math.pi)
    assert squared_error(mean, target).item() == pytest.approx(
        gaussian_nll(mean, target, math.sqrt(0.5)).item() - constant, rel=1e-5
    )


def test_the_optimal_sigma_is_the_best_one():
    mean, target = pixels()
    best = (mean - target).square().mean().sqrt()
    optimal = optimal_gaussian_nll(mean, target).item()
    assert optimal == pytest.approx(gaussian_nll(mean, target, best).item(), rel=1e-5)
    assert all(gaussian_nll(mean, target, best * factor).item() > optimal for factor in (0.9, 1.1))
    elements = mean[0].numel()
    assert optimal == pytest.approx(0.5 * elements * (math.log(2 * math.pi * best.item() ** 2) + 1), rel=1e-5)


def test_a_learned_sigma_learns_the_noise():
    head = LikelihoodHead("learned_gaussian", scale=1.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    mean = torch.zeros(200, 50)
    target = mean + 0.2 * torch.randn_like(mean)
    for _ in range(200):
        optimizer.zero_grad()
        (-head(mean).log_prob(target).mean()).backward()
        optimizer.step()
    assert head.log_scale.exp().item() == pytest.approx(target.std().item(), rel=0.01)
    assert list(LikelihoodHead("gaussian", scale=0.5).parameters()) == []


@pytest.mark.parametrize(
    ("likelihood", "variance"),
    [
        (SquaredError(torch.full((20_000, 1), 0.3)), 0.5),
        (Gaussian(torch.full((20_000, 1), 0.3), torch.tensor(0.2)), 0.04),
        (Laplace(torch.full((20_000, 1), 0.3), torch.tensor(0.2)), 0.08),
        (Bernoulli(torch.logit(torch.full((20_000, 1), 0.3))), 0.21),
        (OptimalGaussian(torch.full((20_000, 1), 0.3)), 0.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_samples_have_the_likelihoods_moments(likelihood, variance):
    samples = likelihood.sample(torch.Generator().manual_seed(0))
    assert samples.mean().item() == pytest.approx(0.3, abs=0.02)
    assert samples.var().item() == pytest.approx(variance, rel=0.05, abs=1e-9)


def test_a_bernoulli_refuses_what_is_outside_of_it():
    with pytest.raises(ValueError, match=r"targets in \[0, 1\], got values from 0 to 1.5"):
        bernoulli_nll(torch.zeros(1, 2), torch.tensor([[0.0, 1.5]]))
    with pytest.raises(ValueError, match=r"\[0, 1\], got values from nan"):
        bernoulli_nll(torch.zeros(1, 1), torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="unknown likelihood 'gauss', expected one of"):
        LikelihoodHead("gauss")
    with pytest.raises(ValueError, match="must be > 0, got 0"):
        LikelihoodHead("gaussian", scale=0.0)


# ---------------------------------------------------------------------- Gaussian posteriors


def test_kl_is_torchs_and_monte_carlos():
    mu, logvar = torch.randn(3, D), torch.randn(3, D)
    posterior, prior = Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)
    assert torch.allclose(kl_standard_normal(mu, logvar), kl_divergence(posterior, prior), atol=1e-6)
    z = posterior.sample((200_000,))
    estimate = (posterior.log_prob(z) - prior.log_prob(z)).mean(dim=0)
    assert torch.allclose(kl_standard_normal(mu, logvar), estimate, atol=0.03)
    assert (kl_standard_normal(torch.zeros(1, 2), torch.zeros(1, 2)) == 0).all()


def test_free_nats_stop_the_gradient_below_the_floor_and_only_there():
    mu = torch.tensor([[0.1, 0.1], [3.0, 2.0]], requires_grad=True)
    kl = kl_standard_normal(mu, torch.zeros(2, 2)).sum(dim=1)
    loss = free_nats(kl, floor=1.0)
    assert loss.item() == pytest.approx((1.0 + 6.5) / 2)
    loss.backward()
    assert (mu.grad[0] == 0).all()
    assert torch.allclose(mu.grad[1], mu.detach()[1] / 2)


def test_beta_scales_the_kl_alone():
    reconstruction, target = pixels()
    latent = gaussian()
    kl = kl_divergence(Normal(latent.mu, (0.5 * latent.logvar).exp()), Normal(0.0, 1.0)).sum().item() / B
    error = squared_error(reconstruction, target).item()
    for beta in (0.0, 0.5, 4.0):
        total, terms = VAELoss(beta)(reconstruction, target, latent)
        assert total.item() == pytest.approx(error + beta * kl, rel=1e-5)
        assert terms["kl"].item() == pytest.approx(kl, rel=1e-5)
    assert BetaHLoss(4.0)(reconstruction, target, latent).total.item() == pytest.approx(error + 4 * kl, rel=1e-5)


def test_a_likelihood_is_asked_for_its_density():
    logits, target, latent = torch.randn(B, 5), torch.rand(B, 5), gaussian()
    total = VAELoss()(Bernoulli(logits), target, latent).total
    assert total.item() == pytest.approx((bernoulli_nll(logits, target) + latent.kl().sum(1).mean()).item(), rel=1e-6)


def test_the_error_of_the_mean_joins_the_nats():
    logits, target, latent = torch.randn(B, 5), torch.rand(B, 5), gaussian()
    for reconstruction, mean in ((Bernoulli(logits), torch.sigmoid(logits)), (logits, logits)):
        nats, terms = VAELoss()(reconstruction, target, latent)
        total, more_terms = VAELoss(mean_weight=3.0)(reconstruction, target, latent)
        assert more_terms.keys() - terms.keys() == {"squared_error"}
        assert total.item() == pytest.approx((nats + 3.0 * squared_error(mean, target)).item(), rel=1e-6)


def test_warmup_and_capacity_over_the_steps():
    reconstruction, target = pixels()
    latent = gaussian(scale=2.0)
    error, kl = squared_error(reconstruction, target).item(), latent.kl().sum(1).mean().item()
    warm = VAELoss(beta=2.0, warmup_steps=100)
    for step, weight in ((0, 0.0), (50, 1.0), (100, 2.0), (1000, 2.0)):
        assert warm(reconstruction, target, latent, step=step).total.item() == pytest.approx(
            error + weight * kl, rel=1e-5
        )
    capacity = BetaBLoss(gamma=10.0, initial_capacity=1.0, final_capacity=5.0, capacity_steps=100)
    for step, nats in ((0, 1.0), (50, 3.0), (100, 5.0), (1000, 5.0)):
        total, terms = capacity(reconstruction, target, latent, step=step)
        assert total.item() == pytest.approx(error + 10.0 * abs(kl - nats), rel=1e-5)
        assert terms["kl"].item() == pytest.approx(kl, rel=1e-5)


def test_free_nats_are_of_a_samples_total():
    reconstruction, target = pixels(2)
    latent = GaussianLatent(
        torch.tensor([[1.0, 1.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]]), torch.zeros(2, 4)
    )  # 1, 4.5 nats
    error = squared_error(reconstruction, target).item()
    total, terms = VAELoss(beta=2.0, free_nats=2.0)(reconstruction, target, latent)
    assert terms["kl"].item() == pytest.approx((2.0 + 4.5) / 2)
    assert total.item() == pytest.approx(error + 2.0 * (2.0 + 4.5) / 2, rel=1e-5)


def test_schedules():
    assert [linear_schedule(step, 5.0, 1.0, 4) for step in (0, 1, 2, 4, 9)] == [5.0, 4.0, 3.0, 1.0, 1.0]
    assert linear_schedule(0, 0.0, 1.0, 0) == 1.0
    assert exponential_schedule(10_000, 1.0, 1e-5, 0.0) == pytest.approx(0.9048, abs=1e-4)
    assert exponential_schedule(100_000, 1.0, 1e-5, 0.0) == pytest.approx(0.3679, abs=1e-4)
    assert exponential_schedule(10**7, 1.0, 1e-5, 0.1) == 0.1
    with pytest.raises(ValueError, match="step -1"):
        linear_schedule(-1, 0.0, 1.0, 10)
    with pytest.raises(ValueError, match="got -1"):
        exponential_schedule(-1, 1.0, 1e-5, 0.0)


def test_active_units_are_those_that_vary():
    mu = torch.tensor([[0.0, 1.0, 0.05], [0.0, -1.0, -0.05]])
    assert active_units(mu).item() == 1


# ---------------------------------------------------------------------- total correlation


def naive_decomposition(z, mu, logvar, weights):
    """The estimators of arXiv 1802.04942 with loops, in float64; weights[i][j] of sample j for draw i."""
    z, mu, logvar, weights = (np.asarray(tensor, dtype=np.float64) for tensor in (z, mu, logvar, weights))

    def density(value, mean, log_variance):
        return np.exp(-0.5 * (value - mean) ** 2 / np.exp(log_variance)) / np.sqrt(2 * np.pi * np.exp(log_variance))

    batch, dims = z.shape
    information = correlation = dimension = 0.0
    for i in range(batch):
        posterior = np.prod([density(z[i, d], mu[i, d], logvar[i, d]) for d in range(dims)])
        prior = np.prod([density(z[i, d], 0.0, 0.0) for d in range(dims)])
        joint = sum(
            weights[i, j] * np.prod([density(z[i, d], mu[j, d], logvar[j, d]) for d in range(dims)])
            for j in range(batch)
        )
        marginals = np.prod(
            [sum(weights[i, j] * density(z[i, d], mu[j, d], logvar[j, d]) for j in range(batch)) for d in range(dims)]
        )
        information += np.log(posterior / joint) / batch
        correlation += np.log(joint / marginals) / batch
        dimension += np.log(marginals / prior) / batch
    return information, correlation, dimension


@pytest.mark.parametrize("estimator", ["mss", "mws"])
def test_decomposition_is_the_papers(estimator):
    latent = gaussian()
    z = draw(latent)
    weights = stratified_weights(B, N) if estimator == "mss" else torch.full((B, B), 1.0 / (N * B))
    assert list(decompose_kl(z, latent, N, estimator)) == pytest.approx(
        naive_decomposition(z, *latent, weights), rel=1e-5, abs=1e-5
    )


@pytest.mark.parametrize(("batch", "n_data"), [(2, 2), (5, 100), (8, 8), (64, 737_280)])
def test_stratified_weights(batch, n_data):
    weights = stratified_weights(batch, n_data).double()
    assert torch.allclose(weights.sum(dim=1), torch.ones(batch, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(weights.diagonal(), torch.full((batch,), 1.0 / n_data).double())
    others = batch - 1
    strata = torch.isclose(weights, torch.tensor((n_data - others) / (n_data * others)).double(), rtol=1e-5)
    strata.fill_diagonal_(False)
    assert (strata.sum(dim=1) >= 1).all()


def test_stratified_sampling_is_right_on_average():
    """Over minibatches, the estimate of q(z) is its exact value over the data set."""
    data = 12
    mu, logvar = torch.randn(data, 1), torch.zeros(data, 1)
    z = torch.tensor([[0.3]])
    exact = Normal(mu, 1.0).log_prob(z).exp().mean()
    generator = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(4000):
        own = torch.randint(data, (1,), generator=generator).item()
        others = torch.randperm(data, generator=generator)
        rows = [own, *[row.item() for row in others if row != own][:3]]
        densities = Normal(mu[rows], (0.5 * logvar[rows]).exp()).log_prob(z).exp().squeeze(1)
        estimates.append((stratified_weights(4, data)[0] * densities).sum())
    assert torch.stack(estimates).mean().item() == pytest.approx(exact.item(), rel=0.02)


def test_total_correlation_is_zero_for_independent_dimensions_and_not_for_dependent_ones():
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(2000, 2, generator=generator)
    narrow = torch.full((2000, 2), math.log(0.05))
    independent = GaussianLatent(spread, narrow)
    dependent = GaussianLatent(spread[:, :1].expand(-1, 2), narrow)
    correlation = [
        decompose_kl(latent.sample(generator), latent, 2000, "mss").total_correlation.item()
        for latent in (independent, dependent)
    ]
    assert abs(correlation[0]) < 0.1
    # two equal dimensions of variance 1 + 0.05: -½ log(1 - ρ²)
    assert correlation[1] == pytest.approx(-0.5 * math.log(1 - (1 / 1.05) ** 2), abs=0.15)


def test_btc_weighs_the_parts():
    reconstruction, target = pixels()
    latent = gaussian()
    z = draw(latent)
    parts = decompose_kl(z, latent, N, "mss")
    loss = BTCLoss(alpha=0.5, beta=6.0, gamma=2.0, warmup_steps=10)
    error = squared_error(reconstruction, target)
    expected = error + 0.5 * parts[0] + 6.0 * parts[1] + 2.0 * parts[2]
    assert loss(reconstruction, target, latent, z, step=10, n_data=N).total.item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    half = error + 0.5 * (expected - error)
    assert loss(reconstruction, target, latent, z, step=5, n_data=N).total.item() == pytest.approx(
        half.item(), rel=1e-5
    )
    different = loss(reconstruction, target, latent, z, step=10, n_data=10 * N).total
    assert different.item() != pytest.approx(expected.item(), rel=1e-3)


def test_btc_refuses_what_it_cannot_estimate():
    reconstruction, target = pixels()
    latent = gaussian()
    with pytest.raises(ValueError, match="needs n_data"):
        BTCLoss(6.0)(reconstruction, target, latent, draw(latent))
    with pytest.raises(ValueError, match="n_data 5 and a batch of 6"):
        BTCLoss(6.0)(reconstruction, target, latent, draw(latent), n_data=5)
    with pytest.raises(ValueError, match="batch of at least 2, got 1"):
        stratified_weights(1, 10)
    with pytest.raises(ValueError, match="pass z"):
        BTCLoss(6.0)(reconstruction, target, latent, n_data=N)
    with pytest.raises(ValueError, match="'mss' or 'mws', got 'msw'"):
        BTCLoss(6.0, estimator="msw")


# ---------------------------------------------------------------------- FactorVAE


def test_permutation_keeps_every_marginal_and_breaks_dependence():
    z = torch.randn(500, 1).expand(-1, 3).contiguous()
    permuted = permute_latents(z, torch.Generator().manual_seed(0))
    assert torch.equal(permuted.sort(dim=0).values, z.sort(dim=0).values)
    assert torch.corrcoef(permuted.T).fill_diagonal_(0).abs().max() < 0.15
    assert torch.equal(permuted, permute_latents(z, torch.Generator().manual_seed(0)))


def test_discriminator_loss_and_density_ratio_by_hand():
    joint, permuted = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    expected = 0.5 * (math.log(1 + math.exp(-2)) + 0.5 * (math.log(1 + math.exp(-1)) + math.log(2)))
    assert discriminator_loss(joint, permuted).item() == pytest.approx(expected, rel=1e-5)
    assert density_ratio(torch.tensor([[2.0, 0.5], [0.0, 1.0]])).item() == pytest.approx(0.25)


def test_the_density_ratio_of_a_trained_discriminator_is_the_total_correlation():
    """Two Gaussian dimensions of correlation ρ have a total correlation of -½ log(1 - ρ²)."""
    generator = torch.Generator().manual_seed(0)
    rho = 0.8

    def draws(count):
        first, second = torch.randn(2, count, generator=generator)
        return torch.stack([first, rho * first + math.sqrt(1 - rho**2) * second], dim=1)

    adversary = Adversary(Discriminator(2, hidden=64, layers=3), learning_rate=1e-3)
    for _ in range(1500):
        adversary.update(draws(256), generator)
    with torch.no_grad():
        estimate = density_ratio(adversary.discriminator(draws(20_000))).item()
    assert estimate == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.1)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_factor_handles_every_batch(batch):
    latent = gaussian(batch)
    reconstruction, target = pixels(batch)
    discriminator = Discriminator(D, 16, 3)
    loss, z = FactorLoss(discriminator, gamma=2.0), draw(latent)
    total, terms = loss(reconstruction, target, latent, z)
    expected = terms["reconstruction"] + terms["kl"] + 2.0 * density_ratio(discriminator(z))
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    metrics = Adversary(discriminator, 1e-4).update(z)
    assert math.isfinite(metrics["discriminator"])


def test_the_total_correlation_warms_up():
    latent = gaussian()
    reconstruction, target = pixels()
    loss, z = FactorLoss(Discriminator(D, 16, 3), gamma=4.0, warmup_steps=100), draw(latent)
    for step, weight in ((0, 0.0), (50, 2.0), (100, 4.0), (500, 4.0)):
        total, terms = loss(reconstruction, target, latent, z, step=step)
        expected = terms["reconstruction"] + terms["kl"] + weight * terms["total_correlation"]
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_adversary_is_the_papers_and_for_one_width():
    adversary = Adversary(Discriminator(D, 8, 3), learning_rate=3e-4)
    assert (adversary.optimizer.defaults["lr"], adversary.optimizer.defaults["betas"]) == (3e-4, (0.5, 0.9))
    latent = GaussianLatent(torch.zeros(B, 2), torch.zeros(B, 2))
    with pytest.raises(ValueError, match="for 4 dimensions, z has 2"):
        FactorLoss(adversary.discriminator, 1.0)(*pixels(), latent, latent.mode)


def test_neither_side_of_factor_trains_the_other():
    latent = gaussian()
    mu = latent.mu.requires_grad_()
    discriminator = Discriminator(D, 16, 3)
    reconstruction, target = pixels()
    z = GaussianLatent(mu, latent.logvar).sample(torch.Generator().manual_seed(0))
    FactorLoss(discriminator, 6.4)(reconstruction, target, latent, z).total.backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    gradient = mu.grad.clone()
    assert gradient.abs().sum() > 0
    Adversary(discriminator, 1e-4).update(z)
    assert torch.equal(mu.grad, gradient)


# ---------------------------------------------------------------------- codes


def test_logits_are_their_definition_on_any_grid():
    for variance in ((1, 1, 1, 1), (B, 1, 1, 1), (B, 1, 2, 3), (B, 3, 2, 3)):
        latent = codes()._replace(variance=torch.rand(variance) + 0.5)
        z, sigma2, book = latent.z.double(), latent.variance.double().expand(B, 3, 2, 3), latent.codebook.double()
        expected = torch.empty(B, 2, 3, 7, dtype=torch.float64)
        for code in range(7):
            distance = (z - book[code].reshape(1, 3, 1, 1)) ** 2 / (2 * sigma2)
            expected[..., code] = -distance.sum(dim=1)
        assert torch.allclose(latent.logits.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(latent.indices, expected.argmax(dim=-1))
        modes = latent.mode.reshape(B, 3, 2, 3).movedim(1, -1)
        assert torch.allclose(modes, latent.codebook[latent.indices], atol=1e-6)


def test_gumbel_draws_sharpen_with_the_temperature_and_have_the_codes_frequencies():
    latent = StochasticLatent(torch.zeros(4000, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([[0.2], [1.0], [-1.5]]))
    probabilities = torch.softmax(latent.logits[0, 0, 0], dim=0)
    sharp = latent.sample(torch.Generator().manual_seed(0), temperature=1e-3)
    frequencies = torch.stack([(sharp - code).abs() < 1e-3 for code in latent.codebook]).float().mean(dim=(1, 2))
    assert torch.allclose(frequencies, probabilities, atol=0.03)
    soft = latent.sample(torch.Generator().manual_seed(0), temperature=100.0)
    assert soft.std() < 0.05


def test_code_terms_by_hand():
    even, sure = torch.zeros(1, 2, 2, 4), torch.tensor([100.0, 0.0, 0.0, 0.0]).expand(1, 2, 2, 4)
    assert code_kl(even).item() == pytest.approx(0.0, abs=1e-6)
    assert code_kl(sure).item() == pytest.approx(4 * math.log(4), rel=1e-5)
    assert perplexity(torch.tensor([[0, 1], [2, 3]]), 4).item() == pytest.approx(4.0)
    assert perplexity(torch.tensor([2, 2, 2]), 4).item() == pytest.approx(1.0)
    assert perplexity(torch.tensor([0, 0, 1, 1]), 512).item() == pytest.approx(2.0)
    latent = StochasticLatent(torch.ones(2, 1, 1, 2), torch.tensor([2.0]).reshape(1, 1, 1, 1), torch.zeros(3, 1))
    assert quantization_error(latent, torch.zeros(2, 2)).item() == pytest.approx(2 * 1 / 4)
    grid = QuantizedLatent(torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 1, 1, requires_grad=True), torch.zeros(2, 1, 1))
    assert commitment(grid).item() == pytest.approx(3.0)


def test_code_kl_is_a_kl_of_categoricals():
    logits = torch.randn(B, 2, 3, 7)
    uniform = torch.distributions.Categorical(logits=torch.zeros(7))
    expected = kl_divergence(torch.distributions.Categorical(logits=logits), uniform).sum() / B
    assert code_kl(logits).item() == pytest.approx(expected.item(), rel=1e-5)


def test_sq_is_the_papers_bound():
    """The bound of arXiv 2205.07547 with loops: reconstruction + Σ p log p K + ‖z - z_q‖² / 2σ²."""
    latent = codes()
    reconstruction, target = pixels()
    z = latent.sample(torch.Generator().manual_seed(0), temperature=0.7)
    probabilities = torch.softmax(latent.logits.double(), dim=-1)
    entropy = sum(float(p) * math.log(float(p) * 7) for p in probabilities.flatten() if p > 0)
    error = ((latent.z - z.reshape(latent.z.shape)).double() ** 2 / (2 * latent.variance.double())).sum().item()
    expected = squared_error(reconstruction, target).item() + 0.5 * (entropy + error) / B
    assert SQLoss(7, beta=0.5)(reconstruction, target, latent, z).total.item() == pytest.approx(expected, rel=1e-5)


def test_commitment_pulls_the_encoder_alone():
    latent = quantized()
    z, vectors = latent.z.requires_grad_(), latent.quantized.requires_grad_()
    reconstruction, target = pixels()
    total, terms = VQLoss(7, commitment_weight=0.25)(reconstruction, target, latent)
    assert total.item() == pytest.approx(
        (squared_error(reconstruction, target) + 0.25 * (z - vectors).square().sum() / B).item(), rel=1e-5
    )
    total.backward()
    assert vectors.grad is None and z.grad.abs().sum() > 0
    assert 1.0 <= terms["perplexity"].item() <= 7.0


# ---------------------------------------------------------------------- what they refuse


def test_names_and_shapes_are_checked():
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="same names"):
        weigh({"a": one}, {"b": 1.0})
    with pytest.raises(ValueError, match="scalars"):
        weigh({"a": torch.ones(2)}, {"a": 1.0})
    with pytest.raises(ValueError, match=r"\(2, 1\) and target \(2, 2\)"):
        squared_error(torch.ones(2, 1), torch.ones(2, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: VAELoss(beta=-0.5),
        lambda: VAELoss(free_nats=-0.5),
        lambda: VAELoss(mean_weight=-0.5),
        lambda: BetaBLoss(-0.5, 0.0, 25.0, 10),
        lambda: BTCLoss(beta=-0.5),
        lambda: FactorLoss(Discriminator(2, 4, 2), gamma=-0.5),
        lambda: SQLoss(4, beta=-0.5),
        lambda: VQLoss(4, commitment_weight=-0.5),
        lambda: RAELoss(latent_weight=-0.5),
    ],
)
def test_negative_weights_are_refused(make):
    with pytest.raises(ValueError, match=r"must be ≥ 0 and finite, got -0.5"):
        make()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (VAELoss(), r"GaussianLatent\(mu, logvar\), got a DeterministicLatent"),
        (SQLoss(4), "StochasticLatent, got a DeterministicLatent"),
        (VQLoss(4, 0.25), "QuantizedLatent, got a DeterministicLatent"),
    ],
)
def test_the_wrong_kind_of_latent_is_refused(loss, message):
    with pytest.raises(TypeError, match=message):
        loss(*pixels(), DeterministicLatent(torch.zeros(B, D)))
    with pytest.raises(TypeError, match=r"wrap it, DeterministicLatent\(z\)"):
        RAELoss()(*pixels(), torch.zeros(B, D))
