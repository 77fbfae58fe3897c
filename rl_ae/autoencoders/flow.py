"""A VAE whose decoder is a normalising flow: the exact density of an image given its latent."""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rl_ae.autoencoders.gaussian import ConvolutionalVAE
from rl_ae.configs import FlowConfig, GaussianConfig
from rl_ae.networks import TransposedConv
from rl_ae.pixels import crop_to, pad_to


class FlowVAE(ConvolutionalVAE):
    r"""A VAE with a conditional flow for a likelihood, for images of any size.

    The latent is decoded to maps, and :class:`ConditionalFlow` turns an image into standard normal noise by an
    invertible function of image and maps, so that :math:`\log p(x|z)` is exact. It starts as a Gaussian with a mean and
    a standard deviation for every pixel; the couplings add how pixels depend on each other.

    The density is one of real-valued images in [0, 1]. Its integral over a grey level is the level's probability, of
    which the density of an image whose levels are filled with uniform noise is, in the mean of the logarithm, a lower
    bound (arXiv 1511.01844, eq. 10); :func:`~rl_ae.diagnostics.level_log_prob` accounts for it.
    """

    config_type: ClassVar[type[GaussianConfig]] = FlowConfig

    @classmethod
    def decoded_maps(cls, config: FlowConfig) -> int:
        channels, _, _ = cls.image_shape(config)
        return 2 * channels + config.condition_maps

    @classmethod
    def make_output(cls, config: FlowConfig) -> "ConditionalFlow":
        shape = cls.image_shape(config)
        return ConditionalFlow(shape, config.condition_maps, config.couplings, config.density_filters)


class FlowLikelihood(NamedTuple):
    """The density of a :class:`ConditionalFlow` for some latents.

    Attributes:
        flow: From images to noise and back.
        maps: What was decoded from the latents, (B, M, H, W).
    """

    flow: "ConditionalFlow"
    maps: Tensor

    @property
    def mean(self) -> Tensor:
        """The image that the flow is told to expect, (B, C, H, W): μ of :class:`ConditionalFlow`'s first step.

        A flow has no mean in closed form. Without couplings this is it, and a squared error in the loss, as
        :class:`~rl_ae.FlowConfig` has it, keeps it there.
        """
        return self.flow.expected(self.maps)

    def log_prob(self, target: Tensor) -> Tensor:
        r"""Log-density of images (B, C, H, W) in nats, (B,): :math:`\log N(f(x); 0, I) + \log |\det \partial f|`."""
        if target.shape[0] != len(self.maps) or target.shape[1:] != self.flow.observation_shape:
            expected = (len(self.maps), *self.flow.observation_shape)
            raise ValueError(f"reconstruction {expected} and target {tuple(target.shape)} must agree")
        noise, log_determinant = self.flow.to_noise(target, self.maps)
        squares = noise.square().flatten(start_dim=1).sum(dim=1)
        return log_determinant - 0.5 * (squares + noise[0].numel() * math.log(2.0 * math.pi))

    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A draw (B, C, H, W), not clipped to [0, 1].

        Args:
            generator: Of the noise, on the latent's device; torch's global one if omitted.
            temperature: The noise's standard deviation, ≥ 0; below 1 draws are likelier and alike.
        """
        shape = (len(self.maps), *self.flow.observation_shape)
        noise = torch.zeros(shape, dtype=self.flow.checkerboard.dtype, device=self.maps.device)
        if temperature > 0.0:
            noise.normal_(std=temperature, generator=generator)
        return self.flow.to_image(noise, self.maps)


class ConditionalFlow(nn.Module):
    r"""An invertible function of images given maps: :math:`f = f_K ∘ … ∘ f_1 ∘ f_0`.

    :math:`f_0(x) = (x - \mu) / \sigma` with μ and log σ from the maps, a Gaussian decoder's whitening; each further
    step mixes the channels and then couples the pixels. No step changes the grid, so that every size is exact: instead
    of squeezing pixels into channels, as Glow does, which odd sizes would have to be padded for, the couplings mask
    (RealNVP, section 3.4), and only the networks inside them look at a coarser grid.

    Args:
        observation_shape: (C, H, W).
        condition_maps: Maps that the couplings read, beside the 2·C of mean and standard deviation.
        couplings: K.
        filters: Channels inside the couplings' networks.
    """

    #: log σ stays within ±8. Uniform noise in a level of 8 bits has log σ = -6.8, which no data are narrower than.
    LOG_SIGMA_BOUND = 8.0

    checkerboard: Tensor

    def __init__(
        self, observation_shape: tuple[int, int, int], condition_maps: int, couplings: int, filters: int
    ) -> None:
        super().__init__()
        self.observation_shape = observation_shape
        channels = observation_shape[0]
        self.mixes = nn.ModuleList(ChannelMix(channels) for _ in range(couplings))
        self.couplings = nn.ModuleList(Coupling(channels, condition_maps, filters) for _ in range(couplings))
        # in three dimensions, so that a pixel's channels tell each other, too
        place = sum(torch.meshgrid(*(torch.arange(size) for size in observation_shape), indexing="ij"))
        self.register_buffer("checkerboard", torch.as_tensor(place % 2, dtype=torch.float32), persistent=False)

    def forward(self, maps: Tensor) -> FlowLikelihood:
        """The density that maps (B, 2·C + M, H, W) describe."""
        return FlowLikelihood(self, maps)

    def to_noise(self, images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) to noise of the same shape, and the log-determinant of the Jacobian, (B,)."""
        mean, log_sigma, features = self._read(maps)
        values = (images.to(mean.dtype) - mean) * torch.exp(-log_sigma)
        log_determinant = -log_sigma.flatten(start_dim=1).sum(dim=1)
        for mix, coupling, mask in self._steps():
            values, of_mix = mix(values)
            values, of_coupling = coupling(values, features, mask)
            log_determinant = log_determinant + of_mix + of_coupling
        return values, log_determinant

    def to_image(self, noise: Tensor, maps: Tensor) -> Tensor:
        """The inverse of :meth:`to_noise`, (B, C, H, W)."""
        mean, log_sigma, features = self._read(maps)
        values = noise
        for mix, coupling, mask in reversed(self._steps()):
            values = mix.inverse(coupling.inverse(values, features, mask))
        return mean + values * torch.exp(log_sigma)

    def expected(self, maps: Tensor) -> Tensor:
        """The images (B, C, H, W) that noise is added to: μ."""
        mean, _, _ = self._read(maps)
        return mean

    def _steps(self) -> list[tuple[Any, Any, Tensor]]:
        """Channel mix, coupling and mask of every step; neighbours in a row keep opposite fields."""
        masks = (self.checkerboard, 1.0 - self.checkerboard)
        return [
            (mix, coupling, masks[index % 2])
            for index, (mix, coupling) in enumerate(zip(self.mixes, self.couplings, strict=True))
        ]

    def _read(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log σ and features of maps; a density needs its digits, whatever precision decoded them."""
        channels = self.observation_shape[0]
        maps = maps.to(self.checkerboard.dtype)
        raw_mean, raw_sigma, features = maps.split([channels, channels, maps.shape[1] - 2 * channels], dim=1)
        return 0.5 + raw_mean, self.LOG_SIGMA_BOUND * torch.tanh(raw_sigma / self.LOG_SIGMA_BOUND), features


class ChannelMix(nn.Module):
    r"""Glow's invertible 1×1 convolution with its bias (arXiv 1807.03039, section 3.2): :math:`y = L U x + b`.

    L is lower and U upper triangular, of which L has ones on the diagonal and U positive numbers: always invertible,
    with a determinant that is read off. The diagonal and the bias are Glow's activation normalisation, without its
    initialisation from data, because the image is already whitened. It starts as the identity.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U, (C, C) each."""
        lower = self.lower.tril(-1) + torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        return lower, self.upper.triu(1) + torch.diag(self.log_diagonal.exp())

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed values (B, C, H, W), and the log-determinant, a scalar: each pixel has the same."""
        lower, upper = self.factors()
        mixed = torch.einsum("dc,bchw->bdhw", lower @ upper, values) + self.bias[:, None, None]
        return mixed, math.prod(values.shape[2:]) * self.log_diagonal.sum()

    def inverse(self, mixed: Tensor) -> Tensor:
        """The values that were mixed, (B, C, H, W)."""
        lower, upper = self.factors()
        columns = (mixed - self.bias[:, None, None]).flatten(start_dim=2)  # (B, C, H·W)
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        values: Tensor = torch.linalg.solve_triangular(upper, columns, upper=True)
        return values.reshape(mixed.shape)


class Coupling(nn.Module):
    r"""RealNVP's affine coupling (arXiv 1605.08803, eq. 9), conditional on maps.

    With a mask m, :math:`y = m x + (1 - m) (x\,e^{s} + t)`, s and t a network of :math:`m x` and the maps: the Jacobian
    is triangular with a log-determinant of :math:`\sum (1 - m) s`, whatever the network is. It works on a grid of half
    the pixels a side, which its input is padded for and its output cropped from. It starts as the identity.

    Args:
        channels: C.
        condition_maps: Maps of the condition.
        filters: Channels inside.
    """

    #: s stays within ±2 and a step scales by at most 7.4, for inverses that keep their digits.
    LOG_SCALE_BOUND = 2.0

    def __init__(self, channels: int, condition_maps: int, filters: int) -> None:
        super().__init__()
        last = TransposedConv(filters, 2 * channels, 4, stride=2, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Conv2d(channels + condition_maps, filters, 4, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(filters, filters, 3, padding=1),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, values: Tensor, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Coupled values (B, C, H, W), and the log-determinant, (B,)."""
        log_scale, shift = self._affine(mask * values, features, 1.0 - mask)
        return values * log_scale.exp() + shift, log_scale.flatten(start_dim=1).sum(dim=1)

    def inverse(self, coupled: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """The values that were coupled, (B, C, H, W)."""
        log_scale, shift = self._affine(mask * coupled, features, 1.0 - mask)
        return (coupled - shift) * torch.exp(-log_scale)

    def _affine(self, kept: Tensor, features: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
        """What the others are scaled and shifted by, s and t; zero where nothing changes."""
        size = (kept.shape[2], kept.shape[3])
        even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        inputs = pad_to(torch.cat([kept, features], dim=1), even)
        raw = crop_to(self.layers(inputs.contiguous(memory_format=torch.channels_last)), size)
        log_scale, shift = raw.chunk(2, dim=1)
        return changed * self.LOG_SCALE_BOUND * torch.tanh(log_scale / self.LOG_SCALE_BOUND), changed * shift
