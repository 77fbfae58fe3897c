"""Latents: what ``encode`` returns, so that nobody asks which kind of autoencoder it was."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Latent(Protocol):
    """A latent code with a most likely value and samples."""

    @property
    def mode(self) -> Tensor:
        """The most likely latent, (B, D): what policies, targets and predictions read."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A latent drawn from the code's distribution, (B, D): what the decoder reads in training."""


class DeterministicLatent(NamedTuple):
    """A point: mode and samples coincide.

    Attributes:
        z: (B, D).
    """

    z: Tensor

    @property
    def mode(self) -> Tensor:
        """(B, D)."""
        return self.z

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(B, D), always :attr:`z`."""
        return self.z
