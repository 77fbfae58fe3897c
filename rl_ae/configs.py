"""Configurations: one frozen dataclass a family of autoencoders, one name a variant.

The defaults are those of SAC-AE's official implementation (arXiv 1910.01741, Appendix B).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """A stack of convolutions.

    Attributes:
        filters: Output channels of each layer.
        kernel_size: Side of every kernel.
        strides: Stride of each layer; as many as ``filters``.
        padding: Zeros added on every side by each layer.

    Raises:
        ValueError: If the tuples are empty or differ in length, or a number is out of range.
    """

    filters: tuple[int, ...] = (32, 32, 32, 32)
    kernel_size: int = 3
    strides: tuple[int, ...] = (2, 1, 1, 1)
    padding: int = 0

    def __post_init__(self) -> None:
        if not self.filters or len(self.filters) != len(self.strides):
            raise ValueError(f"one stride a layer: got filters {self.filters} and strides {self.strides}")
        if min(*self.filters, *self.strides, self.kernel_size) < 1 or not 0 <= self.padding < self.kernel_size:
            raise ValueError(f"filters, strides and kernel_size must be ≥ 1 and 0 ≤ padding < kernel_size: got {self}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What every autoencoder is configured by.

    Attributes:
        observation_shape: (C, H, W) of the images; filled in from the observation space if ``None``.
        latent_dim: D, the width of the latent.
        encoder_learning_rate: Adam's step size for trunk and head under the representation loss.
        decoder_learning_rate: Adam's step size for the decoder.
        decoder_weight_decay: L2 penalty on the decoder's weights, inside Adam.
        target_bits: Bit depth of the reconstruction target, whose levels are filled with uniform noise; ``None``
            reconstructs the frame itself.
        input_centre: Subtracted from images before the first convolution: the brightness that is to count as nothing.
            0 in the paper. On a bright background, 1 makes the background, and the padding of the convolutions,
            vanish from the features: without it, they drown what moves.
        output_centre: Added to the decoder's output; 0.5 in the paper, whose targets are shifted to [-0.5, 0.5].
        per_element: Divide the squared error by C·H·W, so that it is a mean over pixels and the weights of the other
            terms are in the unit of the paper; otherwise it is a sum over pixels, in nats.

    Raises:
        ValueError: If a number is out of range.
    """

    observation_shape: tuple[int, int, int] | None = None
    latent_dim: int = 50
    encoder_learning_rate: float = 1e-3
    decoder_learning_rate: float = 1e-3
    decoder_weight_decay: float = 1e-7
    target_bits: int | None = 5
    input_centre: float = 0.0
    output_centre: float = 0.5
    per_element: bool = True

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be ≥ 1, got {self.latent_dim}")
        for name in ("encoder_learning_rate", "decoder_learning_rate", "decoder_weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be ≥ 0, got {getattr(self, name)}")
        for name in ("input_centre", "output_centre"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.target_bits is not None and not 1 <= self.target_bits <= 8:
            raise ValueError(f"target_bits must be between 1 and 8, or None, got {self.target_bits}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that :func:`config_from_dict` turns back into an equal config."""
        return {"type": type(self).__name__, **dataclasses.asdict(self)}

    def for_shape(self, observation_shape: tuple[int, int, int]) -> Self:
        """This config for images of one shape.

        Raises:
            ValueError: If it was made for another one.
        """
        if self.observation_shape not in (None, observation_shape):
            raise ValueError(f"the config is for images {self.observation_shape}, observations are {observation_shape}")
        return dataclasses.replace(self, observation_shape=observation_shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RAEConfig(AutoencoderConfig):
    """The regularised autoencoder of SAC-AE.

    Attributes:
        conv: The trunk; the decoder mirrors it.
        latent_weight: λ_z, the weight of ½‖z‖².
    """

    conv: ConvConfig = ConvConfig()
    latent_weight: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_weight < 0:
            raise ValueError(f"latent_weight must be ≥ 0, got {self.latent_weight}")


#: Three stride-2 convolutions: far less arithmetic than the trunk of SAC-AE, for small images and CPUs.
COMPACT_CONV = ConvConfig(filters=(32, 32, 32), kernel_size=4, strides=(2, 2, 2), padding=1)

DEFAULT_AUTOENCODER = "rae"

#: The variants that ``autoencoder="<name>"`` knows.
CONFIGS: dict[str, AutoencoderConfig] = {
    "ae": RAEConfig(latent_weight=0.0, decoder_weight_decay=0.0),
    "rae": RAEConfig(),
    "rae_compact": RAEConfig(conv=COMPACT_CONV),
}


def named_config(name: str) -> AutoencoderConfig:
    """The variant of a name.

    Raises:
        ValueError: If there is none; lists the names there are.
    """
    if name not in CONFIGS:
        raise ValueError(f"unknown autoencoder {name!r}, expected one of {sorted(CONFIGS)} or a config")
    return CONFIGS[name]


_CONFIG_TYPES: dict[str, type[AutoencoderConfig]] = {"RAEConfig": RAEConfig}


def config_from_dict(data: Mapping[str, Any]) -> AutoencoderConfig:
    """Undo :meth:`AutoencoderConfig.to_dict`, also after a round trip through JSON.

    Raises:
        ValueError: If the type or a field is unknown.
    """
    fields = dict(data)
    name = fields.pop("type", None)
    if name not in _CONFIG_TYPES:
        raise ValueError(f"unknown config type {name!r}, expected one of {sorted(_CONFIG_TYPES)}")
    config: AutoencoderConfig = _restore(_CONFIG_TYPES[name], fields)
    return config


def _restore(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Build a dataclass from what JSON leaves of it: nested dataclasses are dictionaries, tuples are lists."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    if unknown := sorted(values.keys() - defaults.keys()):
        raise ValueError(f"{cls.__name__} has no fields {unknown}, it has {sorted(defaults)}")
    restored = dict(values)
    for name, value in values.items():
        if isinstance(value, Mapping):
            restored[name] = _restore(type(defaults[name]), value)
        elif isinstance(value, list):
            restored[name] = tuple(value)
    return cls(**restored)
