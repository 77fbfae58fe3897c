"""Deterministic autoencoders: the latent is a point."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from rl_ae.autoencoders.base import Autoencoder, Encoder
from rl_ae.configs import AEConfig
from rl_ae.latents import DeterministicLatent
from rl_ae.networks import (
    ConvMirror,
    ConvTrunk,
    TanhProjection,
    VectorMirror,
    VectorTrunk,
    initialize,
)


class DeterministicOutput(NamedTuple):
    """``(reconstruction, z)``: what a deterministic autoencoder's forward returns.

    Attributes:
        reconstruction: (B, C, H, W) or (B, N), the shape of the input.
        z: (B, D).
    """

    reconstruction: Tensor
    z: Tensor


class DeterministicAutoencoder(Autoencoder):
    """What autoencoders share whose latent is a point.

    With a penalty on the latent's norm and on the decoder's weights, both added by the learner, they are regularised
    autoencoders (RAE, arXiv 1903.12436).
    """

    config_type: ClassVar[type[AEConfig]] = AEConfig

    def encode(self, observations: Tensor) -> DeterministicLatent:
        """Encode observations (B, ...) to points (B, D)."""
        latent: DeterministicLatent = super().encode(observations)
        return latent

    def forward(self, observations: Tensor, step: int = 0) -> DeterministicOutput:
        """Reconstruct observations; ``step`` has no effect."""
        latent = self.encode(observations)
        return DeterministicOutput(self.decode(latent.z), latent.z)


class ConvAutoencoder(DeterministicAutoencoder):
    """Convolutional autoencoder for images of any size: the networks of SAC-AE (arXiv 1910.01741, Appendix B.1).

    Four convolutions of 32 filters with strides 2, 1, 1, 1, then linear → LayerNorm → tanh; the decoder mirrors them.
    """

    dimensions: ClassVar[tuple[int, ...]] = (3,)

    @classmethod
    def make_encoder(cls, config: AEConfig) -> Encoder:
        trunk = ConvTrunk(cls.image_shape(config), **vars(config.conv), centre=config.input_centre)
        encoder = Encoder(trunk, TanhProjection(trunk.out_features, config.latent_dim), config.latent_dim)
        encoder.apply(initialize)
        return encoder

    @classmethod
    def make_decoder(cls, config: AEConfig, encoder: Encoder) -> nn.Module:
        assert isinstance(encoder.trunk, ConvTrunk)
        project = nn.Sequential(nn.Linear(config.latent_dim, encoder.trunk.out_features), nn.ReLU(inplace=True))
        decoder = ConvMirror(encoder.trunk, project, cls.image_shape(config), config.output_centre)
        decoder.apply(initialize)
        return decoder


class VectorAutoencoder(DeterministicAutoencoder):
    """Autoencoder for vectors: linear layers with ReLU, mirrored, without an activation at the end.

    Args:
        input_dim: N, features of an observation.
        latent_dim: D.
        hidden_dim: Width of the two hidden layers on each side.
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
        config: AEConfig | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        if config is None:
            config = AEConfig(
                observation_shape=(input_dim,),
                vector_hidden=(hidden_dim, hidden_dim),
                latent_dim=latent_dim,
                target_bits=None,
            )
        super().__init__(config=config, encoder=encoder)

    @classmethod
    def make_encoder(cls, config: AEConfig) -> Encoder:
        (input_dim,) = cls.check_shape(config.observation_shape)
        trunk = VectorTrunk(input_dim, config.vector_hidden)
        return Encoder(trunk, PointHead(trunk.out_features, config.latent_dim), config.latent_dim)

    @classmethod
    def make_decoder(cls, config: AEConfig, encoder: Encoder) -> nn.Module:
        assert isinstance(encoder.trunk, VectorTrunk)
        return VectorMirror(encoder.trunk, config.latent_dim)


class PointHead(nn.Module):
    """Trunk features (B, F) to a point (B, D), linearly."""

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_features, latent_dim)

    def forward(self, features: Tensor) -> DeterministicLatent:
        return DeterministicLatent(self.layer(features))
