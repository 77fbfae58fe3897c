"""Factory: a name or a config and the shape of the images, to modules and a learner."""

import math

from rl_ae.autoencoders import ConvAutoencoder, Encoder
from rl_ae.configs import CONFIGS, AutoencoderConfig, RAEConfig, named_config
from rl_ae.learner import RepresentationLearner
from rl_ae.losses import RAELoss
from rl_ae.networks import ConvMirror, ConvTrunk, TanhProjection, initialize

ObservationShape = tuple[int, int, int]


def resolve_config(autoencoder: str | AutoencoderConfig, observation_shape: ObservationShape) -> RAEConfig:
    """The config a name stands for, or the config itself, for images of one shape.

    Args:
        autoencoder: A name in :data:`~rl_ae.configs.CONFIGS` or a config.
        observation_shape: (C, H, W).

    Raises:
        ValueError: If the name is unknown or the config is for another shape.
        TypeError: If it is neither a name nor a config. A live module is refused on purpose: Stable-Baselines3 builds
            the extractor once for the actor, the critic and the target, which must not share one object.
    """
    if isinstance(autoencoder, str):
        autoencoder = named_config(autoencoder)
    if not isinstance(autoencoder, RAEConfig):
        raise TypeError(
            f"autoencoder must be a name in {sorted(CONFIGS)} or an AutoencoderConfig, got {type(autoencoder).__name__}"
        )
    return autoencoder.for_shape(observation_shape)


def create_encoder(autoencoder: str | AutoencoderConfig, observation_shape: ObservationShape) -> Encoder:
    """Trunk and head without a decoder, initialised as in SAC-AE; raises as :func:`resolve_config`."""
    config = resolve_config(autoencoder, observation_shape)
    conv = config.conv
    trunk = ConvTrunk(
        observation_shape, conv.filters, conv.kernel_size, conv.strides, conv.padding, config.input_centre
    )
    encoder = Encoder(trunk, TanhProjection(trunk.out_features, config.latent_dim), config.latent_dim)
    encoder.apply(initialize)
    return encoder


def create_autoencoder(
    autoencoder: str | AutoencoderConfig, observation_shape: ObservationShape, encoder: Encoder | None = None
) -> ConvAutoencoder:
    """An autoencoder, initialised as in SAC-AE; raises as :func:`resolve_config`.

    Args:
        autoencoder: A name in :data:`~rl_ae.configs.CONFIGS` or a config.
        observation_shape: (C, H, W).
        encoder: The encoder to decode from; a new one if omitted.
    """
    config = resolve_config(autoencoder, observation_shape)
    if encoder is None:
        encoder = create_encoder(config, observation_shape)
    if not isinstance(encoder.trunk, ConvTrunk):
        raise TypeError(f"the decoder mirrors a ConvTrunk, the encoder has a {type(encoder.trunk).__name__}")
    decoder = ConvMirror(encoder.trunk, config.latent_dim, observation_shape, config.output_centre)
    decoder.apply(initialize)
    return ConvAutoencoder(encoder, decoder, observation_shape)


def create_learner(
    autoencoder: str | AutoencoderConfig,
    observation_shape: ObservationShape,
    module: ConvAutoencoder | None = None,
    precision: str = "fp32",
) -> RepresentationLearner:
    """An autoencoder with its weighted losses and optimizers; raises as :func:`resolve_config`.

    Args:
        autoencoder: A name in :data:`~rl_ae.configs.CONFIGS` or a config.
        observation_shape: (C, H, W).
        module: The autoencoder to train; a new one if omitted.
        precision: See :func:`~rl_ae.precision.autocast`.
    """
    config = resolve_config(autoencoder, observation_shape)
    loss = RAELoss(config.latent_weight, 1.0 / math.prod(observation_shape) if config.per_element else 1.0)
    return RepresentationLearner(
        create_autoencoder(config, observation_shape) if module is None else module,
        loss,
        encoder_learning_rate=config.encoder_learning_rate,
        decoder_learning_rate=config.decoder_learning_rate,
        decoder_weight_decay=config.decoder_weight_decay,
        target_bits=config.target_bits,
        precision=precision,
    )
