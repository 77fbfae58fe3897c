"""What every autoencoder has: an encoder of two halves, a decoder, a likelihood, and a folder to live in."""

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rl_ae.configs import AutoencoderConfig, ObservationShape, config_from_dict, subclasses, type_name
from rl_ae.latents import Latent
from rl_ae.likelihoods import Likelihood, LikelihoodHead
from rl_ae.pixels import MIN_IMAGE_SIZE

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


class Encoder(nn.Module):
    """``head(trunk(x))``: observations (B, C, H, W) in [0, 1], or vectors (B, N), to a latent.

    The halves are separate because agents route gradients between them: SAC-AE's actor reads the critic's trunk,
    detached, through a head of its own.

    Args:
        trunk: (B, C, H, W) → features: maps (B, F, h, w), or (B, F).
        head: Features → :class:`~rl_ae.latents.Latent`.
        latent_dim: D, the width of the latent's ``mode``.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.latent_dim = latent_dim

    def forward(self, observations: Tensor) -> Latent:
        latent: Latent = self.head(self.trunk(observations))
        return latent


class Autoencoder(nn.Module, PyTorchModelHubMixin, library_name="rl_ae", tags=["autoencoder"]):
    """Encode, decode, and both in a row. Computes no loss.

    ``save_pretrained(folder)``, ``from_pretrained(folder or Hub id)`` and ``push_to_hub(id)`` are Hugging Face's; the
    weights are safetensors, the config is JSON, and no code is stored. ``Autoencoder.from_pretrained`` finds the class.

    To make one of your own, subclass it or a variant, define :meth:`make_encoder` and :meth:`make_decoder`, and pass
    the class where a name would stand. With a :attr:`config_type` of its own, its config can stand there too.

    Args:
        observation_shape: (C, H, W) of images, or (N,) of vectors. Omitted if ``config`` is given.
        config: What to build; made from ``observation_shape`` and ``fields`` if omitted.
        encoder: The encoder to decode from; a new one if omitted.
        **fields: Fields of the config.

    Raises:
        ValueError: If the shape or a field is out of range.
    """

    #: The dataclass that configures it.
    config_type: ClassVar[type[AutoencoderConfig]] = AutoencoderConfig
    #: Why an update cannot be computed in parts of a batch, where it cannot.
    whole_batch: ClassVar[str | None] = None
    #: What its shapes may be: numbers of dimensions without the batch.
    dimensions: ClassVar[tuple[int, ...]] = (1, 3)

    def __init__(
        self,
        observation_shape: ObservationShape | None = None,
        *,
        config: Any = None,
        encoder: Encoder | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        if config is None:
            config = self.config_type(observation_shape=observation_shape, **fields)
        #: The config it was built from, its shape included.
        self.config = config
        self.observation_shape = self.check_shape(config.observation_shape)
        self.encoder = self.make_encoder(config) if encoder is None else encoder
        self.decoder = self.make_decoder(config, self.encoder)
        self.output = self.make_output(config)

    # ------------------------------------------------------------------ what a variant defines

    @classmethod
    @abstractmethod
    def make_encoder(cls, config: Any) -> Encoder:
        """A new encoder, initialised."""

    @classmethod
    @abstractmethod
    def make_decoder(cls, config: Any, encoder: Encoder) -> nn.Module:
        """A new decoder for an encoder, initialised: latents (B, D) to what :meth:`make_output`'s module reads."""

    @classmethod
    def make_output(cls, config: Any) -> nn.Module:
        """From raw outputs to a likelihood; the squared error of raw outputs unless a variant says otherwise."""
        return LikelihoodHead("squared_error")

    @classmethod
    def check_shape(cls, shape: ObservationShape | None) -> ObservationShape:
        """The shape, refused if there is no such autoencoder.

        Raises:
            ValueError: If it is missing, of the wrong number of dimensions, empty, or an image too small.
        """
        expected = " or ".join({1: "(N,) of vectors", 3: "(C, H, W) of images"}[size] for size in cls.dimensions)
        if shape is None or len(shape) not in cls.dimensions:
            raise ValueError(f"{cls.__name__} takes a shape {expected}, got {shape}")
        if min(shape) < 1:
            raise ValueError(f"every size of a shape must be ≥ 1, got {shape}")
        if len(shape) == 3 and min(shape[1:]) < MIN_IMAGE_SIZE:
            raise ValueError(f"images must have at least {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE} pixels, got shape {shape}")
        return tuple(shape)

    @classmethod
    def image_shape(cls, config: Any) -> tuple[int, int, int]:
        """(C, H, W) of the images a config is for; raises as :meth:`check_shape`."""
        channels, height, width = cls.check_shape(config.observation_shape)
        return channels, height, width

    # ------------------------------------------------------------------ what users call

    @property
    def latent_dim(self) -> int:
        """D, the width of the latent's ``mode``."""
        return self.encoder.latent_dim

    def encode(self, observations: Tensor) -> Any:
        """Encode images (B, C, H, W) in [0, 1], or vectors (B, N); a :class:`~rl_ae.latents.Latent`.

        Changes no buffer, and does not depend on batch mates.

        Raises:
            TypeError: If the observations are not floating point, as frames are that nobody has scaled.
            ValueError: If they do not have the autoencoder's shape.
        """
        if not observations.is_floating_point():
            raise TypeError(
                f"expected floats in [0, 1], got {observations.dtype}: scale frames with rl_ae.pixels.to_unit"
            )
        if tuple(observations.shape[1:]) != self.observation_shape:
            expected = ", ".join(map(str, self.observation_shape))
            raise ValueError(f"expected observations of shape (B, {expected}), got {tuple(observations.shape)}")
        return self.encoder(observations)

    def draw(self, latent: Any, step: int = 0, generator: torch.Generator | None = None) -> Tensor:
        """What the decoder reads in training, (B, D): a sample of the latent.

        Args:
            latent: What :meth:`encode` returned.
            step: Updates made so far; drives SQ-VAE's temperature.
            generator: Of the noise, on the latent's device; torch's global one if omitted.
        """
        sample: Tensor = latent.sample(generator)
        return sample

    def likelihood(self, z: Tensor) -> Likelihood:
        """What the decoder says about the observations of latents (B, D)."""
        likelihood: Likelihood = self.output(self.decoder(z))
        return likelihood

    def decode(self, z: Tensor) -> Tensor:
        """The mean reconstruction (B, C, H, W), or (B, N), of latents (B, D).

        Near [0, 1] for images; inside it where the likelihood squashes.
        """
        return self.likelihood(z).mean

    def reconstruct(self, observations: Tensor) -> Tensor:
        """What comes back of observations, from their latents' modes; the same in training and evaluation."""
        return self.decode(self.encode(observations).mode)

    def decode_draw(self, observations: Tensor, step: int = 0) -> tuple[Tensor, Any]:
        """Reconstruction and latent: of a sample in training, of the mode in evaluation."""
        latent = self.encode(observations)
        return self.decode(self.draw(latent, step) if self.training else latent.mode), latent

    def after_update(self, latent: Any) -> None:
        """Let what is not trained by gradients follow, once a batch; a codebook's moving averages."""

    # ------------------------------------------------------------------ folders and the Hub

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights and config; :meth:`save_pretrained` calls it."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        description = json.dumps({"class": type_name(type(self)), **self.config.to_dict()}, indent=2)
        # whole files take the place of earlier ones, never halves
        halves = {name: save_directory / f"{name}.half" for name in (WEIGHTS_FILE, CONFIG_FILE)}
        save_file(tensors, halves[WEIGHTS_FILE], metadata={"format": "pt"})
        halves[CONFIG_FILE].write_text(description + "\n")
        for name, half in halves.items():
            half.replace(save_directory / name)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **arguments: Any
    ) -> Self:
        """Build and load; :meth:`from_pretrained` calls it.

        Raises:
            FileNotFoundError: If the folder lacks a file.
            ValueError: If the config or the weights are not of an autoencoder here.
        """
        download = {
            name: arguments[name] for name in ("revision", "cache_dir", "force_download", "token", "local_files_only")
        }
        config_path, weights_path = (
            Path(model_id) / name if Path(model_id).is_dir() else Path(hf_hub_download(model_id, name, **download))
            for name in (CONFIG_FILE, WEIGHTS_FILE)
        )
        for path in (config_path, weights_path):
            if not path.exists():
                raise FileNotFoundError(f"{model_id} is not a saved autoencoder: it has no {path.name}")
        description = json.loads(config_path.read_text())
        foreign = arguments.keys() - download.keys() - description.keys() - {"config"}  # which the mixin has read
        if foreign:
            raise TypeError(f"a saved autoencoder is as its config says, which has no {sorted(foreign)}")
        changed = sorted(name for name in arguments.keys() & description.keys() if arguments[name] != description[name])
        if changed:
            raise TypeError(f"a saved autoencoder is as its config says: {changed} cannot be changed")
        name, known = description.pop("class", None), subclasses(cls)
        if name not in known:
            raise ValueError(f"{model_id} holds a {name}, expected one of {sorted(known)}")
        built_as = known[name]
        autoencoder = built_as(config=config_from_dict(description))
        try:
            state = load_file(weights_path, device=map_location)
        except SafetensorError as error:
            raise ValueError(f"{weights_path} is damaged: {error}") from error
        expected = autoencoder.state_dict().keys()
        missing, extra = sorted(expected - state.keys()), sorted(state.keys() - expected)
        if missing or (extra and strict):
            raise ValueError(f"{weights_path} does not fit {built_as.__name__}: missing {missing}, extra {extra}")
        try:
            autoencoder.load_state_dict(state, strict=strict)
        except RuntimeError as error:
            raise ValueError(f"{weights_path} does not fit its config: {error}") from error
        loaded: Self = autoencoder.to(map_location).eval()
        return loaded
