"""The flow decoder: inverses, determinants, densities and what they are conditional on."""

import copy
import dataclasses
import math

import pytest
import torch

from rl_ae import FlowConfig, create_autoencoder, create_learner
from rl_ae.autoencoders.flow import ChannelMix, ConditionalFlow, Coupling
from rl_ae.configs import ConvConfig
from rl_ae.diagnostics import bits_per_dimension, describe_autoencoder, level_log_prob
from rl_ae.likelihoods import Gaussian
from rl_ae.losses import psnr

SMALL = FlowConfig(
    latent_dim=4,
    conv=ConvConfig(filters=(8, 16), kernel_size=4, strides=(2, 2), padding=1),
    couplings=2,
    condition_maps=4,
    density_filters=8,
    encoder_learning_rate=3e-3,
    decoder_learning_rate=3e-3,
)


def random_flow(shape, couplings=3, dtype=torch.float64, seed=0, strength=0.1):
    """A flow whose couplings and mixes do something, unlike at their start, and maps for two images."""
    torch.manual_seed(seed)
    flow = ConditionalFlow(shape, condition_maps=2, couplings=couplings, filters=4).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(strength * torch.randn_like(parameter))
    return flow, 0.5 * torch.randn(2, 2 * shape[0] + 2, *shape[1:], dtype=dtype)


def quadrants(count, seed):
    """Images (1, 8, 8) of four grey levels, the factors there are."""
    levels = torch.randint(256, (count, 1, 2, 2), generator=torch.Generator().manual_seed(seed))
    return (levels / 255.0).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


# ---------------------------------------------------------------------- invertible


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11), (9, 13, 8)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_what_becomes_noise_comes_back(shape, dtype, tolerance):
    flow, maps = random_flow(shape, dtype=dtype)
    images = torch.rand(2, *shape, dtype=dtype)
    noise, _ = flow.to_noise(images, maps)
    assert (noise - images).abs().max() > 0.1
    assert (flow.to_image(noise, maps) - images).abs().max() < tolerance
    assert (flow.to_noise(flow.to_image(images, maps), maps)[0] - images).abs().max() < 10.0 * tolerance


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 2, 3), (2, 3, 3)], ids=str)
def test_the_log_determinant_is_the_jacobians(shape):
    flow, maps = random_flow(shape)
    images = torch.rand(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.to_noise(x, maps[:1])[0], images)
    elements = math.prod(shape)
    expected = torch.linalg.slogdet(jacobian.reshape(elements, elements)).logabsdet
    assert flow.to_noise(images, maps[:1])[1].item() == pytest.approx(expected.item(), abs=1e-10)


def test_a_coupling_leaves_what_it_reads_and_neighbours_leave_opposites():
    flow, maps = random_flow((3, 5, 7), couplings=2)
    (_, first, mask), (_, _, opposite) = flow._steps()
    values = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    coupled, _ = first(values, maps[:, 6:], mask)
    assert torch.equal(coupled != values, (mask == 0.0).expand_as(values))
    assert torch.equal(mask + opposite, torch.ones_like(mask))
    assert torch.equal(mask[0, 0], torch.tensor([0.0, 1.0] * 3 + [0.0], dtype=torch.float64))
    assert torch.equal(mask[1], 1.0 - mask[0])


def test_mixing_channels_is_a_linear_map_that_starts_as_the_identity():
    mix = ChannelMix(4)
    values = torch.randn(2, 4, 3, 5)
    mixed, log_determinant = mix(values)
    assert torch.allclose(mixed, values) and log_determinant.item() == 0.0
    with torch.no_grad():
        for parameter in mix.parameters():
            parameter.normal_()
    matrix = torch.stack([mix(unit[None, :, None, None])[0][0, :, 0, 0] for unit in torch.eye(4)], dim=1)
    matrix = matrix - mix.bias[:, None]
    assert mix(values)[1].item() == pytest.approx(15.0 * torch.linalg.slogdet(matrix).logabsdet.item(), rel=1e-4)
    assert not torch.allclose(matrix, matrix.triu()) and not torch.allclose(matrix, matrix.tril())


# ---------------------------------------------------------------------- a density


def test_the_density_integrates_to_one():
    """Two pixels that depend on each other, over a square that holds all but nothing of it."""
    flow, maps = random_flow((1, 1, 2), couplings=2, seed=3, strength=0.4)
    line = torch.linspace(-7.0, 8.0, 181, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line).reshape(-1, 1, 1, 2)
    with torch.no_grad():
        density = flow(maps[:1].expand(len(grid), -1, -1, -1)).log_prob(grid).exp()
    cell = (line[1] - line[0]) ** 2
    assert (density.sum() * cell).item() == pytest.approx(1.0, abs=1e-3)
    first, second = density.reshape(181, 181).sum(dim=0), density.reshape(181, 181).sum(dim=1)
    independent = torch.outer(second, first) / density.sum()
    assert (density.reshape(181, 181) - independent).abs().sum() / density.sum() > 0.05


def test_without_couplings_it_is_a_gaussian():
    """And with new ones, which start as identities."""
    for couplings in (0, 3):
        torch.manual_seed(0)
        flow = ConditionalFlow((3, 8, 9), condition_maps=2, couplings=couplings, filters=4)
        maps, images = torch.randn(2, 8, 8, 9), torch.rand(2, 3, 8, 9)
        sigma = (8.0 * torch.tanh(maps[:, 3:6] / 8.0)).exp()
        expected = torch.distributions.Normal(0.5 + maps[:, :3], sigma).log_prob(images).sum(dim=(1, 2, 3))
        assert torch.allclose(flow(maps).log_prob(images), expected, rtol=1e-5)
        assert torch.allclose(flow(maps).mean, 0.5 + maps[:, :3])
        likelihood = flow(maps[:1].expand(2000, -1, -1, -1))
        draws = likelihood.sample(torch.Generator().manual_seed(0))
        assert torch.allclose(draws.std(dim=0), sigma[0], rtol=0.1)
        cold = likelihood.sample(torch.Generator().manual_seed(0), temperature=0.5)
        assert torch.allclose(cold - likelihood.mean, 0.5 * (draws - likelihood.mean), atol=1e-4)


def test_the_mean_is_what_the_loss_compares_with_the_image():
    flow, maps = random_flow((3, 8, 9), seed=0)
    assert torch.allclose(flow(maps).mean, 0.5 + maps[:, :3])
    learner = create_learner(dataclasses.replace(SMALL, mean_weight=50.0, per_element=False), (1, 8, 8))
    images = quadrants(4, seed=0)
    evaluated = learner.losses(images, target=images)
    likelihood = learner.autoencoder.likelihood(evaluated.z)
    error = (likelihood.mean - images).square().sum() / 4
    expected = 50.0 * error - likelihood.log_prob(images).mean() + evaluated.latent.kl().sum(dim=1).mean()
    assert evaluated.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_draws_have_the_density_that_they_are_given():
    """The mean of the log-density over draws is minus the entropy: of the noise's, less what the map stretches."""
    flow, maps = random_flow((1, 2, 3), seed=1)
    likelihood = flow(maps[:1].expand(20_000, -1, -1, -1))
    with torch.no_grad():
        images = likelihood.sample(torch.Generator().manual_seed(0))
        noise, log_determinant = flow.to_noise(images, likelihood.maps)
        log_density = likelihood.log_prob(images)
    of_noise = -3.0 * math.log(2.0 * math.pi * math.e)
    assert (log_density - log_determinant).mean().item() == pytest.approx(of_noise, abs=0.05)
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)


def test_bits_per_dimension_are_those_of_the_levels():
    class Uniform:
        """Every image is as likely: as many bits as a level has."""

        def log_prob(self, target):
            assert target.min() >= 0.0 and target.max() < 1.0
            return torch.zeros(len(target))

    frames = torch.randint(256, (4, 3, 8, 9)) / 255.0
    for bits in (1, 5, 8):
        bound = level_log_prob(Uniform(), frames, bits)
        assert torch.allclose(bits_per_dimension(-bound, (3, 8, 9)), torch.tensor(float(bits)))


def test_the_bound_on_a_levels_probability_is_one_and_tight_for_a_smooth_density():
    frames = torch.randint(100, 156, (1, 1, 8, 8)) / 255.0
    for sigma, slack in ((0.1, 2e-4), (0.003, 0.5)):
        density = Gaussian(torch.full((400, 1, 8, 8), 0.5), torch.tensor(sigma))
        generator = torch.Generator().manual_seed(0)
        bound = level_log_prob(density, frames.expand(400, -1, -1, -1), 8, generator).mean() / 64
        normal = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), sigma)
        level = (255.0 * frames).round().double()
        exact = (normal.cdf((level + 1.0) / 256.0) - normal.cdf(level / 256.0)).log().mean()
        if math.isfinite(exact):
            assert exact - slack - 2e-3 < bound < exact + 2e-3


def test_levels_are_asked_for():
    flow, maps = random_flow((1, 8, 8), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"multiples of 1/255 in \[0, 1\], got images up to 0\.\d+ levels away"):
        level_log_prob(flow(maps), torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"got images up to 255 levels away"):
        level_log_prob(flow(maps), torch.full((2, 1, 8, 8), 2.0))
    with pytest.raises(ValueError, match=r"reconstruction \(2, 1, 8, 8\) and target \(1, 1, 8, 8\) must agree"):
        flow(maps).log_prob(torch.rand(1, 1, 8, 8))


# ---------------------------------------------------------------------- of a latent


def test_latents_decide_and_learn():
    torch.manual_seed(0)
    autoencoder = create_autoencoder(SMALL, (3, 9, 12))
    images = torch.rand(2, 3, 9, 12)
    z = autoencoder.encode(images).mode
    here, there = (autoencoder.likelihood(code).log_prob(images) for code in (z, z + 1.0))
    assert (here - there).abs().min() > 0.1
    here.sum().backward()
    assert autoencoder.encoder.trunk.layers[0].weight.grad.abs().sum() > 0.0


def test_couplings_read_their_maps():
    torch.manual_seed(0)
    coupling = Coupling(channels=2, condition_maps=3, filters=8)
    torch.nn.init.normal_(coupling.layers[-1].weight)
    values, maps, mask = torch.randn(1, 2, 5, 6), torch.randn(1, 3, 5, 6, requires_grad=True), torch.zeros(2, 5, 6)
    coupling(values, maps, mask)[1].sum().backward()
    assert maps.grad.abs().sum() > 0.0
    before, after = (coupling(values, given, mask)[1].item() for given in (maps, maps + 1.0))
    assert abs(before - after) > 1e-3


def test_reconstructions_need_no_noise_and_leave_the_generator_alone():
    autoencoder = create_autoencoder(SMALL, (1, 8, 8))
    z = torch.randn(2, 4)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = autoencoder.decode(z), autoencoder.train().decode(z)
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    draws = [autoencoder.likelihood(z).sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# torch warns itself, while it traces a function with a gradient of its own
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_parts_return_the_same():
    autoencoder = create_autoencoder(SMALL, (3, 9, 12)).eval()
    images = torch.rand(2, 3, 9, 12)
    compiled = copy.deepcopy(autoencoder)
    for part in (compiled.encoder, compiled.decoder):
        part.compile(backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(images).reconstruction, autoencoder(images).reconstruction, atol=1e-6)


def test_couplings_learn_what_a_gaussian_cannot():
    """Two pixels that share their brightness, told by no latent: the entropies are known."""
    common, own = 0.2, 0.05
    covariance = common**2 * torch.ones(2, 2) + own**2 * torch.eye(2)
    data = torch.distributions.MultivariateNormal(torch.full((2,), 0.5), covariance)
    losses = []
    for couplings in (0, 1):
        torch.manual_seed(0)
        flow = ConditionalFlow((1, 1, 2), condition_maps=1, couplings=couplings, filters=8)
        maps = torch.zeros(1, 3, 1, 2, requires_grad=True)
        optimizer = torch.optim.Adam([maps, *flow.parameters()])
        for step in range(200):
            optimizer.param_groups[0]["lr"] = 3e-2 * (1.0 - step / 200)
            loss = -flow(maps.expand(128, -1, -1, -1)).log_prob(data.sample((128,)).reshape(-1, 1, 1, 2)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        held_out = data.sample((4000,)).reshape(-1, 1, 1, 2)
        losses.append(-flow(maps.expand(4000, -1, -1, -1)).log_prob(held_out).mean().item())
    independent = math.log(2.0 * math.pi * math.e * (common**2 + own**2))
    assert losses == pytest.approx([independent, data.entropy().item()], abs=0.1)
    assert losses[1] < losses[0] - 0.8


def test_it_learns_to_see():
    torch.manual_seed(0)
    learner = create_learner(SMALL, (1, 8, 8))
    test = quadrants(64, seed=999)
    torch.manual_seed(1)
    first = learner.evaluate(test)["total"].item()
    for step in range(120):
        learner.update(quadrants(32, step))
    torch.manual_seed(1)
    assert learner.evaluate(test)["total"].item() < first - 1.0  # nats an element
    described = describe_autoencoder(learner.autoencoder.eval(), test)
    blind = psnr((test - test.mean(dim=0)).square().mean())
    assert described["psnr"] > blind + 2.0
    assert described["active_units"] >= 2
