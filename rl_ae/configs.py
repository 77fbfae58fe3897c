"""Configurations: one frozen dataclass a variant of autoencoders, JSON-ready.

A config says what to build and how to train it; :mod:`rl_ae.factory` does both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from rl_ae.likelihoods import LIKELIHOODS


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


ObservationShape = tuple[int, ...]


def _require(config: Any, *, positive: tuple[str, ...] = (), non_negative: tuple[str, ...] = ()) -> None:
    """Refuse numbers out of range, by the names of their fields."""
    for name in positive:
        if not 0 < getattr(config, name) < float("inf"):
            raise ValueError(f"{name} must be > 0 and finite, got {getattr(config, name)}")
    for name in non_negative:
        if not 0 <= getattr(config, name) < float("inf"):
            raise ValueError(f"{name} must be ≥ 0 and finite, got {getattr(config, name)}")


def _require_likelihood(name: str) -> None:
    if name not in LIKELIHOODS:
        raise ValueError(f"unknown likelihood {name!r}, expected one of {sorted(LIKELIHOODS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What every autoencoder is configured by.

    Attributes:
        observation_shape: (C, H, W) of images or (N,) of vectors; filled in by whoever builds if ``None``.
        encoder_learning_rate: Adam's step size for trunk and head under the representation loss.
        decoder_learning_rate: Adam's step size for the decoder.
        decoder_weight_decay: L2 penalty on the decoder's weights, inside Adam.
        target_bits: Bit depth of the reconstruction target, whose levels are filled with uniform noise; ``None``
            reconstructs the observation itself.
        input_centre: Subtracted from images before the first convolution: the brightness that is to count as nothing.
            On a bright background, 1 makes the background, and the padding of the convolutions, vanish from the
            features: without it, they drown what moves.
        per_element: Express the loss per element of the observation, as SAC-AE does. Losses in nats (every variant but
            ``ae`` and ``rae``) are divided by C·H·W as a whole, so that β keeps the meaning of its paper; in ``ae`` and
            ``rae`` the squared error alone is, so that ``latent_weight`` is in the unit of SAC-AE's λ.
        vector_hidden: Widths of the vector form's hidden layers.

    Raises:
        ValueError: If a number is out of range.
    """

    observation_shape: ObservationShape | None = None
    encoder_learning_rate: float = 1e-3
    decoder_learning_rate: float = 1e-3
    decoder_weight_decay: float = 0.0
    target_bits: int | None = None
    input_centre: float = 0.0
    per_element: bool = True
    vector_hidden: tuple[int, ...] = (400, 400)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{field.name} must be a whole number, got {value!r}")
        _require(self, non_negative=("encoder_learning_rate", "decoder_learning_rate", "decoder_weight_decay"))
        if not 0.0 <= self.input_centre <= 1.0:
            raise ValueError(f"input_centre must be in [0, 1], got {self.input_centre}")
        if self.target_bits is not None and not 1 <= self.target_bits <= 8:
            raise ValueError(f"target_bits must be between 1 and 8, or None, got {self.target_bits}")
        if not self.vector_hidden or min(self.vector_hidden) < 1:
            raise ValueError(f"vector_hidden must be widths ≥ 1, at least one; got {self.vector_hidden}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that :func:`config_from_dict` turns back into an equal config."""
        return {"type": type_name(type(self)), **dataclasses.asdict(self)}

    def for_shape(self, observation_shape: ObservationShape) -> Self:
        """This config for observations of one shape.

        Raises:
            ValueError: If it was made for another one.
        """
        observation_shape = tuple(observation_shape)
        if self.observation_shape not in (None, observation_shape):
            raise ValueError(f"the config is for shape {self.observation_shape}, observations are {observation_shape}")
        return dataclasses.replace(self, observation_shape=observation_shape)


# ---------------------------------------------------------------------- a point


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearOutputConfig(AutoencoderConfig):
    """What autoencoders share whose decoder ends without a sigmoid.

    Attributes:
        output_centre: Added to the decoder's output for images; 0.5 in SAC-AE, whose targets are in [-0.5, 0.5].
    """

    output_centre: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.output_centre <= 1.0:
            raise ValueError(f"output_centre must be in [0, 1], got {self.output_centre}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AEConfig(LinearOutputConfig):
    """A plain autoencoder with the networks of SAC-AE (arXiv 1910.01741, Appendix B).

    Attributes:
        latent_dim: D, the width of the latent.
        conv: The trunk; the decoder mirrors it.
    """

    latent_dim: int = 50
    target_bits: int | None = 5
    conv: ConvConfig = ConvConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, positive=("latent_dim",))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RAEConfig(AEConfig):
    """The regularised autoencoder (arXiv 1903.12436) of SAC-AE, with its official code's weights.

    Attributes:
        latent_weight: λ_z, the weight of ½‖z‖².
    """

    decoder_weight_decay: float = 1e-7
    latent_weight: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, non_negative=("latent_weight",))


#: Three stride-2 convolutions: far less arithmetic than the trunk of SAC-AE, for small images and CPUs.
COMPACT_CONV = ConvConfig(filters=(32, 32, 32), kernel_size=4, strides=(2, 2, 2), padding=1)

#: Patches of 4×4 pixels first, as vision transformers have them: a quarter of the compact trunk's arithmetic.
PATCH_CONV = ConvConfig(filters=(32, 32, 32), kernel_size=4, strides=(4, 2, 2), padding=1)


# ---------------------------------------------------------------------- a Gaussian


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianConfig(AutoencoderConfig):
    """What autoencoders with a Gaussian latent share: the networks of Burgess et al. (arXiv 1804.03599).

    Attributes:
        latent_dim: D, the width of the latent; World Models' 32. Disentangling on sprites uses 10.
        conv: Convolutions of the trunk, at most; small images get as many as leave 3 positions a side.
        hidden: Widths of the linear layers between trunk and latent, on both sides.
        likelihood: One of :data:`~rl_ae.likelihoods.LIKELIHOODS`; ``None`` for a Bernoulli on images and a squared
            error on vectors.
        scale: σ of a Gaussian, b of a Laplace likelihood.
    """

    latent_dim: int = 32
    encoder_learning_rate: float = 5e-4
    decoder_learning_rate: float = 5e-4
    conv: ConvConfig = ConvConfig(filters=(32, 32, 32, 32), kernel_size=4, strides=(2, 2, 2, 2), padding=1)
    hidden: tuple[int, ...] = (256, 256)
    likelihood: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, positive=("latent_dim", "scale"))
        if self.likelihood is not None:
            _require_likelihood(self.likelihood)
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must be widths ≥ 1, got {self.hidden}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ELBOConfig(AutoencoderConfig):
    """What autoencoders share whose loss is the negative ELBO (arXiv 1312.6114) with a weight on its KL.

    Attributes:
        beta: Weight of the KL in nats; 1 is the ELBO.
        free_nats: KL of a sample that costs nothing.
        warmup_steps: Updates over which the weight rises from 0.
        mean_weight: Weight of the squared error of the mean image, beside the nats. For densities of exact levels:
            rendered frames have few colours, and most of their nats are in hitting those. Driven by nats alone,
            ``pyramid`` and ``flow`` learnt the colours, hardly read the latent, and decoded worse than the mean frame.
    """

    beta: float = 1.0
    free_nats: float = 0.0
    warmup_steps: int = 0
    mean_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, non_negative=("beta", "free_nats", "warmup_steps", "mean_weight"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig(GaussianConfig, ELBOConfig):
    """The variational autoencoder (arXiv 1312.6114) with a weight on its KL."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvVAEConfig(VAEConfig):
    """A convolutional VAE for images: four stride-2 convolutions with GroupNorm, sigmoid, squared error."""

    conv: ConvConfig = ConvConfig(filters=(32, 64, 128, 256), kernel_size=4, strides=(2, 2, 2, 2), padding=1)
    hidden: tuple[int, ...] = ()
    likelihood: str | None = "squared_error"
    encoder_learning_rate: float = 1e-3
    decoder_learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldModelsConfig(VAEConfig):
    """The VAE of World Models (arXiv 1803.10122) for images, with half a free nat for each of its 32 dimensions.

    Its authors trained with a step size of 1e-4, alone and for long; inside an agent, decoder and KL must keep up with
    a critic that moves the encoder at 1e-3.
    """

    conv: ConvConfig = ConvConfig(filters=(32, 64, 128, 256), kernel_size=4, strides=(2, 2, 2, 2), padding=0)
    hidden: tuple[int, ...] = ()
    likelihood: str | None = "squared_error"
    encoder_learning_rate: float = 1e-3
    decoder_learning_rate: float = 1e-3
    free_nats: float = 16.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DensityConfig(VAEConfig):
    """What VAEs share whose decoder is a density model of its own: the trunk of ``conv_vae`` and its mirror.

    Their ``likelihood`` is that model, and ``scale`` has no meaning.

    Attributes:
        condition_maps: Maps (H, W) decoded from the latent that the density model reads beside the image.
        density_filters: Channels inside its networks.
    """

    conv: ConvConfig = ConvVAEConfig.conv
    hidden: tuple[int, ...] = ()
    encoder_learning_rate: float = 1e-3
    decoder_learning_rate: float = 1e-3
    condition_maps: int = 16
    density_filters: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, positive=("condition_maps", "density_filters"))
        if self.likelihood is not None or self.scale != VAEConfig.scale:
            raise ValueError(
                f"the decoder of a {type(self).__name__} is its likelihood: leave likelihood and scale out, got "
                f"{self.likelihood!r} and {self.scale}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig(DensityConfig):
    """A VAE that decodes by a conditional normalising flow: RealNVP (arXiv 1605.08803), Glow (arXiv 1807.03039).

    Attributes:
        target_bits: Bit depth of the images that it is the density of. Uniform noise fills the levels, because a
            density of levels alone grows without bound. 5 as in SAC-AE and in Glow's largest images; 8 for the bits per
            dimension of whole frames.
        couplings: Affine couplings, each behind a mixing of the channels; 0 leaves a Gaussian.
    """

    target_bits: int | None = 5
    mean_weight: float = 1_000.0
    couplings: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, non_negative=("couplings",))
        if self.target_bits is None:
            raise ValueError(
                "target_bits must be between 1 and 8, got None: a flow's density of levels that no noise fills grows "
                "without bound"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig(DensityConfig):
    """A VAE that decodes by diffusion (arXiv 2006.11239, 2111.15640); needs the extra ``diffusion``.

    Attributes:
        beta: Weight of the KL. Not 1, because the loss is no bound on a density but with ``weighting="elbo"``: most
            noise levels leave enough of an image to need no latent, and a KL of weight 1 emptied it.
        diffusion_steps: T, the noise levels of training.
        decode_steps: Steps of DDIM (arXiv 2010.02502) that :meth:`~rl_ae.autoencoders.DiffusionVAE.decode` takes; a
            divisor of T. One step returns the mean image of a latent, more one that looks like a draw.
        sample_steps: Steps that a sample takes; a divisor of T.
        weighting: Of the noise levels in the loss: ``"velocity"``, or ``"elbo"`` for a bound on the density; see
            :class:`~rl_ae.autoencoders.DiffusionLikelihood`.
    """

    beta: float = 0.1
    diffusion_steps: int = 1000
    decode_steps: int = 1
    sample_steps: int = 50
    weighting: Literal["velocity", "elbo"] = "velocity"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, positive=("diffusion_steps", "decode_steps", "sample_steps"))
        for name in ("decode_steps", "sample_steps"):
            if self.diffusion_steps % getattr(self, name) != 0:  # else DDIM would end before the noise does
                raise ValueError(
                    f"{name} must divide diffusion_steps = {self.diffusion_steps}, got {getattr(self, name)}"
                )
        if self.weighting not in ("velocity", "elbo"):
            raise ValueError(f"weighting must be 'velocity' or 'elbo', got {self.weighting!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaHConfig(VAEConfig):
    """β-VAE (Higgins et al., ICLR 2017)."""

    beta: float = 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaBConfig(GaussianConfig):
    """β-VAE with a controlled capacity (Burgess et al., arXiv 1804.03599).

    Attributes:
        gamma: Weight of the KL's distance to the capacity.
        initial_capacity: Capacity at the first update, nats.
        final_capacity: Capacity in the end, nats.
        capacity_steps: Updates in between.
    """

    gamma: float = 100.0
    initial_capacity: float = 0.0
    final_capacity: float = 25.0
    capacity_steps: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, non_negative=("gamma", "initial_capacity", "final_capacity", "capacity_steps"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorConfig(GaussianConfig):
    """FactorVAE (Kim & Mnih, arXiv 1802.05983).

    Attributes:
        gamma: Weight of the total correlation; 6.4 as in the dSprites runs of YannDubs/disentangling-vae.
        warmup_steps: Updates over which it rises from 0.
        discriminator_hidden: Width of the discriminator's layers.
        discriminator_layers: Its linear layers.
        discriminator_learning_rate: Step size of its Adam, whose β₁ is 0.5 and β₂ 0.9.
    """

    gamma: float = 6.4
    warmup_steps: int = 0
    discriminator_hidden: int = 1000
    discriminator_layers: int = 6
    discriminator_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self,
            positive=("discriminator_hidden", "discriminator_layers"),
            non_negative=("gamma", "warmup_steps", "discriminator_learning_rate"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BTCVAEConfig(GaussianConfig):
    """β-TCVAE (Chen et al., arXiv 1802.04942).

    Attributes:
        alpha: Weight of the mutual information.
        beta: Weight of the total correlation; 6.4 as in the dSprites runs of YannDubs/disentangling-vae.
        gamma: Weight of the dimension-wise KL.
        estimator: Stratified (``"mss"``) or weighted (``"mws"``) minibatch sampling.
        warmup_steps: Updates over which all three rise from 0.
    """

    alpha: float = 1.0
    beta: float = 6.4
    gamma: float = 1.0
    estimator: Literal["mss", "mws"] = "mss"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, non_negative=("alpha", "beta", "gamma", "warmup_steps"))
        if self.estimator not in ("mss", "mws"):
            raise ValueError(f"estimator must be 'mss' or 'mws', got {self.estimator!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyramidConfig(ELBOConfig):
    """A residual pyramid with a mixture of logistics for every pixel, for images; small enough for an agent.

    The mixture is of the 256 levels of a pixel: images are multiples of 1/255, and ``target_bits`` is ``None``.

    Attributes:
        latent_dim: D, the width of the latent; SAC-AE's 50.
        base_channels: Of the maps at half the resolution; every further halving doubles them, to 16 times as many.
        num_mixtures: K, logistics a pixel is a mixture of.
        frame_channels: Channels of each frame of a stack: 3 of coloured frames, whose channels depend on each other, 1
            of grey ones. If ``None``, 3 if the image's channels are a multiple of it, else 1: three stacked grey frames
            must be told from a coloured one.
    """

    latent_dim: int = 50
    base_channels: int = 16
    num_mixtures: int = 3
    frame_channels: Literal[1, 3] | None = None
    mean_weight: float = 1_000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, positive=("latent_dim", "base_channels", "num_mixtures"))
        if self.frame_channels not in (None, 1, 3):
            raise ValueError(f"frame_channels must be 1, 3 or None, got {self.frame_channels}")
        if self.target_bits is not None:
            raise ValueError(
                f"a mixture of levels has no noisy target: target_bits must be None, got {self.target_bits}"
            )


# ---------------------------------------------------------------------- a grid of codes


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizedConfig(LinearOutputConfig):
    """What autoencoders with a grid of codes share.

    Attributes:
        conv: The trunk, whose last feature map is the grid; the decoder mirrors it.
        vector_codes: Codes a vector is encoded by; images have one for each position of the grid.
        likelihood: One of :data:`~rl_ae.likelihoods.LIKELIHOODS`.
        scale: σ of a Gaussian, b of a Laplace likelihood.
    """

    conv: ConvConfig = ConvConfig(filters=(32, 64, 64), kernel_size=4, strides=(2, 2, 2), padding=1)
    vector_codes: int = 16
    likelihood: str = "squared_error"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, positive=("vector_codes", "scale"))
        _require_likelihood(self.likelihood)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SQVAEConfig(QuantizedConfig):
    """SQ-VAE (Takida et al., arXiv 2205.07547) with the numbers of its official code, but for the temperature's floor.

    Attributes:
        codes: K.
        code_dim: D, the width of a code.
        variance: What the posterior's variance depends on: nothing (1), the image (2), the position (3), or each
            element (4), as the official code numbers ``gaussian_1`` to ``gaussian_4``.
        initial_log_variance: Of the learned scalar that is always part of it.
        beta: Weight of both latent terms; 1 is the ELBO.
        initial_temperature: τ of the Gumbel-softmax at the first update.
        temperature_decay: Its exponential decay an update.
        minimum_temperature: Its floor; 0 there, where draws end as NaN if training goes on for long.
    """

    likelihood: str = "optimal_gaussian"
    codes: int = 512
    code_dim: int = 64
    variance: Literal[1, 2, 3, 4] = 1
    initial_log_variance: float = 2.995732273553991  # log 20
    beta: float = 1.0
    initial_temperature: float = 1.0
    temperature_decay: float = 1e-5
    minimum_temperature: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self,
            positive=("codes", "code_dim", "initial_temperature", "minimum_temperature"),
            non_negative=("beta", "temperature_decay"),
        )
        if self.variance not in (1, 2, 3, 4):
            raise ValueError(f"variance must be 1, 2, 3 or 4, got {self.variance}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQVAEConfig(QuantizedConfig):
    """VQ-VAE (van den Oord et al., arXiv 1711.00937) with a codebook of moving averages.

    Attributes:
        codes: K.
        code_dim: D, the width of a code.
        commitment_weight: β, against a loss in nats; 0.25 in the paper.
        codebook_decay: Of the moving averages; 0.99 in the paper.
        dead_code_threshold: Average uses a batch below which a code moves to where data is; 0 for never.
    """

    codes: int = 512
    code_dim: int = 64
    commitment_weight: float = 0.25
    codebook_decay: float = 0.99
    dead_code_threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self, positive=("codes", "code_dim"), non_negative=("commitment_weight", "dead_code_threshold"))
        if not 0.0 <= self.codebook_decay < 1.0:
            raise ValueError(f"codebook_decay must be in [0, 1), got {self.codebook_decay}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FSQConfig(QuantizedConfig):
    """Finite scalar quantisation (Mentzer et al., arXiv 2309.15505).

    Attributes:
        levels: Levels of each of a code's dimensions; their product is the number of codes, 1,000 by default.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.levels or min(self.levels) < 3:
            raise ValueError(f"levels must be ≥ 3, at least one; got {self.levels}")


# ---------------------------------------------------------------------- a hierarchy of Gaussians


@dataclasses.dataclass(frozen=True, kw_only=True)
class HierarchicalConfig(AutoencoderConfig):
    """A small hierarchical VAE for images in the manner of NVAE (Vahdat & Kautz, arXiv 2007.03898).

    Attributes:
        base_channels: Channels at half the image's resolution, ≥ 8; below there are twice as many.
        halvings: Of the image's sides down to the finest groups' grid, each rounded up.
        groups: Groups of latents on each grid, coarsest first; each grid has twice the one before it a side.
        latent_channels: D of each group, an element at every position.
        likelihood: One of :data:`~rl_ae.likelihoods.LIKELIHOODS`.
        scale: σ of a Gaussian, b of a Laplace likelihood.
        beta: Weight of the KL in nats; 1 is the ELBO.
        free_nats: KL of each group of a sample that costs nothing.
        warmup_steps: Updates over which the weight rises from 0 and the groups' KLs are balanced; without any, groups
            tend to be given up before the decoder has learnt to read them. NVAE takes 30 % of all.
    """

    base_channels: int = 32
    halvings: int = 3
    groups: tuple[int, ...] = (2, 2, 1)
    latent_channels: int = 4
    likelihood: str = "optimal_gaussian"
    scale: float = 1.0
    beta: float = 1.0
    free_nats: float = 0.0
    warmup_steps: int = 1_000

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self,
            positive=("halvings", "latent_channels", "scale"),
            non_negative=("beta", "free_nats", "warmup_steps"),
        )
        _require_likelihood(self.likelihood)
        if self.base_channels < 8:  # GroupNorm compares channels, where a grid has one position
            raise ValueError(f"base_channels must be ≥ 8, got {self.base_channels}")
        if not self.groups or min(self.groups) < 1:
            raise ValueError(f"groups must be counts ≥ 1, one a grid, at least one; got {self.groups}")


DEFAULT_AUTOENCODER = "rae"

#: The variants that ``autoencoder="<name>"`` knows.
CONFIGS: dict[str, AutoencoderConfig] = {
    "ae": AEConfig(),
    "rae": RAEConfig(),
    "rae_compact": RAEConfig(conv=COMPACT_CONV),
    "rae_patch": RAEConfig(conv=PATCH_CONV),
    "vae": VAEConfig(),
    "conv_vae": ConvVAEConfig(),
    "wm_vae": WorldModelsConfig(),
    "flow": FlowConfig(),
    "diffusion": DiffusionConfig(),
    "beta_h": BetaHConfig(),
    "beta_b": BetaBConfig(),
    "factor": FactorConfig(),
    "btcvae": BTCVAEConfig(),
    "pyramid": PyramidConfig(),
    "sqvae": SQVAEConfig(),
    "vqvae": VQVAEConfig(),
    "fsq": FSQConfig(),
    "hierarchical": HierarchicalConfig(),
}


def named_config(name: str) -> AutoencoderConfig:
    """The variant of a name.

    Raises:
        ValueError: If there is none; lists the names there are.
    """
    if name not in CONFIGS:
        raise ValueError(
            f"unknown autoencoder {name!r}, expected one of {sorted(CONFIGS)}, a config or a folder, and there is no "
            f"folder {name}"
        )
    return CONFIGS[name]


def type_name(cls: type[Any]) -> str:
    """How a class is called in JSON: ours by its name, others' by module and name."""
    return cls.__name__ if cls.__module__.startswith("rl_ae.") else f"{cls.__module__}:{cls.__qualname__}"


def subclasses(base: type[Any]) -> dict[str, type[Any]]:
    """A class and all below it, also those defined elsewhere, by :func:`type_name`."""
    below: dict[str, type[Any]] = {}
    for subclass in base.__subclasses__():
        below |= subclasses(subclass)
    return below | {type_name(base): base}  # and not what torch.export derives from it under the same name


def config_from_dict(data: Mapping[str, Any]) -> AutoencoderConfig:
    """Undo :meth:`AutoencoderConfig.to_dict`, also after a round trip through JSON.

    Raises:
        ValueError: If the type or a field is unknown.
    """
    fields = dict(data)
    name, known = fields.pop("type", None), subclasses(AutoencoderConfig)
    if name not in known:
        raise ValueError(f"unknown config type {name!r}, expected one of {sorted(known)}")
    config: AutoencoderConfig = _restore(known[name], fields)
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
