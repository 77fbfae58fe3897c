"""Deterministic autoencoders: the latent is a point."""

from typing import NamedTuple

from torch import Tensor

from rl_ae.autoencoders.base import Autoencoder
from rl_ae.latents import DeterministicLatent


class DeterministicOutput(NamedTuple):
    """``(reconstruction, z)``: what a deterministic autoencoder's forward returns.

    Attributes:
        reconstruction: (B, C, H, W), the shape of the input.
        z: (B, D).
    """

    reconstruction: Tensor
    z: Tensor


class ConvAutoencoder(Autoencoder):
    """Convolutional autoencoder for images of any size.

    With a penalty on the latent's norm and on the decoder's weights, both added by the learner, it is the regularised
    autoencoder (RAE, arXiv 1903.12436) of SAC-AE (arXiv 1910.01741).
    """

    def encode(self, images: Tensor) -> DeterministicLatent:
        """Encode images (B, C, H, W) in [0, 1] to points (B, D)."""
        latent: DeterministicLatent = super().encode(images)
        return latent

    def forward(self, images: Tensor) -> DeterministicOutput:
        z = self.encode(images).mode
        return DeterministicOutput(self.decode(z), z)
