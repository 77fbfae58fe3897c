"""Observations: what of an environment's observation which encoder reads, and in which range."""

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import Tensor

from rl_ae.configs import DEFAULT_AUTOENCODER, ObservationShape
from rl_ae.factory import AutoencoderLike, is_pretrained, resolve_config
from rl_ae.pixels import MIN_IMAGE_SIZE

#: Name of the only view of an observation that is not a ``Dict``.
OBSERVATION = "observation"

#: What stands for the autoencoders of an observation: one for all of its images, or one by name for a ``Dict``, with
#: ``None`` for what goes straight to the policy.
AutoencodersLike = AutoencoderLike | Mapping[str, AutoencoderLike | None]

#: A batch below Stable-Baselines3's preprocessing; by name for a ``Dict``.
Observations = Tensor | dict[str, Tensor]


class View(NamedTuple):
    """One part of an observation.

    Attributes:
        space: Its space.
        shape: (C, H, W) of images or (N,) of vectors, as Stable-Baselines3 hands it to a policy.
        autoencoder: What encodes it; ``None`` if it goes straight to the policy.
    """

    space: spaces.Space[object]
    shape: ObservationShape
    autoencoder: AutoencoderLike | None

    @property
    def is_image(self) -> bool:
        """Whether it reaches the policy as an image, not as a vector."""
        return len(self.shape) == 3


def make_views(space: spaces.Space[object], autoencoder: AutoencodersLike) -> dict[str, View]:
    """The parts of an observation by name, each with its shape and its autoencoder.

    Args:
        space: An image's (:func:`image_shape`), or a ``Dict`` of images and anything that Stable-Baselines3 flattens.
        autoencoder: Of the image; for a ``Dict`` of each image, or one for each name. A name that is left out gets the
            default for an image and nothing otherwise.

    Raises:
        ValueError: If there is no such image, name or form of an autoencoder, or nothing would be encoded.
        TypeError: If a live module is passed.
    """
    if not isinstance(space, spaces.Dict):
        if isinstance(autoencoder, Mapping):
            raise ValueError(f"autoencoders by name {sorted(autoencoder)} need a Dict of observations, got {space}")
        views = {OBSERVATION: View(space, image_shape(space), autoencoder)}
    else:
        views = _dict_views(space, autoencoder)
    for name, view in views.items():
        if view.autoencoder is not None:
            try:
                resolve_config(view.autoencoder, view.shape)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if isinstance(space, spaces.Dict) else str(error)) from error
    return views


def _dict_views(space: spaces.Dict, autoencoder: AutoencodersLike) -> dict[str, View]:
    if isinstance(autoencoder, Mapping):
        chosen, default = dict(autoencoder), cast(AutoencoderLike, DEFAULT_AUTOENCODER)
    else:
        chosen, default = {}, autoencoder
    if unknown := sorted(chosen.keys() - space.spaces.keys()):
        raise ValueError(f"autoencoders for {unknown}, but the observations are {sorted(space.spaces)}")
    views = {}
    for name, part in space.spaces.items():
        if "." in name:
            raise ValueError(f"the name of an observation may not contain a dot, got {name!r}")
        image = isinstance(part, spaces.Box) and len(part.shape) == 3
        own = chosen.get(name, default if image else None)
        straight = f'pass {{"{name}": None}} among the autoencoders to send it flattened to the policy'
        if isinstance(part, spaces.Box) and part.dtype == np.uint8 and len(part.shape) in (2, 4) and name not in chosen:
            raise ValueError(
                f"{name}: expected an image (C, H, W), got {part.shape}; reshape stacked frames to (n·C, H, W), a grey "
                f"one to (1, H, W), or {straight}"
            )
        shape: ObservationShape = (get_flattened_obs_dim(part),)
        if image and own is not None:
            try:
                shape = image_shape(part)
            except ValueError as error:
                raise ValueError(f"{name}: {error} Or {straight}.") from error
        views[name] = View(part, shape, own)
    if all(view.autoencoder is None for view in views.values()):
        raise ValueError(f"no autoencoder for any of {sorted(views)}: name one, or use the agent without rl_ae")
    return views


def image_shape(space: spaces.Space[object]) -> tuple[int, int, int]:
    """The (C, H, W) of an image space, as Stable-Baselines3 hands it to a policy.

    Args:
        space: ``Box`` of shape (C, H, W): ``uint8`` in [0, 255], or of any type with finite bounds, depth in metres
            say, which are then scaled to [0, 1].

    Raises:
        ValueError: If the space is not such an image, or is smaller than 8×8 pixels.
    """
    expected = "expected images: Box of shape (C, H, W), uint8 in [0, 255] or with finite bounds"
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        raise ValueError(
            f"{expected}; got {space}. Render the environment (rl_ae.envs.make_pixel_env), name its parts in a "
            "Dict, or use SAC with MlpPolicy."
        )
    if not is_image_space(space):
        if not np.all(np.isfinite([space.low, space.high])) or not np.all(space.low < space.high):
            raise ValueError(
                f"{expected}; got bounds [{space.low.min()}, {space.high.max()}]. Declare what the values can be, "
                "the camera's range for depth say."
            )
        if int(np.argmin(space.shape)) == 2:
            raise ValueError(f"images of floats must put their channels first: expected (C, H, W), got {space.shape}")
    channels, height, width = space.shape
    if min(height, width) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"images must have at least {MIN_IMAGE_SIZE}×{MIN_IMAGE_SIZE} pixels; got shape {space.shape} read as "
            f"(C, H, W), {height}×{width} pixels"
        )
    return channels, height, width


def bounds(view: View) -> tuple[Tensor, Tensor] | None:
    """What of an encoded image becomes 0 and 1, broadcastable to (C, H, W); ``None`` if it is in [0, 1] already.

    Stable-Baselines3 scales ``uint8`` images in [0, 255], and leaves all others to us.
    """
    if view.autoencoder is None or not view.is_image:
        return None
    box = cast(spaces.Box, view.space)
    if is_image_space(box) or (np.all(box.low == 0.0) and np.all(box.high == 1.0)):
        return None
    low, high = (torch.as_tensor(limit, dtype=torch.float32) for limit in (box.low, box.high))
    uniform = bool((low == low.flatten()[0]).all() and (high == high.flatten()[0]).all())
    return (low.flatten()[0], high.flatten()[0]) if uniform else (low, high)


def resolved(space: spaces.Space[object], autoencoder: AutoencodersLike) -> AutoencodersLike:
    """The same autoencoders, with the config of a saved one in place of its folder: once its weights are read."""
    read: dict[str, AutoencoderLike | None] = {}
    for name, view in make_views(space, autoencoder).items():
        saved = view.autoencoder is not None and is_pretrained(view.autoencoder)
        read[name] = resolve_config(cast(AutoencoderLike, view.autoencoder), view.shape) if saved else view.autoencoder
    return read if isinstance(space, spaces.Dict) else cast(AutoencoderLike, read[OBSERVATION])
