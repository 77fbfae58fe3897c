"""Extractor: the encoders of autoencoders as a Stable-Baselines3 features extractor."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rl_ae.autoencoders import Encoder
from rl_ae.configs import DEFAULT_AUTOENCODER
from rl_ae.factory import create_encoder
from rl_ae.pixels import random_shift, scale_range, to_unit
from rl_ae.sb3.observations import OBSERVATION, AutoencodersLike, Observations, bounds, make_views


class AutoencoderExtractor(BaseFeaturesExtractor):
    """The encoder of an autoencoder, for any policy's ``features_extractor_class``; for a ``Dict`` one for each part.

    Features are the latent's mode, (B, D). Images arrive in [0, 1], as Stable-Baselines3 scales ``uint8``; images of
    another type are scaled here by the bounds of their space. Parts of a ``Dict`` follow each other in its order, those
    without an autoencoder as they are.
    In a stock agent the agent's own loss trains the encoders; :class:`~rl_ae.sb3.AuxiliaryLossCallback` adds the
    reconstruction.

    Args:
        observation_space: Image space, see :func:`~rl_ae.sb3.observations.image_shape`, or a ``Dict``.
        autoencoder: A name in :data:`~rl_ae.configs.CONFIGS`, a config, a class, or the folder of a saved autoencoder,
            whose weights are then the start; never a module. For a ``Dict``: of each image, or a dictionary by name in
            which ``None`` sends a part straight to the policy.
        freeze: Let no loss train the encoders.

    Attributes:
        encoders: By name; ``"observation"`` is the only one where the space is not a ``Dict``.

    Raises:
        ValueError: If the space is not an image, a name is unknown, or a saved autoencoder is for another shape.
        TypeError: If ``autoencoder`` is a live module.
    """

    def __init__(
        self,
        observation_space: spaces.Box | spaces.Dict,
        autoencoder: AutoencodersLike = DEFAULT_AUTOENCODER,
        freeze: bool = False,
    ) -> None:
        views = make_views(observation_space, autoencoder)
        encoders = {
            name: create_encoder(view.autoencoder, view.shape)
            for name, view in views.items()
            if view.autoencoder is not None
        }
        straight = sum(view.shape[0] for name, view in views.items() if name not in encoders)
        super().__init__(observation_space, straight + sum(encoder.latent_dim for encoder in encoders.values()))
        self.views = views
        self.encoders = nn.ModuleDict(encoders)
        for name, view in views.items():
            for limit, value in zip(("low", "high"), bounds(view) or (None, None), strict=True):
                self.register_buffer(f"{name}_{limit}", value, persistent=False)
        if freeze:
            self.encoders.requires_grad_(False)
        self._range_checked = False

    @property
    def encoder(self) -> Encoder:
        """The only encoder.

        Raises:
            ValueError: If there are several.
        """
        return cast(Encoder, only(self.encoders))

    def replace_heads(self, heads: Mapping[str, nn.Module], features_dim: int) -> None:
        """Read the trunks through other heads, each from features to a latent of ``features_dim``; other parts stay."""
        for name, head in heads.items():
            encoder = cast(Encoder, self.encoders[name])
            self._features_dim += features_dim - encoder.latent_dim
            self.encoders[name] = Encoder(encoder.trunk, head, features_dim)

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of every trunk."""
        for encoder in self.encoders.values():
            yield from cast(Encoder, encoder).trunk.parameters()

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Apply a function to all modules, but for the ``ortho_init`` of PPO and A2C.

        It would overwrite a saved autoencoder's weights, and the initialisation an autoencoder brings along.
        """
        if getattr(fn, "func", fn) is BasePolicy.init_weights:
            return self
        return super().apply(fn)

    def forward(self, observations: Observations) -> Tensor:
        """Observations as Stable-Baselines3 preprocesses them, images (B, C, H, W), to features (B, D).

        Raises:
            ValueError: If the first images with any light in them exceed 1: nobody has scaled them, or their space
                declares other bounds.
        """
        observations = self.scale(observations)
        if not self._range_checked:  # once, because it waits for the device
            self._check_range(observations)
        return self.latent(observations)

    def prepare(
        self, observations: Observations, normalize_images: bool = True, dtype: torch.dtype = torch.float32
    ) -> Observations:
        """Observations as an environment or a replay buffer has them to what the encoders take.

        Args:
            observations: A batch; images ``uint8``, or floats within their space's bounds.
            normalize_images: As the policy's.
            dtype: What ``uint8`` frames become, in one conversion.

        Returns:
            Images (B, C, H, W) in [0, 1], and everything else as vectors (B, N); by name for a ``Dict``.
        """
        if isinstance(observations, Tensor):
            return self.prepare_part(OBSERVATION, observations, normalize_images, dtype)
        return {name: self.prepare_part(name, observations[name], normalize_images, dtype) for name in self.views}

    def prepare_part(
        self, name: str, values: Tensor, normalize_images: bool = True, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """:meth:`prepare` for one part of the observations."""
        if normalize_images and self.takes_frames(name):
            return to_unit(values, dtype)
        preprocessed = preprocess_obs(values, self.views[name].space, normalize_images)
        return self._scale(name, cast(Tensor, preprocessed))

    def shift(self, observations: Observations, pixels: int | None = None) -> Observations:
        """Observations with every encoded image randomly shifted, see :func:`~rl_ae.pixels.random_shift`.

        Args:
            observations: A batch, prepared or not.
            pixels: Largest shift; DrQ's 4 of 84 pixels, in proportion to the image's shorter side, if ``None``.
        """

        def shift(name: str, values: Tensor) -> Tensor:
            if name not in self.encoders or not self.views[name].is_image:
                return values
            largest = max(round(min(values.shape[-2:]) * 4 / 84), 1) if pixels is None else pixels
            return random_shift(values, largest)

        if isinstance(observations, Tensor):
            return shift(OBSERVATION, observations)
        return {name: shift(name, values) for name, values in observations.items()}

    def takes_frames(self, name: str) -> bool:
        """Whether a part is encoded from ``uint8`` frames in [0, 255]."""
        view = self.views[name]
        return view.is_image and is_image_space(view.space)

    def scale(self, observations: Observations) -> Observations:
        """Bring images with bounds of their own to [0, 1], and everything that is no image to vectors (B, N)."""
        if isinstance(observations, Tensor):
            return self._scale(OBSERVATION, observations)
        return {name: self._scale(name, observations[name]) for name in self.views}

    def _scale(self, name: str, values: Tensor) -> Tensor:
        if not self.views[name].is_image:
            return values.flatten(1)
        low = getattr(self, f"{name}_low")
        return values if low is None else scale_range(values, low, getattr(self, f"{name}_high"))

    def _check_range(self, observations: Observations) -> None:
        parts = {OBSERVATION: observations} if isinstance(observations, Tensor) else observations
        images = {name: parts[name] for name, view in self.views.items() if name in self.encoders and view.is_image}
        brightest = {name: image.max().item() for name, image in images.items()}
        for name, value in brightest.items():
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if low is None and value > 1.0:
                raise ValueError(
                    f"expected images in [0, 1], got values up to {value}: with normalize_images=False the "
                    "environment must scale them itself"
                )
            if low is not None and value > 1.0 + 1e-4:  # what rounding may do
                raise ValueError(
                    f"{name} exceeds the bounds that its space declares, up to {high.max().item()}, by "
                    f"{value - 1.0:.2g} of their range: declare what the values can be"
                )
        self._range_checked = all(value > 0.0 for value in brightest.values())

    def latent(self, observations: Observations) -> Tensor:
        """Observations with images in [0, 1] to features (B, D): :meth:`head` of :meth:`trunk`."""
        return self.head(self.trunk(observations))

    def trunk(self, observations: Observations) -> dict[str, Tensor]:
        """Observations with images in [0, 1] to what the heads read, by name: maps (B, F, h, w), or (B, F)."""
        parts = {OBSERVATION: observations} if isinstance(observations, Tensor) else observations
        features = {}
        for name in self.views:
            trunk = cast(Encoder, self.encoders[name]).trunk if name in self.encoders else nn.Identity()
            features[name] = trunk(parts[name])
        return features

    def head(self, features: dict[str, Tensor]) -> Tensor:
        """What :meth:`trunk` returned to features (B, D), from the latents' modes."""
        return self.join(features, self.latents(features))

    def latents(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """What :meth:`trunk` returned to a :class:`~rl_ae.latents.Latent` of each encoder, by name."""
        return {name: cast(Encoder, encoder).head(features[name]) for name, encoder in self.encoders.items()}

    def join(self, features: dict[str, Tensor], latents: dict[str, Any], sample: bool = False) -> Tensor:
        """Latents, each by its mode or a sample, and what goes straight to the policy, as features (B, D)."""
        parts = [
            cast(Tensor, latents[name].sample() if sample else latents[name].mode) if name in latents else values
            for name, values in features.items()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def only(modules: nn.ModuleDict) -> nn.Module:
    """The single module of a dictionary.

    Raises:
        ValueError: If there are several; names them.
    """
    if len(modules) != 1:
        raise ValueError(f"there is one each for {sorted(modules)}: choose by name")
    return next(iter(modules.values()))
