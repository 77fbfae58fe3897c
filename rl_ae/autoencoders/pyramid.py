"""A residual pyramid: an encoder of five levels with its skips, and a decoder to a mixture of logistics a pixel.

Level C_k has ⌈H / 2^(k-1)⌉ × ⌈W / 2^(k-1)⌉ positions; for 64×64 images and 32 base channels::

    images 3 @ 64×64 → C2 32 @ 32×32 → C3 64 @ 16×16 → C4 128 @ 8×8 → C5 256 @ 4×4 → C6 512 @ 2×2 → mean, log-variance

and the decoder returns the same way. Blocks are of the kind that NVAE (arXiv 2007.03898) is made of. No weight
depends on the image's size: C6 is averaged to a grid of its own, and maps are interpolated from such a grid.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_ae.autoencoders.base import Encoder
from rl_ae.autoencoders.gaussian import VAE
from rl_ae.configs import PyramidConfig
from rl_ae.latents import GaussianLatent
from rl_ae.logistic_mixture import LogisticMixture, LogisticMixtureHead, MixtureParameters
from rl_ae.networks import GaussianHead, initialize_kaiming
from rl_ae.pixels import MIN_IMAGE_SIZE, count_frame_channels, crop_to
from rl_ae.residual import ResidualBlock, normalized

#: The levels, from fine to coarse.
LEVELS = ("C2", "C3", "C4", "C5", "C6")
#: The level whose grid attention maps have.
ATTENTION_LEVEL = "C4"
#: Positions of C6 of a 64×64 image.
GRID = (2, 2)

Size = tuple[int, int]


def level_sizes(size: Size) -> dict[str, Size]:
    """Positions (h, w) of every level of an image of (H, W) pixels."""
    sizes, (height, width) = {}, size
    for level in LEVELS:
        height, width = -(-height // 2), -(-width // 2)
        sizes[level] = (height, width)
    return sizes


def level_channels(base_channels: int) -> dict[str, int]:
    """Channels of every level: the base channels, doubled from level to level."""
    return {level: base_channels * 2**depth for depth, level in enumerate(LEVELS)}


def check_levels(levels: Sequence[str]) -> None:
    """Refuse names that are no levels.

    Raises:
        ValueError: With those, and the names there are.
    """
    if unknown := [level for level in levels if level not in LEVELS]:
        raise ValueError(f"unknown levels {unknown}, expected some of {list(LEVELS)}")


# ---------------------------------------------------------------------- the way in


class PyramidEncoding(NamedTuple):
    """``(latent, skips)``: what one pass of a :class:`VAEEncoder` gives.

    Attributes:
        latent: ``(mu, logvar)``, (B, D) or (B, T, D) each.
        skips: Maps (B, C, h, w) or (B, T, C, h, w) by the name of their level.
    """

    latent: GaussianLatent
    skips: dict[str, Tensor]


class VAEEncoder(Encoder):
    """``mu, logvar = encoder(observations, context)``: images, and what else is known, to a Gaussian.

    Nothing is cached: :meth:`encode` returns the latent and the skips of one pass, and
    ``encoder.head(encoder.trunk(observations))`` are the halves that agents need.

    Args:
        latent_dim: D.
        context_dim: Width of the context; 0 or ``None`` for an encoder without one.
        image_channels: C.
        base_channels: Channels of C2; every further level has twice as many.
        grid: Positions (h, w) of C6 that the head reads. C6 of another size is averaged to it; an encoder of images of
            one size loses nothing with the ``level_sizes`` of that size.
        centre: Subtracted from the images.

    Raises:
        ValueError: If a number is out of range.
    """

    trunk: "PyramidTrunk"
    head: "PyramidHead"

    def __init__(
        self,
        latent_dim: int = 36,
        context_dim: int | None = 256,
        image_channels: int = 3,
        base_channels: int = 32,
        *,
        grid: Size = GRID,
        centre: float = 0.0,
    ) -> None:
        _check_positive(latent_dim=latent_dim, image_channels=image_channels, base_channels=base_channels)
        _check_grid(grid)
        if context_dim is not None and context_dim < 0:
            raise ValueError(f"context_dim must be ≥ 0, got {context_dim}")
        trunk = PyramidTrunk(image_channels, base_channels, grid, centre)
        super().__init__(trunk, PyramidHead(trunk, latent_dim, context_dim or 0), latent_dim)

    def forward(self, observations: Tensor, context: Tensor | None = None) -> GaussianLatent:
        """Encode images (B, C, H, W) or (B, T, C, H, W) in [0, 1] of any size from 8×8.

        Args:
            observations: The images.
            context: (B, ``context_dim``), or one for each image of a sequence, (B, T, ``context_dim``). Without it the
                encoder behaves as with zeros.

        Returns:
            ``(mu, logvar)``, (B, D) or (B, T, D) each.

        Raises:
            TypeError: If the observations are not floating point, as frames are that nobody has scaled.
            ValueError: If a shape is wrong, or there is a context and the encoder was built without.
        """
        return self.encode(observations, context, levels=()).latent

    def encode(
        self, observations: Tensor, context: Tensor | None = None, levels: Sequence[str] = LEVELS
    ) -> PyramidEncoding:
        """Latent and skips of one pass; arguments and errors as :meth:`forward` and :meth:`get_unet_skips`."""
        check_levels(levels)
        lead = self._check_images(observations)
        maps = self.trunk.levels(observations.flatten(end_dim=-4))
        flat = self.head(self.trunk.features(maps[LEVELS[-1]]), self._flat_context(context, lead))
        latent = GaussianLatent(*(values.unflatten(0, lead) for values in flat))
        return PyramidEncoding(latent, {level: maps[level].unflatten(0, lead) for level in LEVELS if level in levels})

    def get_unet_skips(self, observations: Tensor, levels: Sequence[str] = LEVELS) -> dict[str, Tensor]:
        """The maps of some levels, from fine to coarse, for a decoder that is to see more than the latent.

        Args:
            observations: (B, C, H, W) or (B, T, C, H, W) in [0, 1].
            levels: Names out of ``"C2"`` (half the resolution) to ``"C6"``.

        Returns:
            (B, C, h, w) or (B, T, C, h, w) by the name of the level.

        Raises:
            TypeError: As :meth:`forward`.
            ValueError: As :meth:`forward`; or if a level is unknown.
        """
        check_levels(levels)
        lead = self._check_images(observations)
        maps = self.trunk.levels(observations.flatten(end_dim=-4))
        return {level: maps[level].unflatten(0, lead) for level in LEVELS if level in levels}

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """A sample μ + σ ε in training, μ in evaluation, of the same shape."""
        latent = GaussianLatent(mu, logvar)
        return latent.sample() if self.training else latent.mode

    def _check_images(self, observations: Tensor) -> tuple[int, ...]:
        """(B,) or (B, T)."""
        if not observations.is_floating_point():
            raise TypeError(
                f"expected floats in [0, 1], got {observations.dtype}: scale frames with rl_ae.pixels.to_unit"
            )
        *lead, channels, height, width = observations.shape if observations.ndim in (4, 5) else (0, 0, 0)
        if channels != self.trunk.image_channels or min(height, width) < MIN_IMAGE_SIZE:
            expected = f"{self.trunk.image_channels}, H ≥ {MIN_IMAGE_SIZE}, W ≥ {MIN_IMAGE_SIZE}"
            raise ValueError(
                f"expected observations of shape (B, {expected}) or (B, T, {expected}), got {tuple(observations.shape)}"
            )
        return tuple(lead)

    def _flat_context(self, context: Tensor | None, lead: tuple[int, ...]) -> Tensor | None:
        """(B, context_dim) or (B·T, context_dim)."""
        if context is None:
            return None
        width = self.head.context_dim
        if width == 0:
            raise ValueError(
                f"this encoder was built without a context (context_dim=0), got one of shape {tuple(context.shape)}"
            )
        if context.shape == (*lead[:1], width) and len(lead) == 2:
            context = context[:, None].expand(*lead, width)
        if context.shape != (*lead, width):
            allowed = " or ".join(str((*lead[:size], width)) for size in range(1, len(lead) + 1))
            raise ValueError(f"expected a context of shape {allowed}, got {tuple(context.shape)}")
        return context.flatten(end_dim=-2)


class PyramidTrunk(nn.Module):
    """Images (B, C, H, W) in [0, 1] to the maps of the five levels, and to C6 on a grid (B, F, h, w).

    Args:
        image_channels: C.
        base_channels: Channels of C2.
        grid: (h, w).
        centre: Subtracted from the images.
    """

    def __init__(self, image_channels: int, base_channels: int, grid: Size, centre: float) -> None:
        super().__init__()
        self.image_channels, self.grid, self.centre = image_channels, grid, centre
        channels = level_channels(base_channels)
        widths = [base_channels, *channels.values()]
        self.stem = nn.Conv2d(image_channels, base_channels, kernel_size=5, stride=2, padding=2)
        # the stem has halved the image already
        self.blocks = nn.ModuleDict(
            {
                level: ResidualBlock(width, channels[level], stride=1 if level == LEVELS[0] else 2)
                for level, width in zip(LEVELS, widths, strict=False)
            }
        )
        self.out_features = channels[LEVELS[-1]] * grid[0] * grid[1]
        self.apply(initialize_kaiming)  # weights a third as large shrink what tells images apart, from level to level

    def levels(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of every level, from fine to coarse."""
        maps = self.stem((images - self.centre).contiguous(memory_format=torch.channels_last))
        pyramid = {}
        for level, block in self.blocks.items():
            pyramid[level] = maps = block(maps)
        return pyramid

    def features(self, coarsest: Tensor) -> Tensor:
        """What the head reads of C6."""
        maps = F.silu(coarsest)  # not normalised: that would take the brightness of the whole image away
        return maps if maps.shape[2:] == self.grid else F.adaptive_avg_pool2d(maps, self.grid)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(self.levels(images)[LEVELS[-1]])


class PyramidHead(nn.Module):
    """The trunk's features (B, F, h, w), and a context (B, ``context_dim``) if there is one, to a Gaussian (B, D).

    Args:
        trunk: The trunk in front; only its width is read.
        latent_dim: D.
        context_dim: 0 for none.
    """

    def __init__(self, trunk: PyramidTrunk, latent_dim: int, context_dim: int) -> None:
        super().__init__()
        hidden = 4 * latent_dim
        self.context_dim = context_dim
        self.features = nn.Linear(trunk.out_features, hidden).apply(initialize_kaiming)
        # without a bias, so that no context is one of zeros
        self.context = nn.Linear(context_dim, hidden, bias=False) if context_dim > 0 else None
        self.gaussian = GaussianHead(hidden, latent_dim)

    def forward(self, features: Tensor, context: Tensor | None = None) -> GaussianLatent:
        hidden = self.features(features.flatten(start_dim=1))
        if self.context is not None and context is not None:
            hidden = hidden + self.context(context)
        latent: GaussianLatent = self.gaussian(F.silu(hidden))
        return latent


# ---------------------------------------------------------------------- the way out


class VAEDecoder(nn.Module):
    """``logit_probs, means, log_scales, coeffs = decoder(z)``: latents to a mixture of logistics a pixel.

    **Skips** are off unless they are passed. They show the decoder the very image that it is to return, and what it
    reads there it need not read from z: a decoder trained with them alone is useless without, where z is predicted or
    drawn. In training they are therefore withheld, all of them at once, from each image with a probability of
    ``skip_dropout``, so that ``decode(z)`` stays trained.

    **Attention maps** (B, K, h, w) say where: slot k is a linear map of z to the features of an object, and map k
    weighs those features at each of the positions of C4, where their sum over k joins the maps that are being decoded.
    To swap two maps is to swap the places of two objects. Without maps, nothing is added.

    Args:
        latent_dim: D.
        image_channels: C.
        base_channels: Channels at half the resolution; as the encoder's if its skips are to fit.
        num_mixtures: Logistics a pixel is a mixture of.
        frame_channels: Channels of each frame of a stack, 3 or 1; 3 if C is a multiple of it, else 1, if omitted.
        attention_maps: The most maps that are understood; fewer belong to the first slots. 0 for none.
        skip_levels: Levels whose skips are understood.
        skip_dropout: Probability, for each image in training, of being decoded without the skips that were passed.
        image_size: (H, W) of images where a call says nothing else.
        grid: Positions that z is projected to; C6 of another size is interpolated from them.

    Attributes:
        mdl_head: The last layer, a :class:`~rl_ae.logistic_mixture.LogisticMixtureHead`.

    Raises:
        ValueError: If a number is out of range or a level unknown.
    """

    def __init__(
        self,
        latent_dim: int = 36,
        image_channels: int = 3,
        base_channels: int = 32,
        num_mixtures: int = 10,
        frame_channels: int | None = None,
        *,
        attention_maps: int = 8,
        skip_levels: Sequence[str] = LEVELS,
        skip_dropout: float = 0.5,
        image_size: Size = (64, 64),
        grid: Size = GRID,
    ) -> None:
        super().__init__()
        _check_positive(latent_dim=latent_dim, image_channels=image_channels, base_channels=base_channels)
        _check_positive(num_mixtures=num_mixtures)
        _check_grid(grid)
        _check_size(image_size)
        check_levels(skip_levels)
        if attention_maps < 0:
            raise ValueError(f"attention_maps must be ≥ 0, got {attention_maps}")
        if not 0.0 <= skip_dropout <= 1.0:
            raise ValueError(f"skip_dropout must be a probability in [0, 1], got {skip_dropout}")
        self.latent_dim, self.image_channels, self.base_channels = latent_dim, image_channels, base_channels
        self.frame_channels = count_frame_channels(image_channels, frame_channels)
        self.attention_maps, self.skip_dropout = attention_maps, skip_dropout
        self.image_size, self.grid = image_size, grid

        channels = level_channels(base_channels)
        coarse_to_fine = LEVELS[::-1]
        widths = dict(
            zip(coarse_to_fine, [channels["C6"], *(channels[level] for level in coarse_to_fine)], strict=False)
        )
        self.project = nn.Linear(latent_dim, channels["C6"] * grid[0] * grid[1])
        self.skips = nn.ModuleDict(
            {
                level: nn.Sequential(
                    *normalized(channels[level]), nn.Conv2d(channels[level], widths[level], 1, bias=False)
                )
                for level in skip_levels
            }
        )
        self.slots = nn.Linear(latent_dim, attention_maps * widths[ATTENTION_LEVEL]) if attention_maps > 0 else None
        self.blocks = nn.ModuleDict({level: ResidualBlock(widths[level], channels[level]) for level in coarse_to_fine})
        # four numbers a position, a pixel each, in place of a convolution at full resolution (arXiv 1609.05158)
        self.end = nn.Sequential(
            *normalized(base_channels),
            nn.Conv2d(base_channels, 4 * base_channels, kernel_size=3, padding=1),
            nn.PixelShuffle(2),
            nn.SiLU(),
        )
        self.mdl_head = LogisticMixtureHead(base_channels, image_channels, num_mixtures, self.frame_channels)

    def forward(
        self,
        z: Tensor,
        skips: Mapping[str, Tensor] | None = None,
        attention_map: Tensor | None = None,
        size: Size | None = None,
    ) -> MixtureParameters:
        """Decode latents (B, D) or (B, T, D).

        Args:
            z: The latents.
            skips: Some levels' maps of the images that are decoded, as :meth:`VAEEncoder.encode` returns them.
            attention_map: (B, K, h, w) or (B, T, K, h, w), where h×w are the positions of C4: 8×8 for 64×64 images.
            size: (H, W) of the images; ``image_size`` if omitted.

        Returns:
            ``(logit_probs, means, log_scales, coeffs)``, (B, C, K, H, W) or (B, T, C, K, H, W) each.

        Raises:
            ValueError: If a shape is wrong, or a level unknown or not understood; with the expected and the actual one.
        """
        lead = self._check_latents(z)
        size = self.image_size if size is None else size
        _check_size(size)
        sizes = level_sizes(size)
        skips = self._flat_skips(skips or {}, lead, sizes)
        z = z.flatten(end_dim=-2)
        attended = self._attended(z, attention_map, lead, sizes[ATTENTION_LEVEL])

        maps = self.project(z).unflatten(1, (-1, *self.grid)).contiguous(memory_format=torch.channels_last)
        if self.grid != sizes["C6"]:
            maps = F.interpolate(maps, sizes["C6"], mode="bilinear", align_corners=False)
        kept = torch.rand(len(z), 1, 1, 1, device=z.device) >= self.skip_dropout if skips and self.training else None
        for level, block in self.blocks.items():
            if level != "C6":
                maps = crop_to(F.interpolate(maps, scale_factor=2, mode="nearest"), sizes[level])
            if level in skips:
                skip = self.skips[level](skips[level])
                maps = maps + (skip if kept is None else kept * skip)
            if level == ATTENTION_LEVEL and attended is not None:
                maps = maps + attended
            maps = block(maps)
        parameters: MixtureParameters = self.mdl_head(crop_to(self.end(maps), size))
        return MixtureParameters(*(values.unflatten(0, lead) for values in parameters))

    def likelihood(
        self,
        z: Tensor,
        skips: Mapping[str, Tensor] | None = None,
        attention_map: Tensor | None = None,
        size: Size | None = None,
    ) -> LogisticMixture:
        """What the decoder says about the images of latents (B, D); arguments and errors as :meth:`forward`."""
        return self.mdl_head.likelihood(*self(z, skips, attention_map, size))

    def decode(
        self,
        z: Tensor,
        skips: Mapping[str, Tensor] | None = None,
        attention_map: Tensor | None = None,
        size: Size | None = None,
    ) -> Tensor:
        """The mean images (B, C, H, W) of latents (B, D); arguments and errors as :meth:`forward`."""
        return self.likelihood(z, skips, attention_map, size).mean

    def _check_latents(self, z: Tensor) -> tuple[int, ...]:
        """(B,) or (B, T)."""
        if z.ndim not in (2, 3) or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"expected latents of shape (B, {self.latent_dim}) or (B, T, {self.latent_dim}), got {tuple(z.shape)}"
            )
        return tuple(z.shape[:-1])

    def _flat_skips(
        self, skips: Mapping[str, Tensor], lead: tuple[int, ...], sizes: Mapping[str, Size]
    ) -> dict[str, Tensor]:
        """Skips (B, C, h, w) or (B·T, C, h, w)."""
        check_levels(list(skips))
        if unused := [level for level in skips if level not in self.skips]:
            raise ValueError(
                f"this decoder was built for skips of {list(self.skips)}, got {unused} too: see its skip_levels"
            )
        channels = level_channels(self.base_channels)
        for level, skip in skips.items():
            expected = (*lead, channels[level], *sizes[level])
            if skip.shape != expected:
                raise ValueError(
                    f"expected {level} of shape {expected}, got {tuple(skip.shape)}: skips are of the images that are "
                    "decoded, from an encoder with the same base_channels"
                )
        return {level: skip.flatten(end_dim=-4) for level, skip in skips.items()}

    def _attended(self, z: Tensor, attention_map: Tensor | None, lead: tuple[int, ...], grid: Size) -> Tensor | None:
        """The slots' features where the maps put them, (B, F, h, w), or nothing without maps."""
        if attention_map is None:
            return None
        if self.slots is None:
            raise ValueError(
                "this decoder was built without attention (attention_maps=0), got maps of shape "
                f"{tuple(attention_map.shape)}"
            )
        most, shape = self.attention_maps, tuple(attention_map.shape)
        if (
            attention_map.ndim != len(lead) + 3
            or shape[:-3] != lead
            or shape[-2:] != grid
            or not 1 <= shape[-3] <= most
        ):
            expected = ", ".join(map(str, (*lead, f"1 ≤ K ≤ {most}", *grid)))
            raise ValueError(f"expected attention maps of shape ({expected}), the grid of C4, got {shape}")
        weights = attention_map.flatten(end_dim=-4)  # (B, K, h, w)
        features = self.slots(z).unflatten(1, (most, -1))[:, : weights.shape[1]]  # (B, K, F)
        return torch.einsum("bkf,bkhw->bfhw", features, weights.to(features.dtype))


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be ≥ 1, got {number}")


def _check_grid(grid: Size) -> None:
    if min(grid) < 1:
        raise ValueError(f"grid must be positions ≥ 1, got {grid}")


def _check_size(size: Size) -> None:
    if min(size) < MIN_IMAGE_SIZE:
        raise ValueError(f"images must have at least {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE} pixels, got a size of {size}")


# ---------------------------------------------------------------------- both


class MixtureOutput(nn.Module):
    """What a :class:`VAEDecoder` returned, as a likelihood.

    Args:
        frame_channels: 3 or 1.
    """

    def __init__(self, frame_channels: int) -> None:
        super().__init__()
        self.frame_channels = frame_channels

    def forward(self, parameters: MixtureParameters) -> LogisticMixture:
        return LogisticMixture(*parameters, self.frame_channels)


class PyramidVAE(VAE):
    """:class:`VAEEncoder` and :class:`VAEDecoder` as one autoencoder, for images of one size.

    Without context, skips or attention: everything that is known of an image goes through its latent. Images are
    multiples of 1/255, and the loss is their exact log-probability, in nats, and the squared error of their mean.
    """

    config_type: ClassVar[type[PyramidConfig]] = PyramidConfig
    dimensions: ClassVar[tuple[int, ...]] = (3,)

    @classmethod
    def make_encoder(cls, config: PyramidConfig) -> VAEEncoder:
        channels, *size = cls.image_shape(config)
        return VAEEncoder(
            config.latent_dim,
            context_dim=0,
            image_channels=channels,
            base_channels=config.base_channels,
            grid=level_sizes((size[0], size[1]))["C6"],
            centre=config.input_centre,
        )

    @classmethod
    def make_decoder(
        cls, config: PyramidConfig, encoder: Encoder, skip_levels: Sequence[str] = (), skip_dropout: float = 0.0
    ) -> VAEDecoder:
        channels, *size = cls.image_shape(config)
        return VAEDecoder(
            config.latent_dim,
            channels,
            config.base_channels,
            config.num_mixtures,
            config.frame_channels,
            attention_maps=0,
            skip_levels=skip_levels,
            skip_dropout=skip_dropout,
            image_size=(size[0], size[1]),
            grid=level_sizes((size[0], size[1]))["C6"],
        )

    @classmethod
    def make_output(cls, config: PyramidConfig) -> MixtureOutput:
        return MixtureOutput(count_frame_channels(cls.image_shape(config)[0], config.frame_channels))
