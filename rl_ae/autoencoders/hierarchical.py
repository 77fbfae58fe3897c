"""Hierarchical variational autoencoders: the latent is groups of Gaussians on ever finer grids."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rl_ae.autoencoders.base import Autoencoder, Encoder
from rl_ae.configs import HierarchicalConfig
from rl_ae.latents import Descent, HierarchicalLatent, ResidualGaussian, TopDown, split_groups
from rl_ae.likelihoods import LikelihoodHead
from rl_ae.networks import TransposedConv, group_norm, initialize_kaiming
from rl_ae.pixels import crop_to
from rl_ae.residual import SqueezeExcitation


class HierarchicalOutput(NamedTuple):
    """``(reconstruction, features, top_down)``: what a hierarchical autoencoder's forward returns.

    Attributes:
        reconstruction: (B, C, H, W), the shape of the input.
        features: Of the observations, a map for each scale, coarsest first.
        top_down: Priors and posteriors of the groups.
    """

    reconstruction: Tensor
    features: tuple[Tensor, ...]
    top_down: TopDown


class HierarchicalVAE(Autoencoder):
    """A hierarchical VAE for images of any size, in the manner of NVAE (Vahdat & Kautz, arXiv 2007.03898).

    Residual cells with squeeze-and-excitation lead from the image to features on ever coarser grids, and from a learned
    constant back down through the groups: the first has the prior N(0, 1), each further one a prior that depends on
    what was drawn above it, and a posterior relative to that prior that depends on the image too.

    The latent's ``mode`` and its samples hold all groups, coarsest first and flattened: all that the decoder reads, and
    all that a policy sees. At 64×64 these are two groups of 4×2×2, two of 4×4×4 and one of 4×8×8: 416 numbers.

    Unlike NVAE, the way down through the groups belongs to the encoder, and the decoder has one of its own: so an
    encoder is whole without a decoder, as an agent's target is, and no loss of a critic moves the decoder. GroupNorm
    takes the place of BatchNorm; spectral regularisation and flows are left out.
    """

    config_type: ClassVar[type[HierarchicalConfig]] = HierarchicalConfig
    dimensions: ClassVar[tuple[int, ...]] = (3,)

    def encode(self, observations: Tensor) -> HierarchicalLatent:
        """Encode images (B, C, H, W); nothing is drawn yet."""
        latent: HierarchicalLatent = super().encode(observations)
        return latent

    def forward(self, observations: Tensor, step: int = 0) -> HierarchicalOutput:
        """Reconstruct observations; ``step`` has no effect."""
        reconstruction, latent = self.decode_draw(observations, step)
        return HierarchicalOutput(reconstruction, *latent)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Decode draws of the prior: mean reconstructions (``num_samples``, C, H, W), without gradients.

        Args:
            num_samples: How many.
            temperature: What every group's σ is multiplied by; below 1 the images are more typical and less diverse.
            device: Where to leave them; the model's own device if omitted.
            generator: Of the draws, on the model's device; torch's global one if omitted.

        Raises:
            ValueError: If ``num_samples`` is below 1 or the temperature negative.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be ≥ 1, got {num_samples}")
        if not 0.0 <= temperature < math.inf:
            raise ValueError(f"temperature must be ≥ 0 and finite, got {temperature}")
        draw = self.groups.prior(num_samples, lambda _, group: group.sample(generator, temperature))
        images = self.decode(draw.z)
        return images if device is None else images.to(device)

    @torch.no_grad()
    def log_likelihood(self, observations: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        r"""Estimate of log p(x) in nats, (B,), without gradients: importance-weighted, a lower bound on average.

        :math:`\log \frac1K \sum_k p(x|z_k)\,p(z_k) / q(z_k|x)` with draws :math:`z_k` of the posterior. Burda et al.,
        arXiv 1509.00519, eq. 8; NVAE reports it. With the likelihood ``"squared_error"`` a constant is missing, and
        with ``"optimal_gaussian"`` σ is the batch's for each k, so that images are to be compared within a batch alone.

        Args:
            observations: (B, C, H, W) in [0, 1].
            samples: K ≥ 1; the bound tightens with it, the memory does not grow.
            generator: Of the draws, on the model's device; torch's global one if omitted.

        Raises:
            ValueError: If ``samples`` is below 1.
        """
        if samples < 1:
            raise ValueError(f"samples must be ≥ 1, got {samples}")
        latent = self.encode(observations)
        weights = []
        for _ in range(samples):
            z = latent.sample(generator)
            weights.append(self.likelihood(z).log_prob(observations) + latent.log_ratio(z))
        return torch.logsumexp(torch.stack(weights), dim=0) - math.log(samples)

    @property
    def groups(self) -> "Groups":
        """Priors and posteriors."""
        assert isinstance(self.encoder.head, BottomUp)
        return self.encoder.head.groups

    @classmethod
    def make_encoder(cls, config: HierarchicalConfig) -> Encoder:
        trunk = HierarchicalTrunk(cls.image_shape(config), config.base_channels, config.halvings, config.input_centre)
        head = BottomUp(trunk, config.groups, config.latent_channels)
        return Encoder(trunk, head, sum(math.prod(shape) for shape in head.groups.shapes))

    @classmethod
    def make_decoder(cls, config: HierarchicalConfig, encoder: Encoder) -> nn.Module:
        assert isinstance(encoder.trunk, HierarchicalTrunk) and isinstance(encoder.head, BottomUp)
        return HierarchicalDecoder(encoder.trunk, encoder.head.groups)

    @classmethod
    def make_output(cls, config: HierarchicalConfig) -> LikelihoodHead:
        return LikelihoodHead(config.likelihood, config.scale, squash=True)


# ---------------------------------------------------------------------- from the image up


class HierarchicalTrunk(nn.Module):
    """Convolutions of stride 2 with residual cells in between: (B, C, H, W) in [0, 1] → (B, F, h, w).

    Args:
        observation_shape: (C, H, W).
        base_channels: Channels after the first convolution; after the others there are twice as many.
        halvings: Convolutions; each leaves half the positions a side, rounded up.
        centre: Subtracted from the images.
    """

    def __init__(
        self, observation_shape: tuple[int, int, int], base_channels: int, halvings: int, centre: float
    ) -> None:
        super().__init__()
        self.centre = centre
        #: (channels, height, width) before the first convolution and after each one.
        self.shapes = [observation_shape]
        layers: list[nn.Module] = []
        for halving in range(halvings):
            channels, height, width = self.shapes[-1]
            self.shapes.append((base_channels if halving == 0 else 2 * base_channels, *halved(height, width)))
            layers += [halve(channels, self.shapes[-1][0]), between(self.shapes[-1][0], halving + 1)]
        self.layers = nn.Sequential(*layers)
        self.layers.apply(initialize_kaiming)
        self.out_features = math.prod(self.shapes[-1])

    def forward(self, images: Tensor) -> Tensor:
        if self.centre != 0.0:
            images = images - self.centre
        maps: Tensor = self.layers(images.contiguous(memory_format=torch.channels_last))
        return maps


class BottomUp(nn.Module):
    """The trunk's maps (B, F, h, w), and what is left of them on ever coarser grids, to a hierarchical latent.

    Args:
        trunk: The trunk in front, whose last grid is the finest groups'.
        groups: Groups on each grid, coarsest first.
        latent_channels: D of each group.
    """

    def __init__(self, trunk: HierarchicalTrunk, groups: Sequence[int], latent_channels: int) -> None:
        super().__init__()
        channels, *sides = trunk.shapes[-1]
        grids = [(sides[0], sides[1])]
        for _ in groups[1:]:
            grids.insert(0, halved(*grids[0]))
        self.halvings = nn.ModuleList(
            nn.Sequential(halve(channels, channels), ResidualCell(channels)) for _ in groups[1:]
        )
        self.halvings.apply(initialize_kaiming)
        self.groups = Groups(grids, groups, channels, latent_channels)

    def forward(self, features: Tensor) -> HierarchicalLatent:
        maps = [features]
        for halving in self.halvings:
            maps.insert(0, halving(maps[0]))
        # losses exponentiate and subtract: what autocast rounded is not rounded further
        return HierarchicalLatent(tuple(each.to(self.groups.constant.dtype) for each in maps), self.groups)


# ---------------------------------------------------------------------- down through the groups


class Groups(nn.Module):
    """Priors and posteriors of the groups, each given what was chosen for those above it.

    Args:
        grids: (h, w) of each scale, coarsest first.
        groups: Groups at each scale.
        channels: Of the features and of the state that is handed down.
        latent_channels: D of each group.
    """

    def __init__(
        self, grids: Sequence[tuple[int, int]], groups: Sequence[int], channels: int, latent_channels: int
    ) -> None:
        super().__init__()
        #: Of each group the scale, and (D, h, w).
        self.scales = [scale for scale, count in enumerate(groups) for _ in range(count)]
        self.shapes = [(latent_channels, *grids[scale]) for scale in self.scales]
        #: The state above the first group, (1, C, h, w).
        self.constant = nn.Parameter(torch.randn(1, channels, *grids[0]))
        self.priors = nn.ModuleList(Parameters(channels, latent_channels, kernel_size=1) for _ in self.scales[1:])
        self.posteriors = nn.ModuleList(Parameters(2 * channels, latent_channels, kernel_size=3) for _ in self.scales)
        self.steps = nn.ModuleList(
            StepDown(channels, latent_channels, None if scale == above else grids[scale])
            for above, scale in itertools.pairwise(self.scales)
        )

    def forward(self, features: Sequence[Tensor], choose: Callable[[int, ResidualGaussian], Tensor]) -> Descent:
        return self._descend(features[0].shape[0], features, choose)  # not len, which a traced graph would keep

    def prior(self, batch: int, choose: Callable[[int, ResidualGaussian], Tensor]) -> Descent:
        """Go down without an image: every posterior is its prior.

        Args:
            batch: B.
            choose: From a group's number and its distributions to z, (B, D, h, w).
        """
        return self._descend(batch, None, choose)

    def _descend(
        self, batch: int, features: Sequence[Tensor] | None, choose: Callable[[int, ResidualGaussian], Tensor]
    ) -> Descent:
        state = self.constant.expand(batch, -1, -1, -1)
        nothing = state.new_zeros(())
        groups: list[ResidualGaussian] = []
        chosen: list[Tensor] = []
        # the draw, and the KL on the way to it, have to agree to the last digit, whoever asks for which
        with torch.autocast(state.device.type, enabled=False):
            for index, (scale, shape) in enumerate(zip(self.scales, self.shapes, strict=True)):
                prior = posterior = (nothing.expand(batch, *shape), nothing.expand(batch, *shape))
                if index > 0:
                    state = self.steps[index - 1](state, chosen[-1])
                    prior = self.priors[index - 1](state)
                if features is not None:
                    posterior = self.posteriors[index](torch.cat([features[scale], state], dim=1))
                groups.append(ResidualGaussian(*prior, *posterior))
                chosen.append(choose(index, groups[-1]))
        return Descent(torch.cat([z.flatten(start_dim=1) for z in chosen], dim=1), tuple(groups))


class Parameters(nn.Module):
    """Maps (B, C, h, w) to two of (B, D, h, w): a mean and a log σ, or how far they move.

    Both are bounded smoothly to (-5, 5), ``5 tanh(x / 5)``, as in the code of NVAE: exponentials stay finite, and no
    gradient is cut off.
    """

    BOUND = 5.0

    def __init__(self, channels: int, latent_channels: int, kernel_size: int) -> None:
        super().__init__()
        hidden = nn.Conv2d(channels, 2 * latent_channels, kernel_size, padding=kernel_size // 2)
        self.layers = nn.Sequential(nn.SiLU(), hidden)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        bounded = self.BOUND * torch.tanh(self.layers(maps) / self.BOUND)
        mu, log_sigma = bounded.chunk(2, dim=1)
        return mu, log_sigma


class StepDown(nn.Module):
    """The state below a group: what was chosen for it joins the state (B, C, h, w), and a finer grid follows if given.

    Args:
        channels: C.
        latent_channels: D.
        grid: (h, w) of the next group if it is another.
    """

    def __init__(self, channels: int, latent_channels: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.merge = nn.Conv2d(latent_channels, channels, kernel_size=1)
        self.cell = ResidualCell(channels)
        self.refine = nn.Identity() if grid is None else Refine(channels, channels, grid)

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        below: Tensor = self.refine(self.cell(state + self.merge(z)))
        return below


# ---------------------------------------------------------------------- down to the image


class HierarchicalDecoder(nn.Module):
    """All groups (B, F) → (B, C, H, W), linear at the end: each grid's groups join what the coarser ones have become.

    Args:
        trunk: The trunk to mirror; only its shapes are read.
        groups: The groups to decode; only their shapes are read.
    """

    def __init__(self, trunk: HierarchicalTrunk, groups: Groups) -> None:
        super().__init__()
        channels = trunk.shapes[-1][0]
        self.shapes, self.scales = list(groups.shapes), list(groups.scales)
        self.merges, self.cells, self.refinements = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for scale in range(self.scales[-1] + 1):
            of_scale = [shape for shape, own in zip(self.shapes, self.scales, strict=True) if own == scale]
            self.merges.append(nn.Conv2d(sum(shape[0] for shape in of_scale), channels, kernel_size=1))
            self.cells.append(ResidualCell(channels))
            if scale > 0:
                self.refinements.append(Refine(channels, channels, of_scale[0][1:]))
        layers: list[nn.Module] = []
        for halving in reversed(range(len(trunk.shapes) - 1)):
            out_channels, height, width = trunk.shapes[halving]
            layers.append(Refine(trunk.shapes[halving + 1][0], out_channels, (height, width)))
            if halving > 0:
                layers.append(between(out_channels, halving))
        self.layers = nn.Sequential(*layers)
        self.apply(initialize_kaiming)

    def forward(self, z: Tensor) -> Tensor:
        parts = split_groups(z, self.shapes)
        state: Any = 0.0
        for scale, (merge, cell) in enumerate(zip(self.merges, self.cells, strict=True)):
            of_scale = [part for part, own in zip(parts, self.scales, strict=True) if own == scale]
            if scale > 0:
                state = self.refinements[scale - 1](state)
            state = cell(state + merge(torch.cat(of_scale, dim=1).contiguous(memory_format=torch.channels_last)))
        images: Tensor = self.layers(state)
        return images


# ---------------------------------------------------------------------- what all of them are made of


class ResidualCell(nn.Module):
    """``x + 0.1 · SE(conv(SiLU(GN(conv(SiLU(GN(x)))))))`` on maps (B, C, h, w), with 3×3 convolutions.

    The cell of NVAE's encoder (arXiv 2007.03898, Figure 3b) with GroupNorm, and the residual's weight of its code.
    """

    WEIGHT = 0.1

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [*group_norm(channels, True), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers, SqueezeExcitation(channels))

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.layers(maps)
        return maps + self.WEIGHT * residual


class Refine(nn.Module):
    """Maps to twice the positions a side, cropped to a grid that :func:`halve` led away from.

    Args:
        in_channels: Of the maps.
        out_channels: Of the finer ones.
        grid: (h, w) of the finer ones.
    """

    def __init__(self, in_channels: int, out_channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.conv = TransposedConv(in_channels, out_channels, kernel_size=4, stride=2, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        return crop_to(self.conv(maps), self.grid)


def between(channels: int, halvings: int) -> nn.Module:
    """What stands between two changes of resolution: a cell, but at half the image's, where it would cost most."""
    return nn.SiLU() if halvings == 1 else ResidualCell(channels)


def halve(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A convolution of stride 2 that leaves a grid of :func:`halved` sides."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)


def halved(height: int, width: int) -> tuple[int, int]:
    """Half of each side, rounded up."""
    return -(-height // 2), -(-width // 2)
