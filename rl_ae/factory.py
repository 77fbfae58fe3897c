"""Factory: a name, a config, a class or a folder, and the shape of the observations, to modules and a learner."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import nn

from rl_ae.adversary import Adversary
from rl_ae.autoencoders import (
    FSQVAE,
    SQVAE,
    VQVAE,
    Autoencoder,
    BurgessVAE,
    ConvAutoencoder,
    ConvVAE,
    DiffusionVAE,
    Encoder,
    FlowVAE,
    HierarchicalVAE,
    PyramidVAE,
    VectorAutoencoder,
    VectorVAE,
    WorldModelsVAE,
)
from rl_ae.configs import (
    CONFIGS,
    AEConfig,
    AutoencoderConfig,
    BetaBConfig,
    BTCVAEConfig,
    ConvVAEConfig,
    DiffusionConfig,
    ELBOConfig,
    FactorConfig,
    FlowConfig,
    FSQConfig,
    GaussianConfig,
    HierarchicalConfig,
    ObservationShape,
    PyramidConfig,
    RAEConfig,
    SQVAEConfig,
    VQVAEConfig,
    WorldModelsConfig,
    named_config,
)
from rl_ae.learner import RepresentationLearner
from rl_ae.losses import (
    BetaBLoss,
    BTCLoss,
    Discriminator,
    FactorLoss,
    HierarchicalLoss,
    Loss,
    RAELoss,
    SQLoss,
    VAELoss,
    VQLoss,
)

#: What stands for an autoencoder: a name in :data:`~rl_ae.configs.CONFIGS`, a config, a class of one's own, or the
#: folder (or Hub id, as ``Autoencoder.from_pretrained`` takes it) of a saved one.
AutoencoderLike = str | Path | AutoencoderConfig | type[Autoencoder]

#: Stable-Baselines3 keeps an agent's arguments as they were given: a folder by its name.
_ADVICE = (
    'a stock agent that was made from it is loaded without it by load(…, custom_objects={"policy_kwargs": …}), with '
    "the autoencoder's config in place of the folder"
)

#: Config → class for images, class for vectors; a config finds the entry of its nearest base.
CLASSES: dict[type[AutoencoderConfig], tuple[type[Autoencoder], type[Autoencoder]]] = {
    AEConfig: (ConvAutoencoder, VectorAutoencoder),
    GaussianConfig: (BurgessVAE, VectorVAE),
    ConvVAEConfig: (ConvVAE, ConvVAE),
    WorldModelsConfig: (WorldModelsVAE, WorldModelsVAE),
    FlowConfig: (FlowVAE, FlowVAE),
    DiffusionConfig: (DiffusionVAE, DiffusionVAE),
    PyramidConfig: (PyramidVAE, PyramidVAE),
    SQVAEConfig: (SQVAE, SQVAE),
    VQVAEConfig: (VQVAE, VQVAE),
    FSQConfig: (FSQVAE, FSQVAE),
    HierarchicalConfig: (HierarchicalVAE, HierarchicalVAE),
}

#: Config → its loss, a sum over an observation; a config finds the entry of its nearest base.
LOSSES: dict[type[AutoencoderConfig], Callable[[Any], Loss]] = {
    AEConfig: lambda config: RAELoss(0.0),
    RAEConfig: lambda config: RAELoss(config.latent_weight / _scale(config)),  # λ is per element
    ELBOConfig: lambda config: VAELoss(config.beta, config.free_nats, config.warmup_steps, config.mean_weight),
    BetaBConfig: lambda config: BetaBLoss(
        config.gamma, config.initial_capacity, config.final_capacity, config.capacity_steps
    ),
    FactorConfig: lambda config: FactorLoss(
        Discriminator(config.latent_dim, config.discriminator_hidden, config.discriminator_layers),
        config.gamma,
        config.warmup_steps,
    ),
    BTCVAEConfig: lambda config: BTCLoss(
        config.beta, config.alpha, config.gamma, config.estimator, config.warmup_steps
    ),
    SQVAEConfig: lambda config: SQLoss(config.codes, config.beta),
    VQVAEConfig: lambda config: VQLoss(config.codes, config.commitment_weight),
    FSQConfig: lambda config: VQLoss(math.prod(config.levels), commitment_weight=0.0),
    HierarchicalConfig: lambda config: HierarchicalLoss(
        config.groups, config.beta, config.free_nats, config.warmup_steps
    ),
}


def _scale(config: AutoencoderConfig) -> float:
    """What a loss, a sum over an observation, is multiplied by: 1 / C·H·W, or 1."""
    assert config.observation_shape is not None
    return 1.0 / math.prod(config.observation_shape) if config.per_element else 1.0


def _nearest(table: dict[type[AutoencoderConfig], Any], config: AutoencoderConfig) -> Any:
    return next((table[base] for base in type(config).__mro__ if base in table), None)


def _own_classes(base: type[Autoencoder] = Autoencoder) -> list[type[Autoencoder]]:
    """Autoencoder classes, defined anywhere, that have a config type of their own."""
    below = [own for subclass in base.__subclasses__() for own in _own_classes(subclass)]
    return [base, *below] if "config_type" in vars(base) else below


def autoencoder_class(config: AutoencoderConfig) -> type[Autoencoder]:
    """The class a config is built as.

    Raises:
        ValueError: If there is none.
    """
    vector = config.observation_shape is not None and len(config.observation_shape) == 1
    if type(config).__module__ != AutoencoderConfig.__module__:  # a user's config belongs to the class that names it
        for own in reversed(_own_classes()):  # the latest definition, in a notebook
            if own.config_type is type(config):
                return own
    classes = _nearest(CLASSES, config)
    if classes is None:
        raise ValueError(f"no autoencoder has {type(config).__name__} as its config_type")
    chosen: type[Autoencoder] = classes[vector]
    return chosen


def is_pretrained(autoencoder: Any) -> bool:
    """Whether this stands for a saved autoencoder: a path, an existing folder, or a Hub id with a slash."""
    if isinstance(autoencoder, str):
        return autoencoder not in CONFIGS and ("/" in autoencoder or Path(autoencoder).is_dir())
    return isinstance(autoencoder, Path)


def load_pretrained(path: str | Path, observation_shape: ObservationShape | None = None) -> Autoencoder:
    """A saved autoencoder, to train on; for observations of one shape, or of its own.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or for another shape.
    """
    if isinstance(path, Path) and not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; {_ADVICE}")
    try:
        autoencoder = Autoencoder.from_pretrained(path)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{path} is neither a folder nor a saved autoencoder on the Hub: {error}; {_ADVICE}"
        ) from error
    if observation_shape is not None:
        autoencoder.config.for_shape(observation_shape)
    return autoencoder.train()


def resolve_config(autoencoder: AutoencoderLike, observation_shape: ObservationShape) -> AutoencoderConfig:
    """The config that a name, a config, a class or a folder stands for, for observations of one shape.

    Args:
        autoencoder: See :data:`AutoencoderLike`.
        observation_shape: (C, H, W) of images or (N,) of vectors.

    Raises:
        ValueError: If the name is unknown, the config is for another shape, or there is no such form of it.
        TypeError: If it is none of these. A live module is refused on purpose: Stable-Baselines3 builds the extractor
            once for the actor, the critic and the target, which must not share one object.
    """
    config: Any = autoencoder
    if is_pretrained(autoencoder):
        assert isinstance(autoencoder, str | Path)
        config = load_pretrained(autoencoder, observation_shape).config
    elif isinstance(autoencoder, str):
        config = named_config(autoencoder)
    elif isinstance(autoencoder, type) and issubclass(autoencoder, Autoencoder):
        config = autoencoder.config_type()
    if not isinstance(config, AutoencoderConfig):
        raise TypeError(
            f"autoencoder must be a name in {sorted(CONFIGS)}, an AutoencoderConfig, a subclass of Autoencoder or the "
            f"folder of a saved one, got {type(config).__name__}"
        )
    resolved = config.for_shape(observation_shape)
    _class(autoencoder, resolved).check_shape(resolved.observation_shape)
    return resolved


def _class(autoencoder: AutoencoderLike, config: AutoencoderConfig) -> type[Autoencoder]:
    """The class that was passed, or the one of the config."""
    return autoencoder if isinstance(autoencoder, type) else autoencoder_class(config)


def create_encoder(autoencoder: AutoencoderLike, observation_shape: ObservationShape) -> Encoder:
    """Trunk and head without a decoder, initialised or loaded; raises as :func:`resolve_config`."""
    if is_pretrained(autoencoder):
        assert isinstance(autoencoder, str | Path)
        return load_pretrained(autoencoder, observation_shape).encoder
    config = resolve_config(autoencoder, observation_shape)
    return _class(autoencoder, config).make_encoder(config)


def create_autoencoder(
    autoencoder: AutoencoderLike, observation_shape: ObservationShape, encoder: Encoder | None = None
) -> Autoencoder:
    """An autoencoder, initialised or loaded; raises as :func:`resolve_config`.

    Args:
        autoencoder: See :data:`AutoencoderLike`.
        observation_shape: (C, H, W) of images or (N,) of vectors.
        encoder: The encoder to decode from; its own if omitted.
    """
    if is_pretrained(autoencoder):
        assert isinstance(autoencoder, str | Path)
        loaded = load_pretrained(autoencoder, observation_shape)
        loaded.encoder = loaded.encoder if encoder is None else encoder
        return loaded
    config = resolve_config(autoencoder, observation_shape)
    return _class(autoencoder, config)(config=config, encoder=encoder)


def create_loss(config: AutoencoderConfig) -> Loss:
    """The loss of a config, before the learner's division by C·H·W.

    Raises:
        ValueError: If there is none for it.
    """
    make = _nearest(LOSSES, config)
    if make is None:
        raise ValueError(f"there is no loss for a {type(config).__name__}: pass one (loss=…, representation_loss=…)")
    loss: Loss = make(config)
    return loss


def create_learner(
    autoencoder: AutoencoderLike | Autoencoder,
    observation_shape: ObservationShape | None = None,
    *,
    loss: nn.Module | None = None,
    precision: str = "fp32",
) -> RepresentationLearner:
    """An autoencoder with its weighted losses and optimizers.

    Args:
        autoencoder: See :data:`AutoencoderLike`; or a module, which is then trained itself.
        observation_shape: (C, H, W) of images or (N,) of vectors; may be omitted for a module or a complete config.
        loss: A module with the signature of :meth:`rl_ae.losses.Loss.forward`, a sum over an observation as those are;
            the config's own if omitted.
        precision: See :func:`~rl_ae.precision.autocast`.

    Raises:
        ValueError: If the name is unknown, or the shape is missing or another one.
        TypeError: As :func:`resolve_config`.
    """
    if observation_shape is None and isinstance(autoencoder, AutoencoderConfig | Autoencoder):
        observation_shape = autoencoder.observation_shape
    if observation_shape is None:
        raise ValueError(f"create_learner({autoencoder!r}) needs an observation_shape: (C, H, W) or (N,)")
    module = autoencoder if isinstance(autoencoder, Autoencoder) else create_autoencoder(autoencoder, observation_shape)
    config: AutoencoderConfig = module.config.for_shape(observation_shape)
    own_loss = create_loss(config) if loss is None else loss
    adversary = None
    if isinstance(own_loss, FactorLoss):
        default = FactorConfig.discriminator_learning_rate
        adversary = Adversary(own_loss.discriminator, getattr(config, "discriminator_learning_rate", default))
    return RepresentationLearner(
        module,
        own_loss,
        encoder_learning_rate=config.encoder_learning_rate,
        decoder_learning_rate=config.decoder_learning_rate,
        decoder_weight_decay=config.decoder_weight_decay,
        target_bits=config.target_bits if len(observation_shape) == 3 else None,
        scale=_scale(config),
        adversary=adversary,
        precision=precision,
    )
