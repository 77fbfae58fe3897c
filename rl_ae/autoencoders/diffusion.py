"""A VAE whose decoder is a diffusion model: images by removing noise, given their latent."""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rl_ae.autoencoders.gaussian import ConvolutionalVAE
from rl_ae.configs import DiffusionConfig, GaussianConfig
from rl_ae.networks import TransposedConv, group_norm
from rl_ae.pixels import crop_to, pad_to


class DiffusionVAE(ConvolutionalVAE):
    """A VAE with a conditional diffusion model for a likelihood, for images of any size.

    The latent is decoded to maps, and a small U-Net removes noise from an image given those maps (a diffusion
    autoencoder, arXiv 2111.15640, with a VAE's latent instead of a second diffusion over latents). The first maps are
    an image, which it starts from: new, it is a Gaussian decoder of one variance. Training looks at
    one noise level an image, in one pass; drawing images is what costs, ``decode_steps`` passes for a reconstruction
    and ``sample_steps`` for a sample.
    """

    config_type: ClassVar[type[GaussianConfig]] = DiffusionConfig

    @classmethod
    def decoded_maps(cls, config: DiffusionConfig) -> int:
        channels, _, _ = cls.image_shape(config)
        return channels + config.condition_maps

    @classmethod
    def make_output(cls, config: DiffusionConfig) -> "Diffusion":
        return Diffusion(config, cls.image_shape(config))


class DiffusionLikelihood(NamedTuple):
    r"""What a :class:`Diffusion` says about images, for some latents.

    Write an image as :math:`x_0 = 2x - 1`, its noisy form :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`, what the
    network takes it for :math:`\hat x_0(x_t, t, z)`, and the signal-to-noise ratio :math:`\alpha_t^2 / \sigma_t^2` as
    :math:`s_t`. Two weightings of the same errors:

    - ``"velocity"``: :math:`\frac14 \lVert v - \hat v \rVert^2 = \lVert x_0 - \hat x_0 \rVert^2 / 4 \sigma_t^2`
      (arXiv 2202.00512, section 4 and appendix D). Not a bound on a density. At pure noise it is the squared error of
      images in [0, 1], elsewhere up to :math:`1/\sigma_t^2` times as much: β has about the meaning that it has for
      :class:`~rl_ae.likelihoods.SquaredError`.
    - ``"elbo"``: minus the evidence bound on the log-density, in nats of images in [0, 1]:
      :math:`\sum_{t=2}^{T} \frac12 (s_{t-1} - s_t) \lVert x_0 - \hat x_0 \rVert^2` (arXiv 2107.00630, eq. 11 to 13)
      and the likelihood at the last step, a Gaussian of mean :math:`\hat x_0(x_1)` and variance :math:`1 / s_1`. The
      last noise level has no signal, so that the prior costs nothing. It is a loose one: of 1,000 levels that Gaussian
      leaves 1.04 bits per dimension of 8 to images known beforehand, and of white noise the steps lose 0.59.

    Attributes:
        diffusion: The noise levels and the network.
        maps: What was decoded from the latents, (B, M, H, W).
        weighting: ``"velocity"`` or ``"elbo"``; ``likelihood._replace(weighting="elbo")`` bounds the density of a model
            that was trained with the other.
    """

    diffusion: "Diffusion"
    maps: Tensor
    weighting: str

    @property
    def mean(self) -> Tensor:
        """The image that DDIM returns in ``decode_steps`` from noise that is always the same, (B, C, H, W).

        In one step it is m(z) of :class:`Diffusion`, the mean of the images that a latent stands for.
        """
        noise = self.diffusion.fixed_noise.expand(len(self.maps), -1, -1, -1)
        return self.diffusion.denoise(noise, self.maps, self.diffusion.decode_steps)

    def log_prob(self, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Minus the weighted error at one random noise level an image, an unbiased estimate over all of them, (B,).

        Args:
            target: Images (B, C, H, W) in [0, 1].
            generator: Of noise levels and noise, on the images' device; torch's global one if omitted.
        """
        if target.shape[0] != len(self.maps) or target.shape[1:] != self.diffusion.observation_shape:
            expected = (len(self.maps), *self.diffusion.observation_shape)
            raise ValueError(f"reconstruction {expected} and target {tuple(target.shape)} must agree")
        levels = self.diffusion.draw_levels(len(target), target.device, generator)
        errors = self.diffusion.velocity_errors(target, self.maps, levels, generator)
        return self.diffusion.weigh(errors, levels, self.weighting)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The image that DDIM returns in ``sample_steps`` from noise, (B, C, H, W), not clipped to [0, 1]."""
        shape, kind = (len(self.maps), *self.diffusion.observation_shape), self.diffusion.fixed_noise.dtype
        noise = torch.randn(shape, generator=generator, dtype=kind, device=self.maps.device)
        return self.diffusion.denoise(noise, self.maps, self.diffusion.sample_steps)


class Diffusion(nn.Module):
    r"""Noise levels and the network that removes noise, given maps.

    The schedule is the cosine one (arXiv 2102.09672, eq. 17), shifted so that nothing of the image is left at the last
    level (arXiv 2305.08891, algorithm 1): what is drawn starts there, and so must what is learned. Schedule and sampler
    are of the library ``diffusers``.

    What is predicted is :math:`v = \alpha_t \epsilon - \sigma_t x_0`, which stays meaningful at that level (arXiv
    2202.00512), as :math:`\hat v = \alpha_t n(x_t, z, t) - \sigma_t m(z)` with the network n and the image m that the
    latent alone decodes to. At the last level, where noise tells nothing, m(z) is all there is, and the best it can be
    is the mean of the images of a latent.

    Args:
        config: Noise levels, steps and sizes.
        observation_shape: (C, H, W).

    Raises:
        ImportError: If ``diffusers`` is not installed.
    """

    fixed_noise: Tensor
    alphas: Tensor
    sigmas: Tensor
    elbo_weights: Tensor

    def __init__(self, config: DiffusionConfig, observation_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.observation_shape, self.weighting = observation_shape, config.weighting
        self.decode_steps, self.sample_steps = config.decode_steps, config.sample_steps
        self.scheduler = _scheduler_class()(
            num_train_timesteps=config.diffusion_steps,
            beta_schedule="squaredcos_cap_v2",
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,  # which would cut gradients, and every tail
        )
        channels = observation_shape[0]
        self.network = Denoiser(channels, channels + config.condition_maps, config.density_filters)
        noise = torch.randn(1, *observation_shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("fixed_noise", noise, persistent=False)

        signal = self.scheduler.alphas_cumprod.double()
        self.register_buffer("alphas", signal.sqrt().float(), persistent=False)
        self.register_buffer("sigmas", (1.0 - signal).sqrt().float(), persistent=False)
        ratios = signal / (1.0 - signal)
        steps = 0.5 * torch.cat([ratios[:1], ratios[:-1] - ratios[1:]])
        # of squared errors of velocities, which are those of images over σ²; T, because one level stands for all
        self.register_buffer("elbo_weights", (len(signal) * steps * (1.0 - signal)).float(), persistent=False)
        # an element's Gaussian of variance 1 / s₁, and the volume by which [-1, 1] is larger than [0, 1]
        self.elbo_constant = 0.5 * math.log(ratios[0].item() / (2.0 * math.pi)) + math.log(2.0)

    def forward(self, maps: Tensor) -> DiffusionLikelihood:
        """What maps (B, C + M, H, W) say about images."""
        return DiffusionLikelihood(self, maps, self.weighting)

    def draw_levels(self, count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
        """Noise levels from 0 to T - 1, (B,): each uniform, and together spread evenly.

        One draw and equal distances (arXiv 2107.00630, appendix I.1) leave a batch's loss less noise of its own.
        """
        first = torch.rand((), generator=generator, device=device)
        spread = (first + torch.arange(count, device=device) / count).remainder(1.0)
        levels = len(self.sigmas)
        return (spread * levels).long().clamp_max(levels - 1)

    def velocity_errors(
        self, images: Tensor, maps: Tensor, levels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        r""":math:`\lVert v - \hat v \rVert^2` of images (B, C, H, W) in [0, 1] at noise levels (B,), summed, (B,)."""
        clean = (2.0 * images - 1.0).to(self.fixed_noise.dtype)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        noisy = self.scheduler.add_noise(clean, noise, levels)
        errors: Tensor = self.predict(noisy, maps, levels) - self.scheduler.get_velocity(clean, noise, levels)
        return errors.square().flatten(start_dim=1).sum(dim=1)

    def weigh(self, errors: Tensor, levels: Tensor, weighting: str) -> Tensor:
        """What :meth:`velocity_errors` (B,) say about log-densities, (B,); see :class:`DiffusionLikelihood`.

        Raises:
            ValueError: If there is no such weighting.
        """
        if weighting not in ("velocity", "elbo"):
            raise ValueError(f"weighting must be 'velocity' or 'elbo', got {weighting!r}")
        if weighting == "velocity":
            return -0.25 * errors
        return math.prod(self.observation_shape) * self.elbo_constant - self.elbo_weights[levels] * errors

    def denoise(self, noise: Tensor, maps: Tensor, steps: int) -> Tensor:
        """Noise (B, C, H, W) to images near [0, 1], by deterministic DDIM (arXiv 2010.02502, eq. 12 with σ = 0)."""
        self.scheduler.set_timesteps(steps)
        images: Tensor = noise
        for level in self.scheduler.timesteps.tolist():
            levels = torch.full((len(noise),), level, device=noise.device)
            images = self.scheduler.step(self.predict(images, maps, levels), level, images).prev_sample
        return 0.5 * (images + 1.0)

    def predict(self, noisy: Tensor, maps: Tensor, levels: Tensor) -> Tensor:
        """The velocity (B, C, H, W) of noisy images, the network's part in the precision that decoded the maps."""
        reduced = maps.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(maps.device.type, dtype=maps.dtype if reduced else None, enabled=reduced):
            velocity: Tensor = self.network(noisy, maps.to(noisy.dtype), levels / len(self.sigmas))
        image = 2.0 * maps[:, : self.observation_shape[0]].to(noisy.dtype)  # [-1, 1], as raw maps are around 0
        alpha, sigma = (factors[levels][:, None, None, None] for factors in (self.alphas, self.sigmas))
        return alpha * velocity.to(noisy.dtype) - sigma * image


class Denoiser(nn.Module):
    """A U-Net of three scales for noisy images of any size, told by maps what to see.

    Two halvings, a residual block on every scale below the image's own, sums across; at the image's own a convolution
    of what came up, the maps and the noisy image, whose finest detail nothing else passes on. It returns zeros until it
    is trained. Its input is padded to a multiple of four, its output cropped.

    Args:
        channels: C.
        condition_maps: M.
        filters: Channels at half the size; twice as many at a quarter, half as many at the image's own.
    """

    def __init__(self, channels: int, condition_maps: int, filters: int) -> None:
        super().__init__()
        inputs, full, half, quarter = channels + condition_maps, max(filters // 2, 1), filters, 2 * filters
        self.embed = LevelEmbedding(quarter)
        self.down_to_half = nn.Conv2d(inputs, half, 4, stride=2, padding=1)
        self.on_the_way_down = ResidualBlock(half, quarter)
        self.down_to_quarter = nn.Conv2d(half, quarter, 4, stride=2, padding=1)
        self.at_quarter = ResidualBlock(quarter, quarter)
        self.up_to_half = TransposedConv(quarter, half, 4, stride=2, padding=1)
        self.on_the_way_up = ResidualBlock(half, quarter)
        self.up_to_full = TransposedConv(half, full, 4, stride=2, padding=1)
        self.to_velocity = nn.Conv2d(full + inputs, channels, 3, padding=1)
        nn.init.zeros_(self.to_velocity.weight)
        assert self.to_velocity.bias is not None
        nn.init.zeros_(self.to_velocity.bias)

    def forward(self, noisy: Tensor, maps: Tensor, level: Tensor) -> Tensor:
        """The velocity (B, C, H, W) of noisy images (B, C, H, W) given maps (B, M, H, W) and levels (B,) in [0, 1)."""
        size = (noisy.shape[2], noisy.shape[3])
        inputs = pad_to(torch.cat([noisy, maps], dim=1), (size[0] + -size[0] % 4, size[1] + -size[1] % 4))
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        embedding = self.embed(level.to(noisy.dtype))
        half = self.on_the_way_down(self.down_to_half(inputs), embedding)
        quarter = self.at_quarter(self.down_to_quarter(half), embedding)
        half = self.on_the_way_up(half + self.up_to_half(quarter), embedding)
        full = nn.functional.silu(self.up_to_full(half))
        velocity: Tensor = self.to_velocity(torch.cat([full, inputs], dim=1))
        return crop_to(velocity, size)


class LevelEmbedding(nn.Module):
    """Noise levels (B,) in [0, 1) to vectors (B, E): sines and cosines of them, and two linear layers.

    Args:
        width: E.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 * math.pi * 2.0 ** torch.arange(8), persistent=False)
        self.layers = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, level: Tensor) -> Tensor:
        phases = level[:, None] * self.frequencies  # (B, 8)
        embedding: Tensor = self.layers(torch.cat([phases.sin(), phases.cos()], dim=1))
        return embedding


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity, with GroupNorm, which a noise level scales and shifts in between.

    Args:
        channels: Of maps in and out.
        embedding: Width of the noise level's embedding.
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            *group_norm(channels, normalize=True), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.modulate = nn.Linear(embedding, 2 * channels)
        (self.norm,) = group_norm(channels, normalize=True)
        self.second = nn.Sequential(nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        inside = self.norm(self.first(maps)) * (1.0 + scale) + shift
        changed: Tensor = maps + self.second(inside)
        return changed


def _scheduler_class() -> Any:
    try:
        from diffusers import DDIMScheduler  # noqa: PLC0415
    except ImportError as error:
        raise ImportError('the diffusion decoder needs diffusers: pip install "rl-ae[diffusion]"') from error
    return DDIMScheduler
