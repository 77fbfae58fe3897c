"""The diffusion decoder: schedule, sampler, weights of the loss and what it is conditional on."""

import copy
import dataclasses
import math
import sys

import pytest
import torch
from test_flow import quadrants

from rl_ae import DiffusionConfig, create_autoencoder, create_encoder, create_learner
from rl_ae.autoencoders.diffusion import Diffusion
from rl_ae.configs import ConvConfig
from rl_ae.diagnostics import describe_autoencoder
from rl_ae.losses import psnr

SMALL = DiffusionConfig(
    latent_dim=4,
    conv=ConvConfig(filters=(8, 16), kernel_size=4, strides=(2, 2), padding=1),
    condition_maps=4,
    density_filters=8,
    encoder_learning_rate=3e-3,
    decoder_learning_rate=3e-3,
)
SHAPE = (3, 9, 11)


def diffusion(shape=SHAPE, **fields):
    """One whose network returns something, unlike at its start."""
    torch.manual_seed(0)
    model = Diffusion(DiffusionConfig(condition_maps=4, density_filters=8, **fields), shape)
    torch.nn.init.normal_(model.network.to_velocity.weight, std=0.1)
    return model


class Oracle:
    """Velocities of a network that takes every noisy image for one it knows, in [-1, 1]."""

    def __init__(self, diffusion, known):
        self.signal, self.known = diffusion.scheduler.alphas_cumprod, known

    def __call__(self, noisy, maps, levels):
        signal = self.signal[levels][:, None, None, None].to(noisy.dtype)
        return (signal.sqrt() * noisy - self.known) / (1.0 - signal).sqrt()


# ---------------------------------------------------------------------- schedule and sampler


@pytest.mark.parametrize("steps", [10, 1000])
def test_the_schedule_is_the_shifted_cosine(steps):
    angles = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2.0
    cosines = angles.cos().square()
    kept = (cosines[1:] / cosines[:-1]).clamp_min(1.0 - 0.999).cumprod(dim=0).sqrt()
    shifted = (kept - kept[-1]) * kept[0] / (kept[0] - kept[-1])
    signal = diffusion(diffusion_steps=steps, sample_steps=2).scheduler.alphas_cumprod.double()
    assert torch.allclose(signal, shifted.square(), atol=1e-5)
    assert signal[-1] == 0.0 and (signal.diff() < 0.0).all()


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_ddim_with_a_perfect_network_returns_the_clean_image(steps):
    model = diffusion(decode_steps=steps, sample_steps=steps)
    clean = torch.rand(2, *SHAPE)
    model.predict = Oracle(model, 2.0 * clean - 1.0)
    likelihood = model(torch.zeros(2, 7, 9, 11))
    for images in (likelihood.mean, likelihood.sample()):
        assert torch.allclose(images, clean, atol=1e-5)
    assert model.velocity_errors(clean, likelihood.maps, torch.tensor([0, 999])).max() < 1e-3


def test_ddim_follows_its_equation():
    """Between two levels: what is taken for image and noise, mixed anew."""
    model = diffusion(decode_steps=2)
    maps, noise = torch.randn(1, 7, 9, 11), torch.randn(1, *SHAPE)
    signal = model.scheduler.alphas_cumprod
    images = noise
    for level, following in ((999, signal[499]), (499, torch.tensor(1.0))):
        velocity = model.predict(images, maps, torch.tensor([level]))
        alpha, sigma = signal[level].sqrt(), (1.0 - signal[level]).sqrt()
        image, epsilon = alpha * images - sigma * velocity, sigma * images + alpha * velocity
        images = following.sqrt() * image + (1.0 - following).sqrt() * epsilon
    assert torch.allclose(2.0 * model.denoise(noise, maps, 2) - 1.0, images, atol=1e-5)
    assert not torch.allclose(model.denoise(noise, maps, 2), model.denoise(noise, maps, 1), atol=5e-2)


def test_the_mean_in_one_step_is_what_the_latent_alone_decodes_to():
    model = diffusion()
    maps = torch.randn(2, 7, 9, 11)
    assert torch.allclose(model(maps).mean, 0.5 + maps[:, :3], atol=1e-6)
    several = diffusion(decode_steps=10)
    assert not torch.allclose(several(maps).mean, 0.5 + maps[:, :3], atol=0.1)
    assert torch.allclose(several(maps[1:]).mean, several(maps).mean[1:], atol=1e-4)


def test_a_velocity_is_the_networks_and_the_images():
    model = diffusion()
    maps, noisy, levels = torch.randn(2, 7, 9, 11), torch.randn(2, *SHAPE), torch.tensor([250, 600])
    assert model.network(noisy, maps, levels / 1000).abs().max() > 0.1
    signal = model.scheduler.alphas_cumprod[levels][:, None, None, None]
    of_network = signal.sqrt() * model.network(noisy, maps, levels / 1000)
    of_image = (1.0 - signal).sqrt() * (2.0 * (0.5 + maps[:, :3]) - 1.0)
    assert torch.allclose(model.predict(noisy, maps, levels), of_network - of_image, atol=1e-5)
    assert (Diffusion(SMALL, SHAPE).network(noisy, maps, levels / 1000) == 0.0).all()


# ---------------------------------------------------------------------- the loss


def test_errors_are_those_of_velocities():
    model = diffusion()
    images, maps = torch.rand(3, *SHAPE), torch.randn(3, 7, 9, 11)
    levels = torch.tensor([0, 400, 999])
    errors = model.velocity_errors(images, maps, levels, torch.Generator().manual_seed(5))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(5))
    signal = model.scheduler.alphas_cumprod[levels][:, None, None, None]
    alpha, sigma, clean = signal.sqrt(), (1.0 - signal).sqrt(), 2.0 * images - 1.0
    seen = model.predict(alpha * clean + sigma * noise, maps, levels)
    expected = (alpha * noise - sigma * clean - seen).square().sum(dim=(1, 2, 3))
    assert torch.allclose(errors, expected, rtol=1e-4)


def test_velocity_weighs_pure_noise_as_a_squared_error():
    model = diffusion()
    images, known = torch.rand(4, *SHAPE), torch.rand(1, *SHAPE)
    model.predict = Oracle(model, 2.0 * known - 1.0)
    last = torch.full((4,), 999)
    errors = model.velocity_errors(images, torch.zeros(4, 7, 9, 11), last)
    expected = -(images - known).square().sum(dim=(1, 2, 3))
    assert torch.allclose(model.weigh(errors, last, "velocity"), expected, rtol=1e-4)


def test_the_bound_in_closed_form_for_a_network_that_always_sees_the_same():
    """The weights of all levels sum to the first one's signal-to-noise ratio."""
    model = diffusion((1, 8, 8)).double()
    image, known = torch.rand(1, 1, 8, 8).double(), torch.rand(1, 1, 8, 8).double()
    model.predict = Oracle(model, 2.0 * known - 1.0)
    levels = torch.arange(1000)
    errors = model.velocity_errors(image.expand(1000, -1, -1, -1), torch.zeros(1000, 5, 8, 8).double(), levels)
    bound = model.weigh(errors, levels, "elbo").mean().item()
    signal = model.scheduler.alphas_cumprod[0].item()
    ratio = signal / (1.0 - signal)
    error = 4.0 * (image - known).square().sum().item()
    constant = 64 * (0.5 * math.log(ratio / (2.0 * math.pi)) + math.log(2.0))
    assert bound == pytest.approx(constant - ratio * error, rel=1e-4)
    assert (8.0 - constant / 64 / math.log(2.0)) == pytest.approx(1.04, abs=0.01)  # bits at best, of 8


def test_the_bound_in_closed_form_for_white_noise():
    """The best network takes it for the noisy image times α, which leaves errors of 1 / (1 + s): v is zero."""
    model = diffusion((1, 8, 8))
    model.predict = lambda noisy, maps, levels: torch.zeros_like(noisy)
    images = 0.5 * (torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 1.0)
    likelihood = model(torch.zeros(4000, 5, 8, 8))._replace(weighting="elbo")
    bound = likelihood.log_prob(images, torch.Generator().manual_seed(0)).mean().item() / 64
    signal = model.scheduler.alphas_cumprod.double()
    ratios = signal / (1.0 - signal)
    steps = torch.cat([ratios[:1], ratios[:-1] - ratios[1:]])
    expected = math.log(2.0) + 0.5 * (ratios[0] / (2.0 * math.pi)).log() - 0.5 * (steps / (1.0 + ratios)).sum()
    assert bound == pytest.approx(expected.item(), abs=0.1)
    density = -0.5 * math.log(2.0 * math.pi * math.e) + math.log(2.0)
    assert bound < density
    assert (density - expected.item()) / math.log(2.0) == pytest.approx(0.59, abs=0.01)  # bits, as documented


def test_levels_are_uniform_and_spread():
    model = diffusion()
    draws = torch.stack([model.draw_levels(8, torch.device("cpu")) for _ in range(2000)])
    assert draws.min() == 0 and draws.max() == 999
    assert draws.double().mean(dim=0).sub(499.5).abs().max() < 30.0
    gaps = draws.sort(dim=1).values.diff(dim=1)
    assert gaps.min() >= 124 and gaps.max() <= 126


def test_unknown_weightings_and_other_shapes_are_refused():
    likelihood = diffusion()(torch.zeros(2, 7, 9, 11))
    with pytest.raises(ValueError, match="must be 'velocity' or 'elbo', got 'snr'"):
        likelihood._replace(weighting="snr").log_prob(torch.rand(2, *SHAPE))
    with pytest.raises(ValueError, match=r"reconstruction \(2, 3, 9, 11\) and target \(1, 3, 9, 11\) must agree"):
        likelihood.log_prob(torch.rand(1, *SHAPE))


# ---------------------------------------------------------------------- of a latent


def test_latents_decide_and_learn():
    torch.manual_seed(0)
    autoencoder = create_autoencoder(SMALL, SHAPE)
    images = torch.rand(2, *SHAPE)
    z = autoencoder.encode(images).mode
    here, there = (
        autoencoder.likelihood(code).log_prob(images, torch.Generator().manual_seed(0)) for code in (z, z + 1.0)
    )
    assert (here - there).abs().min() > 1e-2
    here.sum().backward()
    assert autoencoder.encoder.trunk.layers[0].weight.grad.abs().sum() > 0.0


def test_an_update_draws_no_image(monkeypatch):
    def denoise(*arguments):
        raise AssertionError("an update ran the sampler")

    monkeypatch.setattr(Diffusion, "denoise", denoise)
    learner = create_learner(SMALL, (1, 8, 8))
    assert learner.update(quadrants(4, 0)).keys() == {"reconstruction", "kl", "total"}


def test_reconstructions_repeat_and_leave_the_generator_alone():
    autoencoder = create_autoencoder(SMALL, SHAPE)
    z = torch.randn(2, 4)
    state = torch.get_rng_state()
    assert torch.equal(autoencoder.decode(z), autoencoder.train().decode(z))
    assert torch.equal(torch.get_rng_state(), state)
    likelihood = autoencoder.likelihood(z)
    draws = [likelihood.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# torch warns itself, while it traces a function with a gradient of its own
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_parts_return_the_same():
    autoencoder = create_autoencoder(dataclasses.replace(SMALL, decode_steps=2), SHAPE).eval()
    torch.nn.init.normal_(autoencoder.output.network.to_velocity.weight)
    images = torch.rand(2, *SHAPE)
    compiled = copy.deepcopy(autoencoder)
    for part in (compiled.encoder, compiled.decoder, compiled.output.network):
        part.compile(backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(images).reconstruction, autoencoder(images).reconstruction, atol=1e-6)


def test_the_library_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'needs diffusers: pip install "rl-ae\[diffusion\]"'):
        create_autoencoder("diffusion", (1, 16, 16))
    assert create_encoder("diffusion", (1, 16, 16)).latent_dim == 32  # which an extractor needs alone


def test_it_learns_to_see():
    torch.manual_seed(0)
    learner = create_learner(SMALL, (1, 8, 8))
    test = quadrants(64, seed=999)
    torch.manual_seed(1)
    first = learner.evaluate(test)["total"].item()
    for step in range(120):
        learner.update(quadrants(32, step))
    torch.manual_seed(1)
    assert learner.evaluate(test)["total"].item() < 0.5 * first
    described = describe_autoencoder(learner.autoencoder.eval(), test)
    blind = psnr((test - test.mean(dim=0)).square().mean())
    assert described["psnr"] > blind + 2.0
    assert described["active_units"] >= 2
