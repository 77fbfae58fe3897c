"""Extractor: an autoencoder's encoder as a Stable-Baselines3 features extractor."""

from collections.abc import Callable
from typing import Self, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rl_ae.autoencoders import Encoder
from rl_ae.configs import DEFAULT_AUTOENCODER
from rl_ae.factory import AutoencoderLike, create_encoder, resolve_config
from rl_ae.pixels import MIN_IMAGE_SIZE


def image_shape(space: spaces.Space[object]) -> tuple[int, int, int]:
    """The (C, H, W) of an image space, as Stable-Baselines3 hands it to a policy.

    Args:
        space: ``Box`` of shape (C, H, W), ``uint8`` with bounds [0, 255] or floating point with bounds in [0, 1].

    Raises:
        ValueError: If the space is not such an image, or is smaller than 8×8 pixels.
    """
    expected = "expected images: Box of shape (C, H, W), uint8 in [0, 255] or float in [0, 1]"
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        raise ValueError(
            f"{expected}; got {space}. Render the environment (rl_ae.envs.make_pixel_env) or use SAC with MlpPolicy."
        )
    if not is_image_space(space):
        if not np.issubdtype(space.dtype, np.floating):
            raise ValueError(f"{expected}; got {space}. Stable-Baselines3 scales only uint8 images in [0, 255].")
        if np.any(space.low < 0.0) or np.any(space.high > 1.0):
            raise ValueError(
                f"{expected}; got floats in [{space.low.min()}, {space.high.max()}]. "
                "Return uint8 frames, or scale the images and the space's bounds to [0, 1]."
            )
        if int(np.argmin(space.shape)) == 2:
            raise ValueError(f"float images must put their channels first: expected (C, H, W), got {space.shape}")
    channels, height, width = space.shape
    if min(height, width) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"images must have at least {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE} pixels; got shape {space.shape} read as "
            f"(C, H, W), {height}×{width} pixels"
        )
    return channels, height, width


class AutoencoderExtractor(BaseFeaturesExtractor):
    """The encoder of an autoencoder, for any policy's ``features_extractor_class``.

    Features are the latent's mode, (B, D). Images arrive in [0, 1], as Stable-Baselines3 scales them; with
    ``normalize_images=False`` an environment must return floats in [0, 1] itself.
    In a stock agent the agent's own loss trains the encoder; :class:`~rl_ae.sb3.AuxiliaryLossCallback` adds the
    reconstruction.

    Args:
        observation_space: Image space, see :func:`image_shape`.
        autoencoder: A name in :data:`~rl_ae.configs.CONFIGS`, a config, a class, or the folder of a saved autoencoder,
            whose weights are then the start; never a module.

    Raises:
        ValueError: If the space is not an image, the name is unknown, or a saved autoencoder is for another shape.
        TypeError: If ``autoencoder`` is a live module.
    """

    def __init__(self, observation_space: spaces.Box, autoencoder: AutoencoderLike = DEFAULT_AUTOENCODER) -> None:
        shape = image_shape(observation_space)
        encoder = create_encoder(autoencoder, shape)
        super().__init__(observation_space, features_dim=encoder.latent_dim)
        self.encoder = encoder
        #: As it was given; with the config it stands for, what a decoder is built from.
        self.autoencoder = autoencoder
        self.autoencoder_config = resolve_config(autoencoder, shape)
        self._range_checked = False

    def replace_head(self, head: nn.Module, features_dim: int) -> None:
        """Read the trunk through another head: trunk features (B, F) to a latent of ``features_dim``."""
        self.encoder = Encoder(self.encoder.trunk, head, features_dim)
        self._features_dim = features_dim

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Apply a function to all modules, but for the ``ortho_init`` of PPO and A2C.

        It would overwrite a saved autoencoder's weights, and the initialisation an autoencoder brings along.
        """
        if getattr(fn, "func", fn) is BasePolicy.init_weights:
            return self
        return super().apply(fn)

    def forward(self, observations: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to features (B, D).

        Raises:
            ValueError: If the first images with any light in them exceed 1: nobody has scaled them.
        """
        if not self._range_checked:  # once, because it waits for the device
            brightest = observations.max().item()
            if brightest > 1.0:
                raise ValueError(
                    f"expected images in [0, 1], got values up to {brightest}: with normalize_images=False the "
                    "environment must scale them itself"
                )
            self._range_checked = brightest > 0.0
        return cast(Tensor, self.encoder(observations).mode)
