"""Wrappers: environments that return latents of a frozen autoencoder instead of frames.

Each frame is encoded once, when it is seen. A replay buffer then holds a latent's 32 floats (128 bytes) where it held
9×84×84 pixels (63,504 bytes), an update runs no convolution, and any algorithm with ``"MlpPolicy"`` can learn from it.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from rl_ae.autoencoders import Autoencoder, Encoder
from rl_ae.configs import DEFAULT_AUTOENCODER
from rl_ae.factory import is_pretrained, load_pretrained
from rl_ae.networks import TanhProjection
from rl_ae.pixels import scale_range
from rl_ae.sb3.observations import OBSERVATION, View, bounds

#: What encodes: the folder (or Hub id) of a saved autoencoder, or a trained module, which is copied.
Pretrained = str | Path | Autoencoder | Encoder

Array = np.ndarray[Any, np.dtype[Any]]


class LatentObservation(TransformObservation[Any, Any, Any]):
    """A Gymnasium environment whose frames become latents: their mode, (D,), ``float32``.

    ``render`` still shows frames.

    Args:
        env: Environment that returns images, (C, H, W) or (H, W, C), ``uint8`` or of finite bounds; or a ``Dict``.
        autoencoder: Folder of a saved autoencoder, an :class:`~rl_ae.Autoencoder` or an :class:`~rl_ae.Encoder`. Of a
            module a copy is taken: what it learns later changes no latent here.
        key: Of a ``Dict``, the images to encode, a name or several; the others pass.
        device: Where the encoder runs.

    Raises:
        ValueError: If the images do not fit the autoencoder, or ``key`` does not name them.
        TypeError: If ``autoencoder`` is something else.
        FileNotFoundError: If there is no such folder.

    Example:
        >>> env = LatentObservation(gym.make("CarRacing-v3"), "eyes")  # doctest: +SKIP
        >>> SAC("MlpPolicy", env).learn(100_000)  # doctest: +SKIP
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        autoencoder: Pretrained,
        key: str | Sequence[str] | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        gym.utils.RecordConstructorArgs.__init__(
            self, autoencoder=autoencoder, key=key, device=device, _disable_deepcopy=True
        )
        eyes = _Eyes(env.observation_space, autoencoder, key, device)
        super().__init__(env, eyes.encode, eyes.latent_space)


class VecLatentObservation(VecEnvWrapper):
    """The same for a ``VecEnv``: the frames of all environments are encoded in one forward pass.

    ``terminal_observation`` in the infos is encoded, too. Stacks, as ``VecFrameStack`` makes, go around it to stack
    latents or inside of it to encode stacks of frames, whichever the autoencoder has been trained on.

    Args:
        venv: Vectorised environment; its observations are those of :class:`LatentObservation`.
        autoencoder: See there.
        key: See there.
        device: See there.

    Raises:
        ValueError: As :class:`LatentObservation`.
        TypeError: As there.
        FileNotFoundError: As there.
    """

    def __init__(
        self,
        venv: VecEnv,
        autoencoder: Pretrained,
        key: str | Sequence[str] | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        self._eyes = _Eyes(venv.observation_space, autoencoder, key, device)
        super().__init__(venv, observation_space=self._eyes.latent_space)

    def reset(self) -> VecEnvObs:
        latents: VecEnvObs = self._eyes.encode(self.venv.reset())
        return latents

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._eyes.encode(info["terminal_observation"])
        return self._eyes.encode(observations), rewards, dones, infos


class _Eyes:
    """A frozen encoder and the space of its latents: what both wrappers do to observations.

    Raises:
        ValueError: See :class:`LatentObservation`.
        TypeError: See there.
        FileNotFoundError: See there.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        autoencoder: Pretrained,
        key: str | Sequence[str] | None,
        device: torch.device | str,
    ) -> None:
        self.keys = _image_keys(space, key)
        images = {name: space[name] for name in self.keys} if isinstance(space, spaces.Dict) else {OBSERVATION: space}
        module = _trained_module(autoencoder)
        #: What the encoder takes: (C, H, W), or (N,) of vectors.
        self.shape = (
            module.observation_shape
            if isinstance(module, Autoencoder)
            else _channels_first_shape(next(iter(images.values())))
        )
        self.device = get_device(device)
        #: By key: what of the images becomes 0 and 1, if they are not in that range already.
        self.bounds = {name: self._bounds(image) for name, image in images.items()}

        encoder = copy.deepcopy(module.encoder if isinstance(module, Autoencoder) else module)
        self.encoder = encoder.to(self.device).eval().requires_grad_(False)
        bound = 1.0 if isinstance(encoder.head, TanhProjection) else np.inf
        latent = spaces.Box(-bound, bound, (encoder.latent_dim,), np.float32)
        #: Of the observations with latents in the images' places.
        self.latent_space: spaces.Space[Any] = latent
        if isinstance(space, spaces.Dict):
            self.latent_space = spaces.Dict({**space, **dict.fromkeys(self.keys, latent)})

    def _bounds(self, space: spaces.Space[Any]) -> tuple[Tensor, Tensor] | None:
        """The bounds to scale images by, refused where there are none or the shape is another one."""
        if not isinstance(space, spaces.Box) or len(space.shape) != len(self.shape):
            raise ValueError(f"expected a Box of shape {self.shape}, got {space}")
        low, high = self._channels_first(space.low), self._channels_first(space.high)
        if len(self.shape) == 3 and not np.all(np.isfinite([low, high])):
            raise ValueError(
                f"expected images with finite bounds, got [{low.min()}, {high.max()}]: declare what the values can be"
            )
        of_bytes = torch.tensor(0.0), torch.tensor(255.0)  # which Stable-Baselines3 scales for an agent
        ordered = spaces.Box(low, high, dtype=space.dtype)
        found = of_bytes if is_image_space(space) else bounds(View(ordered, self.shape, DEFAULT_AUTOENCODER))
        return None if found is None else (found[0].to(self.device), found[1].to(self.device))

    def _channels_first(self, images: Array) -> Array:
        """Images, one or a batch, in the shape the encoder takes."""
        shape = images.shape[-len(self.shape) :]
        if shape == self.shape:
            return images
        if shape == (*self.shape[1:], self.shape[0]):
            return np.moveaxis(images, -1, -3)
        raise ValueError(
            f"the autoencoder encodes observations of shape {self.shape}, or with the channels last; got {shape}"
        )

    def encode(self, observations: Any) -> Any:
        """Observations, one or a batch, with latents in the images' places."""
        if not isinstance(observations, dict):
            return self._encode_part(OBSERVATION, observations)
        return {**observations, **{key: self._encode_part(key, observations[key]) for key in self.keys}}

    @torch.no_grad()
    def _encode_part(self, name: str, values: Array) -> Array:
        ordered = self._channels_first(np.asarray(values))
        # a copy: torch takes neither read-only nor flipped arrays
        batch = torch.from_numpy(ordered.reshape(-1, *self.shape).copy()).to(self.device)
        latents: Array = self.encoder(self._scale(name, batch)).mode.cpu().numpy()
        return latents.reshape(*ordered.shape[: -len(self.shape)], -1)

    def _scale(self, name: str, batch: Tensor) -> Tensor:
        """Images to [0, 1], as an agent that sees them would; vectors as they are."""
        if len(self.shape) == 1:
            return batch.float()
        limits = self.bounds[name]
        return batch.float() if limits is None else scale_range(batch.float(), *limits)


def _image_keys(space: spaces.Space[Any], key: str | Sequence[str] | None) -> tuple[str, ...]:
    """The keys of a ``Dict``'s images, none of another space; refused if they are missing or not the space's."""
    if not isinstance(space, spaces.Dict):
        if key is not None:
            raise ValueError(f"key={key!r} names an entry of a Dict of observations, got {space}")
        return ()
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    if not keys or not set(keys) <= set(space):
        raise ValueError(f"key must name the images to encode, some of {sorted(space)}; got {key!r}")
    return keys


def _trained_module(autoencoder: Any) -> Autoencoder | Encoder:
    if isinstance(autoencoder, Autoencoder | Encoder):
        return autoencoder
    if is_pretrained(autoencoder):
        return load_pretrained(autoencoder)
    raise TypeError(
        "autoencoder must be trained: expected the folder of a saved one, an Autoencoder or an Encoder, got "
        f"{autoencoder!r}"
    )


def _channels_first_shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    """The shape of a space, with an image's channels where Stable-Baselines3 puts them."""
    shape = space.shape or ()
    if len(shape) == 3 and not is_image_space_channels_first(cast(spaces.Box, space)):
        return (shape[2], *shape[:2])
    return shape
