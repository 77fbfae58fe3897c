"""The hierarchical autoencoder: its groups, their KL, its loss, its likelihood, and its place in an agent."""

import math

import numpy as np
import pytest
import torch
from conftest import DotEnv
from stable_baselines3 import SAC
from test_variants import squares

from rl_ae import HierarchicalConfig, create_autoencoder, create_learner
from rl_ae.analysis import plot_samples
from rl_ae.autoencoders.hierarchical import ResidualCell
from rl_ae.latents import Descent, GaussianLatent, HierarchicalLatent, ResidualGaussian, split_groups
from rl_ae.losses import HierarchicalLoss, balance_weights, psnr
from rl_ae.sb3 import SACAE, AutoencoderExtractor, AuxiliaryLossCallback
from rl_ae.sb3.export import OnnxPolicy, export_onnx

TINY = HierarchicalConfig(base_channels=8, halvings=2, groups=(1, 1), latent_channels=2, warmup_steps=100)
SHAPE = (1, 8, 8)


def build(shape=SHAPE, **fields):
    torch.manual_seed(0)
    return create_autoencoder(HierarchicalConfig(**{**vars(TINY), **fields}), shape)


def lively(autoencoder, posteriors=4.0):
    """The autoencoder with priors that depend on what is above them, and posteriors on the image, as after training."""
    with torch.no_grad():
        for prior in autoencoder.groups.priors:
            prior.layers[1].weight.mul_(4.0)
        for posterior in autoencoder.groups.posteriors:
            posterior.layers[1].weight.mul_(posteriors)
    return autoencoder


def random_group(*shape, generator=None):
    return ResidualGaussian(*(0.5 * torch.randn(4, *shape, generator=generator)))


# ---------------------------------------------------------------------- a group


def test_the_kl_is_that_of_two_normals():
    group = random_group(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    posterior = torch.distributions.Normal(group.mean, (group.log_sigma + group.delta_log_sigma).exp())
    prior = torch.distributions.Normal(group.mu, group.log_sigma.exp())
    assert torch.allclose(group.kl(), torch.distributions.kl_divergence(posterior, prior), atol=1e-5)
    z = torch.randn(6, 2, 3, 3)
    assert torch.allclose(group.log_prior(z), prior.log_prob(z), atol=1e-5)
    assert torch.allclose(group.log_posterior(z), posterior.log_prob(z), rtol=1e-4)

    one = ResidualGaussian(*(tensor[:1, :1, :1, :1].expand(200_000, 1, 1, 1) for tensor in group))
    z = one.sample(torch.Generator().manual_seed(1))
    ratio = one.log_posterior(z) - one.log_prior(z)
    assert ratio.mean().item() == pytest.approx(one.kl()[0].item(), abs=5.0 * ratio.std().item() / math.sqrt(len(z)))


def test_the_posterior_follows_its_prior():
    group = random_group(1, 2, 1, 1)
    moved = group._replace(mu=group.mu + 3.0, log_sigma=group.log_sigma + 1.0)
    one, other = (each.sample(torch.Generator().manual_seed(0)) for each in (group, moved))
    assert torch.allclose(moved.mean, group.mean + 3.0)
    assert torch.allclose(other - moved.mean, math.e * (one - group.mean))
    assert torch.allclose(group._replace(mu=group.mu + 3.0).kl(), group.kl())
    same = group._replace(delta_mu=torch.zeros(1, 2, 1, 1), delta_log_sigma=torch.zeros(1, 2, 1, 1))
    assert torch.equal(same.kl(), torch.zeros(1, 2, 1, 1))


def test_parameters_are_bounded_and_never_cut_off():
    parameters = build().groups.posteriors[0]
    far = 1e3 * torch.randn(3, 32, 1, 1)
    assert all(each.abs().max() <= 5.0 for each in parameters(far))
    near = 0.1 * torch.randn(3, 32, 1, 1)
    mu, log_sigma = parameters.layers(near).chunk(2, dim=1)
    assert torch.allclose(parameters(near)[0], mu, atol=1e-3) and torch.allclose(
        parameters(near)[1], log_sigma, atol=1e-3
    )


# ---------------------------------------------------------------------- the way down


def test_the_latent_has_all_groups_coarsest_first():
    torch.manual_seed(0)
    autoencoder = create_autoencoder(HierarchicalConfig(base_channels=8), (3, 21, 40))
    assert autoencoder.groups.shapes == [(4, 1, 2)] * 2 + [(4, 2, 3)] * 2 + [(4, 3, 5)]
    assert autoencoder.latent_dim == 124
    latent = autoencoder.encode(torch.rand(2, 3, 21, 40))
    assert [tuple(features.shape) for features in latent.features] == [(2, 16, 1, 2), (2, 16, 2, 3), (2, 16, 3, 5)]
    parts = [group.mean.flatten(1) for group in latent.groups()]
    assert torch.equal(torch.cat(parts, dim=1), latent.mode)
    joined = torch.cat([part.flatten(1) for part in split_groups(latent.mode, autoencoder.groups.shapes)], dim=1)
    assert torch.equal(joined, latent.mode)


def test_a_draw_comes_from_the_posteriors_on_its_own_way():
    """The noise that leads from each group's mean to its draw is the generator's, also for the groups below."""
    autoencoder = lively(build())
    images = torch.rand(3, *SHAPE)
    z = autoencoder.encode(images).sample(torch.Generator().manual_seed(5))
    again = autoencoder.encode(images)  # which has not made the draw
    generator = torch.Generator().manual_seed(5)
    parts = split_groups(z, autoencoder.groups.shapes)
    for group, part in zip(again.groups(z), parts, strict=True):
        noise = torch.randn(part.shape, generator=generator)
        sigma = (group.log_sigma + group.delta_log_sigma).exp()
        assert torch.allclose(part, group.mean + sigma * noise, atol=1e-5)
    first, second = again.groups(z)
    assert torch.equal(first.mu, torch.zeros_like(first.mu))
    assert torch.equal(first.log_sigma, torch.zeros_like(first.mu))
    assert second.mu.abs().mean() > 0.01


def test_the_kl_belongs_to_the_draw():
    autoencoder = lively(build())
    images = torch.rand(3, *SHAPE)
    latent = autoencoder.encode(images)
    draws = [latent.sample(), latent.sample()]
    kls = [latent.kl(z) for z in draws]
    for z, kl in zip(draws, kls, strict=True):
        assert torch.allclose(autoencoder.encode(images).kl(z), kl, rtol=1e-5)
    assert torch.equal(kls[0][:, 0], kls[1][:, 0])  # nothing is drawn above it
    assert not torch.isclose(kls[0][:, 1], kls[1][:, 1]).any()
    assert torch.allclose(latent.kl(), autoencoder.encode(images).kl(latent.mode))


def test_the_groups_kls_add_up_to_that_of_the_whole_posterior():
    autoencoder = lively(build())
    with torch.no_grad():
        latent = autoencoder.encode(torch.rand(1, *SHAPE).expand(4_000, *SHAPE))
        z = latent.sample(torch.Generator().manual_seed(0))
        difference = latent.kl(z).sum(dim=1) + latent.log_ratio(z)
        assert latent.kl(z).sum(dim=1).mean() > 0.5
    assert difference.mean().abs() < 5.0 * difference.std() / math.sqrt(4_000)


def test_the_kl_reaches_priors_posteriors_and_trunk():
    autoencoder = build()
    latent = autoencoder.encode(torch.rand(2, *SHAPE))
    latent.kl(latent.sample())[:, 1].sum().backward()
    groups = autoencoder.groups
    # the first group's posterior, too: its draw is what the second's distributions are made from
    for module in (groups.priors[0], *groups.posteriors, groups.steps[0], autoencoder.encoder.trunk):
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    assert all(parameter.grad is None for parameter in autoencoder.decoder.parameters())


def test_no_way_is_gone_twice_without_need():
    autoencoder = build()
    ways = []
    autoencoder.groups.register_forward_hook(lambda *_: ways.append(1))
    latent = autoencoder.encode(torch.rand(2, *SHAPE))
    assert ways == []
    assert latent.mode is latent.mode and len(ways) == 1
    z = latent.sample()
    latent.kl(z)
    latent.kl()
    assert len(ways) == 2
    latent.kl(z.clone())
    assert len(ways) == 3

    latent = autoencoder.encode(torch.rand(2, *SHAPE))
    with torch.no_grad():
        assert not latent.mode.requires_grad
    assert latent.mode.requires_grad  # and not what was computed without a graph


def test_without_an_image_the_posterior_is_the_prior():
    autoencoder = lively(build())
    ways = {
        temperature: autoencoder.groups.prior(
            3, lambda _, group, t=temperature: group.sample(torch.Generator().manual_seed(1), t)
        )
        for temperature in (0.0, 1.0, 2.0)
    }
    assert all(group.kl().abs().sum() == 0 for group in ways[1.0].groups)
    first = {temperature: split_groups(way.z, autoencoder.groups.shapes)[0] for temperature, way in ways.items()}
    assert torch.equal(first[2.0], 2.0 * first[1.0]) and not first[0.0].any()
    assert not torch.isclose(ways[2.0].groups[1].mu, ways[1.0].groups[1].mu).any()


def test_samples_are_decoded_draws_of_the_prior():
    autoencoder = build()
    images = autoencoder.sample(3, temperature=0.5, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    way = autoencoder.groups.prior(3, lambda _, group: group.sample(generator, 0.5))
    assert torch.equal(images, autoencoder.decode(way.z)) and not images.requires_grad
    typical = autoencoder.sample(2, temperature=0.0)
    assert torch.allclose(typical[0], typical[1], atol=1e-6) and not torch.allclose(images[0], images[1], atol=1e-4)
    assert len(plot_samples(autoencoder, 2).axes[0].images) == 2


# ---------------------------------------------------------------------- log p(x)


def test_log_likelihood_is_the_integral_over_both_groups():
    """Two groups of one number each: a grid over both knows log p(x), importance sampling finds it."""
    autoencoder = lively(build(halvings=3, latent_channels=1, likelihood="gaussian", scale=0.3), posteriors=1.0)
    image = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    axis = torch.linspace(-6.0, 6.0, 81)
    z = torch.cartesian_prod(axis, axis)
    parts = iter(split_groups(z, autoencoder.groups.shapes))
    with torch.no_grad():
        way = autoencoder.groups.prior(len(z), lambda _, group: next(parts))
        chosen = split_groups(z, autoencoder.groups.shapes)
        log_prior = sum(group.log_prior(part).flatten() for group, part in zip(way.groups, chosen, strict=True))
        joint = log_prior + autoencoder.likelihood(z).log_prob(image.expand(len(z), *SHAPE))
    exact = torch.logsumexp(joint, dim=0).item() + 2.0 * math.log(12.0 / 80)
    assert torch.logsumexp(log_prior, dim=0).item() + 2.0 * math.log(12.0 / 80) == pytest.approx(0.0, abs=0.02)

    many = image.expand(300, *SHAPE)
    generator = torch.Generator().manual_seed(1)
    estimates = autoencoder.log_likelihood(many, samples=20, generator=generator)
    assert not estimates.requires_grad
    average = torch.logsumexp(estimates, dim=0).item() - math.log(300)  # as of 6,000 samples
    assert average == pytest.approx(exact, abs=0.1)
    bounds = [autoencoder.log_likelihood(many, samples, generator).mean().item() for samples in (1, 5)]
    assert bounds[0] < bounds[1] < exact


# ---------------------------------------------------------------------- the loss


class Given:
    """A way down on which every group is what it was given to be."""

    shapes = ((1, 1, 1), (1, 2, 2), (1, 2, 2))

    def __init__(self, *means):
        self.means = means

    def __call__(self, features, choose):
        groups = []
        for mean, shape in zip(self.means, self.shapes, strict=True):
            zeros = torch.zeros(len(mean), *shape)
            groups.append(ResidualGaussian(zeros, zeros, mean[:, None, None, None].expand_as(zeros), zeros))
        return Descent(torch.cat([choose(i, g).flatten(1) for i, g in enumerate(groups)], dim=1), tuple(groups))


def test_the_loss_by_hand():
    """KLs are ½ Σ μ²: (2, 0) in the first group, 4 and 0.02 in the others."""
    latent = HierarchicalLatent((), Given(torch.tensor([2.0, 0.0]), torch.full((2,), 2**0.5), torch.full((2,), 0.1)))
    x = torch.zeros(2, 1, 8, 8)
    assert torch.allclose(latent.kl(), torch.tensor([[2.0, 4.0, 0.02], [0.0, 4.0, 0.02]]))

    breakdown = HierarchicalLoss((1, 2), beta=0.5)(x + 0.5, x, latent, latent.mode)
    values = {name: term.item() for name, term in breakdown.terms.items()}
    expected = {"reconstruction": 16.0, "weighed_kl": 5.02, "kl": 5.02, "kl_1": 1.0, "kl_2": 4.0, "kl_3": 0.02}
    assert values == pytest.approx({**expected, "active_groups": 2.0})
    assert breakdown.total.item() == pytest.approx(16.0 + 0.5 * 5.02)

    # shares 1 : 2 : 2, of the scale with four times the positions and two groups
    raw = torch.tensor([1.01 / 1.0, 4.01 / 2.0, 0.03 / 2.0])
    gamma = raw / raw.mean()
    balanced = (gamma * torch.tensor([1.0, 4.0, 0.02])).sum().item()
    loss = HierarchicalLoss((1, 2), beta=0.5, warmup_steps=100)
    for step, share in ((0, 1e-4), (50, 0.50005)):
        breakdown = loss(x, x, latent, latent.mode, step=step)
        assert breakdown.terms["weighed_kl"].item() == pytest.approx(balanced)
        assert breakdown.total.item() == pytest.approx(0.5 * share * balanced)
    assert loss(x, x, latent, latent.mode, step=100).total.item() == pytest.approx(0.5 * 5.02)

    free = HierarchicalLoss((1, 2), free_nats=1.5)(x, x, latent, latent.mode).terms
    assert free["weighed_kl"].item() == pytest.approx((2.0 + 1.5) / 2 + 4.0 + 1.5)
    assert free["kl"].item() == pytest.approx(5.02)


def test_balance_weights_have_mean_1_and_no_gradient():
    kl = (10.0 * torch.rand(5, 5)).requires_grad_()
    weights = balance_weights(kl, (2, 2, 1))
    assert not weights.requires_grad
    assert weights.mean().item() == pytest.approx(1.0)
    even = balance_weights(torch.tensor([[1.0, 1.0, 4.0, 4.0, 32.0]]) - 0.01, (2, 2, 1))
    assert torch.allclose(even, torch.ones(5))
    with pytest.raises(ValueError, match=r"KL \(B, 5\) of groups \(2, 2, 1\), got \(5, 4\)"):
        balance_weights(kl[:, :4], (2, 2, 1))


def test_free_nats_stop_the_gradient_of_the_groups_below_them():
    means = [torch.tensor([value, value]).requires_grad_() for value in (2.0, 1.0, 0.1)]
    latent = HierarchicalLatent((), Given(*means))
    x = torch.zeros(2, 1, 8, 8)
    HierarchicalLoss((1, 2), free_nats=1.0, warmup_steps=10)(x, x, latent, latent.mode, step=5).total.backward()
    gradients = [mean.grad.abs().sum().item() for mean in means]
    assert gradients[0] > 0 and gradients[1] > 0 and gradients[2] == 0.0


def test_the_loss_charges_the_way_of_the_draw():
    autoencoder = lively(build())
    images = torch.rand(2, *SHAPE)
    latent = autoencoder.encode(images)
    loss, z = HierarchicalLoss(TINY.groups), latent.sample()
    terms = loss(autoencoder.likelihood(z), images, latent, z).terms
    assert terms["kl"].item() == pytest.approx(autoencoder.encode(images).kl(z).sum(dim=1).mean().item(), rel=1e-5)
    assert loss(autoencoder.decode(z), images, latent).terms["kl"] != terms["kl"]


# ---------------------------------------------------------------------- trained


@pytest.mark.parametrize("step", [0, 10])
def test_duplicating_the_batch_changes_no_loss_and_bf16_is_finite(step):
    autoencoder, loss = lively(build()), HierarchicalLoss((1, 1), free_nats=0.1, warmup_steps=10)
    images = squares(3, 0)[:, :, :8, :8]
    z = autoencoder.encode(images).sample(torch.Generator().manual_seed(0))

    def evaluate(images, z):
        reconstruction = autoencoder.decode(z)
        return loss(reconstruction, images, autoencoder.encode(images), z, step=step)

    once, twice = evaluate(images, z), evaluate(torch.cat([images, images]), torch.cat([z, z]))
    assert twice.total.item() == pytest.approx(once.total.item(), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = evaluate(images, z)
    rounded.total.backward()
    assert all(torch.isfinite(term) for term in (rounded.total, *rounded.terms.values()))
    assert all(torch.isfinite(p.grad).all() for p in autoencoder.parameters() if p.grad is not None)
    assert rounded.total.item() == pytest.approx(once.total.item(), rel=0.05)


def test_it_learns_with_more_than_one_active_group():
    torch.manual_seed(0)
    config = HierarchicalConfig(**{**vars(TINY), "latent_channels": 4, "warmup_steps": 60})
    learner = create_learner(config, (1, 16, 16))
    for step in range(160):
        learner.update(squares(16, step))
    held_out = squares(64, 999)
    metrics = learner.evaluate(held_out)
    error = (learner.autoencoder.reconstruct(held_out) - held_out).square().mean()
    assert metrics["active_groups"] == 2
    assert psnr(error) > 18.0  # the mean image has 12
    assert metrics["kl"].item() == pytest.approx(metrics["kl_1"].item() + metrics["kl_2"].item())


@pytest.mark.filterwarnings("default")  # torch warns itself, while it traces
def test_compiled_it_is_the_same():
    autoencoder = build().eval()
    images = torch.rand(2, *SHAPE)
    with torch.no_grad():
        expected = autoencoder(images).reconstruction
        assert torch.allclose(torch.compile(autoencoder, backend="eager")(images).reconstruction, expected, atol=1e-6)
        latent = torch.compile(autoencoder.encoder, backend="eager")(images)
        assert torch.allclose(autoencoder.decode(latent.mode), expected, atol=1e-6)


def test_a_stock_agent_trains_it():
    kwargs = {"features_extractor_class": AutoencoderExtractor, "features_extractor_kwargs": {"autoencoder": TINY}}
    agent = SAC(
        *("CnnPolicy", DotEnv((1, 12, 12))),
        policy_kwargs={**kwargs, "net_arch": [8]},
        buffer_size=50,
        batch_size=4,
        learning_starts=10,
        seed=0,
    )
    encoder = agent.critic.features_extractor.encoder
    assert agent.critic.features_extractor.features_dim == encoder.latent_dim == 2 * 2 * 2 + 2 * 3 * 3
    before = [parameter.clone() for parameter in encoder.parameters()]
    callback = AuxiliaryLossCallback()
    agent.learn(14, callback=callback)
    assert all(not torch.equal(old, new) for old, new in zip(before, encoder.parameters(), strict=True))


def test_a_policy_of_its_latent_is_exported(tmp_path):
    agent = SACAE(
        *("CnnPolicy", DotEnv((1, 12, 12))),
        autoencoder=TINY,
        policy_kwargs={"net_arch": [8], "actor_input": "latent"},
        buffer_size=5,
        seed=0,
    )
    policy = OnnxPolicy(export_onnx(agent, tmp_path / "policy.onnx"))
    frames = np.random.default_rng(0).integers(0, 256, (3, 1, 12, 12), dtype=np.uint8)
    assert np.allclose(policy.predict(frames)[0], agent.predict(frames, deterministic=True)[0], atol=1e-4)


@pytest.mark.parametrize("update", ["paper", "fused"])
def test_an_agents_critic_may_read_samples(update):
    agent = SACAE(
        *("CnnPolicy", DotEnv((1, 12, 12))),
        autoencoder=TINY,
        update=update,
        policy_kwargs={"net_arch": [8], "critic_latent": "sample"},
        buffer_size=50,
        batch_size=4,
        learning_starts=10,
        catch_up_updates=0,
        seed=0,
    )
    decoder = [parameter.clone() for parameter in agent.policy.autoencoder.decoder.parameters()]
    agent.learn(13)
    assert agent.learner.step == 3
    now = agent.policy.autoencoder.decoder.parameters()
    assert all(not torch.equal(old, new) for old, new in zip(decoder, now, strict=True))


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": ()}, r"groups must be counts ≥ 1, one a grid, at least one; got \(\)"),
        ({"groups": (1, 0)}, r"got \(1, 0\)"),
        ({"base_channels": 7}, "base_channels must be ≥ 8, got 7"),
        ({"halvings": 0}, "halvings must be > 0 and finite, got 0"),
        ({"latent_channels": 1.5}, "latent_channels must be a whole number, got 1.5"),
        ({"free_nats": -1.0}, "free_nats must be ≥ 0"),
        ({"likelihood": "poisson"}, "unknown likelihood 'poisson', expected one of"),
    ],
)
def test_impossible_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalConfig(**fields)


def test_bad_arguments_are_refused():
    autoencoder = build()
    images = torch.rand(2, *SHAPE)
    with pytest.raises(ValueError, match=r"latents \(B, 10\) of groups \[\(2, 1, 1\), \(2, 2, 2\)\], got \(2, 9\)"):
        autoencoder.decode(torch.zeros(2, 9))
    with pytest.raises(ValueError, match=r"latents \(B, 10\) .* got \(2, 11\)"):
        autoencoder.encode(images).kl(torch.zeros(2, 11))
    for arguments, message in (((0,), "num_samples must be ≥ 1, got 0"), ((1, -1.0), "temperature must be ≥ 0")):
        with pytest.raises(ValueError, match=message):
            autoencoder.sample(*arguments)
    with pytest.raises(ValueError, match="samples must be ≥ 1, got 0"):
        autoencoder.log_likelihood(images, samples=0)
    with pytest.raises(ValueError, match=r"HierarchicalVAE takes a shape \(C, H, W\) of images, got \(12,\)"):
        create_autoencoder("hierarchical", (12,))
    with pytest.raises(TypeError, match="needs a HierarchicalLatent, got a GaussianLatent"):
        HierarchicalLoss((1,))(images, images, GaussianLatent(torch.zeros(2, 1), torch.zeros(2, 1)))
    for groups, beta, message in (((), 1.0, r"at least one; got \(\)"), ((1,), -1.0, "beta must be ≥ 0")):
        with pytest.raises(ValueError, match=message):
            HierarchicalLoss(groups, beta)


def test_a_cell_adds_a_tenth_of_what_its_layers_say():
    cell, maps = ResidualCell(8), torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(cell(maps), maps + 0.1 * cell.layers(maps))
