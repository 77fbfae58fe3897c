"""Evaluation: what a policy earns from fixed starts, and how well the autoencoder sees what happens."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer

from rl_ae.analysis.figures import last_frame
from rl_ae.autoencoders import Autoencoder
from rl_ae.losses import psnr
from rl_ae.pixels import to_unit

#: Episodes start from these seeds: far from any seed a training run is likely to use.
FIRST_START_SEED = 1_000_000_000

Observations = np.ndarray[Any, np.dtype[Any]]


class Predictor(Protocol):
    """Anything with Stable-Baselines3's ``predict``."""

    def predict(self, observation: Observations, *, deterministic: bool) -> tuple[Any, Any]:
        """Observation (C, H, W) to (action, state)."""


class RandomPolicy:
    """Uniform actions: the baseline every table starts with.

    Args:
        action_space: Space to draw from; seeded here.
        seed: Of the draws.
    """

    def __init__(self, action_space: gym.Space[Any], seed: int = 0) -> None:
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(self, observation: Observations, *, deterministic: bool = False) -> tuple[Any, None]:
        """A random action, whatever the observation."""
        return self.action_space.sample(), None


class Episode(NamedTuple):
    """One episode.

    Attributes:
        episode_return: Sum of the environment's own rewards, unscaled.
        observations: (T, C, H, W), what the policy saw.
    """

    episode_return: float
    observations: Observations


def play_episode(policy: Predictor, env: gym.Env[Any, Any], start_seed: int, deterministic: bool = True) -> Episode:
    """Play one episode from a fixed start.

    Args:
        policy: Who acts.
        env: Environment with a ``Monitor`` (see :func:`~rl_ae.envs.make_pixel_env`), whose return is reported.
        start_seed: Seed of the reset.
        deterministic: Act with the most likely action.
    """
    observation, _ = env.reset(seed=start_seed)
    observations: list[Observations] = []
    done = False
    while not done:
        observations.append(np.asarray(observation))
        action, _ = policy.predict(observations[-1], deterministic=deterministic)
        observation, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    return Episode(float(info["episode"]["r"]), np.stack(observations))


def start_seeds(episodes: int) -> range:
    """The start seeds of an evaluation of so many episodes."""
    return range(FIRST_START_SEED, FIRST_START_SEED + episodes)


@torch.no_grad()
def reconstruct(
    autoencoder: Autoencoder, observations: Observations | torch.Tensor, batch_size: int = 64
) -> torch.Tensor:
    """Reconstruct observations as an environment returns them, from their latents' modes.

    Args:
        autoencoder: ``model.policy.autoencoder`` of an agent, say.
        observations: (T, C, H, W), ``uint8`` or floats in [0, 1].
        batch_size: Observations a forward pass.

    Returns:
        Floats of the same shape, near [0, 1].

    Raises:
        ValueError: If floats lie outside [0, 1].
    """
    device = next(autoencoder.parameters()).device
    frames = torch.as_tensor(observations)
    if (
        frames.is_floating_point()
        and len(autoencoder.observation_shape) == 3
        and not 0.0 <= frames.min() <= frames.max() <= 1.0
    ):
        raise ValueError(
            f"expected uint8 images or floats in [0, 1], got [{frames.min().item()}, {frames.max().item()}]: "
            "model.policy.reconstruct scales observations by their space's bounds"
        )
    return torch.cat([autoencoder.reconstruct(to_unit(batch.to(device))).cpu() for batch in frames.split(batch_size)])


class ReconstructionQuality(NamedTuple):
    """How well an autoencoder returns the frames of some episodes.

    Attributes:
        psnr: Of the reconstructions, in dB, over all frames and pixels.
        mean_frame_psnr: Of the best constant image, the mean of these very frames, in dB: what an autoencoder that
            looks at nothing could reach.
    """

    psnr: float
    mean_frame_psnr: float


def reconstruction_quality(autoencoder: Autoencoder, observations: Sequence[Observations]) -> ReconstructionQuality:
    """PSNR of the reconstructions beside that of the mean frame.

    Args:
        autoencoder: The autoencoder.
        observations: (T, C, H, W) of each episode.
    """
    count, error = 0, torch.zeros((), dtype=torch.float64)
    first = torch.zeros(observations[0].shape[1:], dtype=torch.float64)
    second = torch.zeros_like(first)
    for episode in observations:
        frames = to_unit(torch.as_tensor(episode), torch.float64)
        count += len(frames)
        error += (reconstruct(autoencoder, episode) - frames).square().mean(dim=(1, 2, 3)).sum()
        first += frames.sum(dim=0)
        second += frames.square().sum(dim=0)
    variance = (second / count - (first / count).square()).mean()
    return ReconstructionQuality(psnr(error / count).item(), psnr(variance).item())


def spread_observations(buffer: ReplayBuffer, count: int) -> Observations:
    """``count`` observations (count, C, H, W) spread evenly over a replay buffer, of its first environment."""
    rows = np.linspace(0, buffer.size() - 1, count).astype(int)
    observations: Observations = torch.as_tensor(buffer.observations[rows, 0]).cpu().numpy()
    return observations


def compare(
    observations: Observations | torch.Tensor, autoencoder: Autoencoder, frame_channels: int
) -> tuple[Any, Any]:
    """Newest frames and their reconstructions, both ``uint8`` (T, H, W, 3)."""
    reconstructions = reconstruct(autoencoder, observations).numpy()
    return last_frame(observations, frame_channels), last_frame(reconstructions, frame_channels)
