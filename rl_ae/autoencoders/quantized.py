"""Autoencoders whose latent is a grid of codes: SQ-VAE, VQ-VAE and finite scalar quantisation."""

import math
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rl_ae.autoencoders.base import Autoencoder, Encoder
from rl_ae.configs import FSQConfig, QuantizedConfig, SQVAEConfig, VQVAEConfig
from rl_ae.latents import QuantizedLatent, StochasticLatent
from rl_ae.likelihoods import LikelihoodHead
from rl_ae.losses.schedules import exponential_schedule
from rl_ae.networks import ConvMirror, ConvTrunk, VectorMirror, VectorTrunk, initialize_kaiming


class QuantizedOutput(NamedTuple):
    """``(reconstruction, z, quantized, indices)``: what VQ-VAE's and FSQ's forward returns.

    Attributes:
        reconstruction: (B, C, H, W) or (B, N), the shape of the input.
        z: What was quantised, (B, D, h, w).
        quantized: The codes' vectors, (B, D, h, w).
        indices: The codes' numbers, (B, h, w).
    """

    reconstruction: Tensor
    z: Tensor
    quantized: Tensor
    indices: Tensor


class StochasticOutput(NamedTuple):
    """``(reconstruction, z, variance, codebook)``: what SQ-VAE's forward returns.

    Attributes:
        reconstruction: (B, C, H, W) or (B, N), the shape of the input.
        z: What is quantised, (B, D, h, w).
        variance: σ², (B, D, h, w) or sizes of 1 where it does not vary.
        codebook: (K, D).
    """

    reconstruction: Tensor
    z: Tensor
    variance: Tensor
    codebook: Tensor


class QuantizedAutoencoder(Autoencoder):
    """What autoencoders with a grid of codes share: the trunk's map is projected to codes, and the decoder mirrors it.

    Images have a code at each position of the trunk's last map (8×8 for 64×64), vectors ``vector_codes`` in a row. The
    latent's ``mode`` is the grid of the codes' vectors, flattened.
    """

    config_type: ClassVar[type[QuantizedConfig]] = QuantizedConfig

    @classmethod
    @abstractmethod
    def make_head(cls, config: Any, trunk: ConvTrunk | VectorTrunk, grid: tuple[int, int]) -> nn.Module:
        """From the trunk's features to a latent on a grid (h, w)."""

    @staticmethod
    @abstractmethod
    def code_dim(config: Any) -> int:
        """D, the width of a code."""

    @classmethod
    def make_encoder(cls, config: QuantizedConfig) -> Encoder:
        shape = cls.check_shape(config.observation_shape)
        trunk: ConvTrunk | VectorTrunk
        if len(shape) == 1:
            trunk, grid = VectorTrunk(shape[0], config.vector_hidden), (1, config.vector_codes)
        else:
            trunk = ConvTrunk(cls.image_shape(config), **vars(config.conv), centre=config.input_centre)
            grid = trunk.shapes[-1][1:]
        trunk.apply(initialize_kaiming)
        head = cls.make_head(config, trunk, grid)
        return Encoder(trunk, head, cls.code_dim(config) * math.prod(grid))

    @classmethod
    def make_decoder(cls, config: QuantizedConfig, encoder: Encoder) -> nn.Module:
        decoder: nn.Module
        if isinstance(encoder.trunk, VectorTrunk):
            decoder = VectorMirror(encoder.trunk, encoder.latent_dim)
        else:
            assert isinstance(encoder.trunk, ConvTrunk)
            features, *grid = encoder.trunk.shapes[-1]
            project = nn.Sequential(
                nn.Unflatten(1, (cls.code_dim(config), *grid)), nn.Conv2d(cls.code_dim(config), features, 1), nn.ReLU()
            )
            decoder = ConvMirror(encoder.trunk, project, cls.image_shape(config), config.output_centre)
        decoder.apply(initialize_kaiming)
        return decoder

    @classmethod
    def make_output(cls, config: QuantizedConfig) -> LikelihoodHead:
        return LikelihoodHead(config.likelihood, config.scale)


class SQVAE(QuantizedAutoencoder):
    """SQ-VAE with a Gaussian posterior (Takida et al., arXiv 2205.07547).

    In training the decoder reads Gumbel-softmax draws at a temperature that decays with the step; in evaluation, and in
    an agent's policy, the most likely code. The codebook is trained by gradients, without moving averages.
    """

    config_type: ClassVar[type[SQVAEConfig]] = SQVAEConfig

    def temperature(self, step: int) -> float:
        """τ after a number of updates: ``max(τ₀ exp(-decay · step), floor)``."""
        config = self.config
        return exponential_schedule(
            step, config.initial_temperature, config.temperature_decay, config.minimum_temperature
        )

    def encode(self, observations: Tensor) -> StochasticLatent:
        """Encode observations (B, ...) to a distribution over codes at each position."""
        latent: StochasticLatent = super().encode(observations)
        return latent

    def draw(self, latent: StochasticLatent, step: int = 0, generator: torch.Generator | None = None) -> Tensor:
        return latent.sample(generator, self.temperature(step))

    def forward(self, observations: Tensor, step: int = 0) -> StochasticOutput:
        """Reconstruct observations; ``step`` sets the temperature in training."""
        reconstruction, latent = self.decode_draw(observations, step)
        return StochasticOutput(reconstruction, *latent)

    @staticmethod
    def code_dim(config: SQVAEConfig) -> int:
        return config.code_dim

    @classmethod
    def make_head(cls, config: SQVAEConfig, trunk: ConvTrunk | VectorTrunk, grid: tuple[int, int]) -> nn.Module:
        return StochasticHead(trunk, grid, config)


class VQVAE(QuantizedAutoencoder):
    """VQ-VAE (van den Oord et al., arXiv 1711.00937); the quantiser is vector-quantize-pytorch's.

    The codebook follows the encoder by moving averages, in :meth:`after_update` and nowhere else.

    Raises:
        ImportError: If vector-quantize-pytorch is not installed.
    """

    config_type: ClassVar[type[VQVAEConfig]] = VQVAEConfig
    whole_batch: ClassVar[str | None] = "the codebook follows the batch"

    def encode(self, observations: Tensor) -> QuantizedLatent:
        """Encode observations (B, ...) to the nearest codes."""
        latent: QuantizedLatent = super().encode(observations)
        return latent

    def forward(self, observations: Tensor, step: int = 0) -> QuantizedOutput:
        """Reconstruct observations; ``step`` has no effect."""
        latent = self.encode(observations)
        return QuantizedOutput(self.decode(latent.mode), *latent)

    def after_update(self, latent: QuantizedLatent) -> None:
        assert isinstance(self.encoder.head, VectorQuantizer)
        self.encoder.head.follow(latent.z)

    @staticmethod
    def code_dim(config: VQVAEConfig) -> int:
        return config.code_dim

    @classmethod
    def make_head(cls, config: VQVAEConfig, trunk: ConvTrunk | VectorTrunk, grid: tuple[int, int]) -> nn.Module:
        return VectorQuantizer(trunk, grid, config)


class FSQVAE(QuantizedAutoencoder):
    """Finite scalar quantisation (Mentzer et al., arXiv 2309.15505); the quantiser is vector-quantize-pytorch's.

    Raises:
        ImportError: If vector-quantize-pytorch is not installed.
    """

    config_type: ClassVar[type[FSQConfig]] = FSQConfig

    def encode(self, observations: Tensor) -> QuantizedLatent:
        """Encode observations (B, ...) to rounded coordinates."""
        latent: QuantizedLatent = super().encode(observations)
        return latent

    def forward(self, observations: Tensor, step: int = 0) -> QuantizedOutput:
        """Reconstruct observations; ``step`` has no effect."""
        latent = self.encode(observations)
        return QuantizedOutput(self.decode(latent.mode), *latent)

    @staticmethod
    def code_dim(config: FSQConfig) -> int:
        return len(config.levels)

    @classmethod
    def make_head(cls, config: FSQConfig, trunk: ConvTrunk | VectorTrunk, grid: tuple[int, int]) -> nn.Module:
        return ScalarQuantizer(trunk, grid, config)


# ---------------------------------------------------------------------- heads


class ToGrid(nn.Module):
    """A trunk's features to maps (B, D, h, w): a 1×1 convolution, or a linear layer for vectors (B, F).

    Args:
        trunk: The trunk in front.
        channels: D.
        grid: (h, w).
    """

    def __init__(self, trunk: ConvTrunk | VectorTrunk, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layers: nn.Module
        if isinstance(trunk, ConvTrunk):
            self.layers = nn.Conv2d(trunk.shapes[-1][0], channels, kernel_size=1)
        else:
            self.layers = nn.Sequential(
                nn.Linear(trunk.out_features, channels * math.prod(grid)), nn.Unflatten(1, (channels, *grid))
            )

    def forward(self, features: Tensor) -> Tensor:
        # nearest codes are decided by differences: what autocast rounded is not rounded further
        maps: Tensor = self.layers(features)
        return maps.to(next(self.parameters()).dtype)


#: ``variance`` → the dimensions of (B, D, h, w) that the encoded log-variance is averaged over.
_SHARED_DIMENSIONS: dict[int, tuple[int, ...]] = {2: (1, 2, 3), 3: (1,), 4: ()}


class StochasticHead(nn.Module):
    """SQ-VAE's head: features to a :class:`~rl_ae.latents.StochasticLatent`.

    The variance is ``exp(v) + exp(s)`` with a learned scalar s and, where it depends on the input, v from the trunk.

    Args:
        trunk: The trunk in front.
        grid: (h, w).
        config: Codes, their width, and what the variance depends on.
    """

    def __init__(self, trunk: ConvTrunk | VectorTrunk, grid: tuple[int, int], config: SQVAEConfig) -> None:
        super().__init__()
        self.to_z = ToGrid(trunk, config.code_dim, grid)
        self.to_log_variance = ToGrid(trunk, config.code_dim, grid) if config.variance in _SHARED_DIMENSIONS else None
        self.shared_dimensions = _SHARED_DIMENSIONS.get(config.variance)
        self.codebook = nn.Parameter(torch.randn(config.codes, config.code_dim))
        self.log_variance = nn.Parameter(torch.tensor(config.initial_log_variance))

    def forward(self, features: Tensor) -> StochasticLatent:
        z = self.to_z(features)
        if self.to_log_variance is None:
            encoded = torch.zeros(1, 1, 1, 1, dtype=z.dtype, device=z.device)
        else:
            encoded = self.to_log_variance(features)
            if self.shared_dimensions:
                encoded = encoded.mean(dim=self.shared_dimensions, keepdim=True)
        return StochasticLatent(z, encoded.exp() + self.log_variance.exp(), self.codebook)


class VectorQuantizer(nn.Module):
    """VQ-VAE's head: features to the nearest codes, a :class:`~rl_ae.latents.QuantizedLatent`.

    Args:
        trunk: The trunk in front.
        grid: (h, w).
        config: Codes, their width and how they follow.
    """

    def __init__(self, trunk: ConvTrunk | VectorTrunk, grid: tuple[int, int], config: VQVAEConfig) -> None:
        super().__init__()
        self.to_z = ToGrid(trunk, config.code_dim, grid)
        self.quantizer = (
            _library()
            .VectorQuantize(
                dim=config.code_dim,
                codebook_size=config.codes,
                decay=config.codebook_decay,
                threshold_ema_dead_code=config.dead_code_threshold,
                commitment_weight=0.0,  # the loss has it
                rotation_trick=False,
            )
            .eval()
        )

    def train(self, mode: bool = True) -> "VectorQuantizer":
        """Leave the library's module in evaluation: in training it would move the codebook whenever it looks."""
        super().train(mode)
        self.quantizer.eval()
        return self

    def forward(self, features: Tensor) -> QuantizedLatent:
        z = self.to_z(features)
        rows, shape = _rows(z), z.shape
        vectors, indices, _ = self.quantizer(rows)
        vectors = vectors.detach().mT.reshape(shape)
        return QuantizedLatent(z, z + (vectors - z).detach(), indices.reshape(-1, *shape[2:]))

    @torch.no_grad()
    def follow(self, z: Tensor) -> None:
        """Move the codebook towards what was quantised, (B, D, h, w)."""
        self.quantizer.train()
        self.quantizer(_rows(z))
        self.quantizer.eval()


class ScalarQuantizer(nn.Module):
    """FSQ's head: features to rounded coordinates, a :class:`~rl_ae.latents.QuantizedLatent`.

    Args:
        trunk: The trunk in front.
        grid: (h, w).
        config: Levels of each coordinate.
    """

    def __init__(self, trunk: ConvTrunk | VectorTrunk, grid: tuple[int, int], config: FSQConfig) -> None:
        super().__init__()
        self.to_z = ToGrid(trunk, len(config.levels), grid)
        self.quantizer = _library().FSQ(list(config.levels))

    def forward(self, features: Tensor) -> QuantizedLatent:
        z = self.to_z(features)
        vectors, indices = self.quantizer(_rows(z))
        return QuantizedLatent(z, vectors.mT.reshape(z.shape), indices.reshape(-1, *z.shape[2:]).long())


def _rows(z: Tensor) -> Tensor:
    """(B, D, h, w) → (B, h·w, D), as the library has it."""
    return z.flatten(start_dim=2).mT.contiguous()


def _library() -> Any:
    try:
        import vector_quantize_pytorch  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise ImportError('VQ-VAE and FSQ need vector-quantize-pytorch: pip install "rl-ae[quantized]"') from error
    return vector_quantize_pytorch
