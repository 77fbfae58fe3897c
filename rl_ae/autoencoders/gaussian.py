"""Variational autoencoders: the latent is a diagonal Gaussian."""

import dataclasses
import math
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from rl_ae.autoencoders.base import Autoencoder, Encoder
from rl_ae.configs import ConvVAEConfig, GaussianConfig, VAEConfig, WorldModelsConfig
from rl_ae.latents import GaussianLatent
from rl_ae.likelihoods import LikelihoodHead
from rl_ae.losses.reconstruction import squared_error
from rl_ae.networks import (
    ConvMirror,
    ConvTrunk,
    GaussianHead,
    VectorMirror,
    VectorTrunk,
    WorldModelsDecoder,
    conv_output_size,
    initialize_kaiming,
    initialize_xavier,
    mlp,
)


class GaussianOutput(NamedTuple):
    """``(reconstruction, mu, logvar)``: what a variational autoencoder's forward returns.

    Attributes:
        reconstruction: (B, C, H, W) or (B, N), the shape of the input.
        mu: (B, D).
        logvar: (B, D).
    """

    reconstruction: Tensor
    mu: Tensor
    logvar: Tensor


class VAE(Autoencoder):
    """What variational autoencoders share (Kingma & Welling, arXiv 1312.6114).

    ``forward`` decodes a sample in training and the mean in evaluation.
    """

    def encode(self, observations: Tensor) -> GaussianLatent:
        """Encode observations (B, ...) to ``(mu, logvar)``, (B, D) each."""
        latent: GaussianLatent = super().encode(observations)
        return latent

    def forward(self, observations: Tensor, step: int = 0) -> GaussianOutput:
        """Reconstruct observations; ``step`` has no effect."""
        reconstruction, latent = self.decode_draw(observations, step)
        return GaussianOutput(reconstruction, *latent)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        """A sample μ + σ ε in training, μ in evaluation, (B, D)."""
        latent = GaussianLatent(mu, logvar)
        return self.draw(latent) if self.training else latent.mode

    def sample(
        self, num_samples: int, device: torch.device | str | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Decode draws of the prior: mean reconstructions (``num_samples``, ...), without gradients.

        Args:
            num_samples: How many.
            device: Where to leave them; the model's own device if omitted.
            generator: Of the draws, on the CPU; torch's global one if omitted.

        Raises:
            ValueError: If ``num_samples`` is below 1.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be ≥ 1, got {num_samples}")
        parameter = next(self.parameters())
        z = torch.randn(num_samples, self.latent_dim, generator=generator).to(parameter)
        with torch.no_grad():
            images = self.decode(z)
        return images if device is None else images.to(device)


class PlainVAE(VAE):
    """A variational autoencoder of a trunk, linear layers to the latent and back, and a likelihood by name."""

    config_type: ClassVar[type[GaussianConfig]] = VAEConfig

    @classmethod
    @abstractmethod
    def make_trunk(cls, config: Any) -> ConvTrunk | VectorTrunk:
        """A new trunk."""

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialise one layer, trunk's, head's or decoder's; PyTorch's own initialisation unless a variant has one."""

    @classmethod
    def make_encoder(cls, config: GaussianConfig) -> Encoder:
        trunk = cls.make_trunk(config)
        hidden = config.hidden if isinstance(trunk, ConvTrunk) else ()
        encoder = Encoder(trunk, GaussianHead(trunk.out_features, config.latent_dim, hidden), config.latent_dim)
        encoder.apply(cls.initialize)
        return encoder

    @classmethod
    def make_output(cls, config: Any) -> nn.Module:
        images = len(cls.check_shape(config.observation_shape)) == 3
        name = config.likelihood or ("bernoulli" if images else "squared_error")
        return LikelihoodHead(name, config.scale, squash=images)


class BurgessVAE(PlainVAE):
    """The VAE of Burgess et al. (arXiv 1804.03599), of β-VAE and its successors on sprites.

    Four convolutions of 32 filters, kernel 4, stride 2, two linear layers of 256; the decoder mirrors them: about half
    a million parameters at 64×64. Images too small for four convolutions get fewer: as many as leave 3 positions a
    side, as the reference implementations do at 32×32.
    """

    dimensions: ClassVar[tuple[int, ...]] = (3,)

    initialize = staticmethod(initialize_kaiming)

    @classmethod
    def make_trunk(cls, config: GaussianConfig) -> ConvTrunk:
        shape, conv = cls.image_shape(config), config.conv
        depth, side = 0, min(shape[1:])
        for stride in conv.strides:
            side = conv_output_size(side, conv.kernel_size, stride, conv.padding)
            if side < 3:
                break
            depth += 1
        depth = max(depth, 1)
        fitting = dataclasses.replace(conv, filters=conv.filters[:depth], strides=conv.strides[:depth])
        return ConvTrunk(shape, **vars(fitting), centre=config.input_centre)

    @classmethod
    def make_decoder(cls, config: GaussianConfig, encoder: Encoder) -> nn.Module:
        assert isinstance(encoder.trunk, ConvTrunk)
        project = mlp((config.latent_dim, *reversed(config.hidden), encoder.trunk.out_features))
        decoder = ConvMirror(encoder.trunk, project, cls.image_shape(config), centre=0.0)
        decoder.apply(cls.initialize)
        return decoder


class ConvolutionalVAE(PlainVAE):
    """What VAEs share that see images through convolutions with GroupNorm and decode through their mirror.

    GroupNorm instead of BatchNorm: an image's latent does not depend on its batch mates, and looking at one changes
    nothing.
    """

    dimensions: ClassVar[tuple[int, ...]] = (3,)

    initialize = staticmethod(initialize_xavier)

    @classmethod
    def decoded_maps(cls, config: Any) -> int:
        """How many maps (B, ·, H, W) the decoder returns: C, the raw means of pixels, unless a variant reads more."""
        channels, _, _ = cls.image_shape(config)
        return channels

    @classmethod
    def make_trunk(cls, config: GaussianConfig) -> ConvTrunk:
        return ConvTrunk(cls.image_shape(config), **vars(config.conv), centre=config.input_centre, normalize=True)

    @classmethod
    def make_decoder(cls, config: GaussianConfig, encoder: Encoder) -> nn.Module:
        assert isinstance(encoder.trunk, ConvTrunk)
        widths = (config.latent_dim, *reversed(config.hidden))
        project = nn.Sequential(mlp(widths), nn.Linear(widths[-1], encoder.trunk.out_features))
        shape, maps = cls.image_shape(config), cls.decoded_maps(config)
        decoder = ConvMirror(encoder.trunk, project, shape, centre=0.0, channels=maps)
        decoder.apply(cls.initialize)
        return decoder


class ConvVAE(ConvolutionalVAE):
    """A convolutional VAE for images of any size: 32, 64, 128, 256 filters, kernel 4, stride 2, sigmoid output.

    At 64×64 the maps are 32, 16, 8 and 4 pixels wide, on the way in and on the way out, and 1,778,819 parameters are
    trained.

    Args:
        latent_size: D.
        input_channels: C.
        image_size: (H, W).
        config: Instead of the three.
        encoder: The encoder to decode from; a new one if omitted.
    """

    config_type: ClassVar[type[GaussianConfig]] = ConvVAEConfig

    def __init__(
        self,
        latent_size: int = 32,
        input_channels: int = 3,
        image_size: tuple[int, int] = (64, 64),
        *,
        config: ConvVAEConfig | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        if config is None:
            config = ConvVAEConfig(observation_shape=(input_channels, *image_size), latent_dim=latent_size)
        super().__init__(config=config, encoder=encoder)

    def compute_loss(
        self, x: Tensor, reconstruction: Tensor, mu: Tensor, logvar: Tensor, beta: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(total, reconstruction, kl)``: squared error + β KL, both summed over an image and averaged over the batch.

        The squared error is the log-likelihood of a Gaussian with variance ½, so that β = 1 is its ELBO.

        Args:
            x: (B, C, H, W).
            reconstruction: (B, C, H, W).
            mu: (B, D).
            logvar: (B, D).
            beta: β ≥ 0.

        Raises:
            ValueError: If β is negative or the shapes do not agree.
        """
        return _squared_error_elbo(x, reconstruction, mu, logvar, beta)

    @torch.no_grad()
    def get_latent_representation(self, x: Tensor) -> Tensor:
        """The mean of the latent, (B, D), without gradients; the same in training and evaluation."""
        return self.encode(x).mu


class WorldModelsVAE(PlainVAE):
    """The VAE of World Models (Ha & Schmidhuber, arXiv 1803.10122), for images of any size.

    Valid convolutions of 32, 64, 128, 256 filters, kernel 4, stride 2; transposed ones of kernels 5, 5, 6, 6 back.
    4,348,547 parameters at 64×64×3. Images under 46 pixels are padded for the encoder.
    """

    config_type: ClassVar[type[GaussianConfig]] = WorldModelsConfig
    dimensions: ClassVar[tuple[int, ...]] = (3,)

    initialize = staticmethod(initialize_xavier)

    @classmethod
    def make_trunk(cls, config: GaussianConfig) -> ConvTrunk:
        return ConvTrunk(cls.image_shape(config), **vars(config.conv), centre=config.input_centre)

    @classmethod
    def make_decoder(cls, config: GaussianConfig, encoder: Encoder) -> nn.Module:
        decoder = WorldModelsDecoder((config.latent_dim, *reversed(config.hidden)), cls.image_shape(config))
        decoder.apply(cls.initialize)
        return decoder


class VectorVAE(PlainVAE):
    """VAE for vectors: two linear layers with ReLU on each side, without an activation at the end.

    With its defaults 512 → 400 → 400 → 256 and back, 1,039,424 parameters.

    Args:
        input_dim: N, features of an observation.
        latent_dim: D.
        hidden_dim: Width of the hidden layers.
        config: Instead of the three.
        encoder: The encoder to decode from; a new one if omitted.
    """

    dimensions: ClassVar[tuple[int, ...]] = (1,)

    def __init__(
        self,
        input_dim: int = 512,
        latent_dim: int = 256,
        hidden_dim: int = 400,
        *,
        config: GaussianConfig | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        if config is None:
            config = VAEConfig(
                observation_shape=(input_dim,), latent_dim=latent_dim, vector_hidden=(hidden_dim, hidden_dim)
            )
        super().__init__(config=config, encoder=encoder)

    @classmethod
    def make_trunk(cls, config: GaussianConfig) -> VectorTrunk:
        (input_dim,) = cls.check_shape(config.observation_shape)
        return VectorTrunk(input_dim, config.vector_hidden)

    @classmethod
    def make_decoder(cls, config: GaussianConfig, encoder: Encoder) -> nn.Module:
        assert isinstance(encoder.trunk, VectorTrunk)
        return VectorMirror(encoder.trunk, config.latent_dim)

    @property
    def input_dim(self) -> int:
        """N, features of an observation."""
        return self.observation_shape[0]

    @property
    def hidden_dim(self) -> int:
        """Width of the first hidden layer."""
        hidden: tuple[int, ...] = self.config.vector_hidden
        return hidden[0]

    def loss_function(
        self, reconstruction: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, beta: float = 1.0
    ) -> dict[str, Tensor]:
        """``{"loss", "reconstruction_loss", "kl_divergence"}``: squared error + β KL, summed over features.

        Both are summed over an observation and averaged over the batch. The squared error is the log-likelihood of a
        Gaussian with variance ½, so that β = 1 is its ELBO; a mean over the N features instead would make β = 1 weigh
        like N.

        Args:
            reconstruction: (B, N).
            x: (B, N).
            mu: (B, D).
            logvar: (B, D).
            beta: β ≥ 0.

        Raises:
            ValueError: If β is negative or the shapes do not agree.
        """
        total, error, kl = _squared_error_elbo(x, reconstruction, mu, logvar, beta)
        return {"loss": total, "reconstruction_loss": error, "kl_divergence": kl}


def _squared_error_elbo(
    x: Tensor, reconstruction: Tensor, mu: Tensor, logvar: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not 0.0 <= beta < math.inf:
        raise ValueError(f"beta must be ≥ 0 and finite, got {beta}")
    error = squared_error(reconstruction, x)
    kl = GaussianLatent(mu, logvar).kl().sum(dim=1).mean()
    return error + beta * kl, error, kl
