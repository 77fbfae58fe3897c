"""What every autoencoder has: an encoder of two halves and a decoder."""

from typing import Any

from torch import Tensor, nn

from rl_ae.latents import Latent


class Encoder(nn.Module):
    """``head(trunk(x))``: images (B, C, H, W) in [0, 1] to a latent.

    The halves are separate because agents route gradients between them: SAC-AE's actor reads the critic's trunk,
    detached, through a head of its own.

    Args:
        trunk: (B, C, H, W) → (B, F).
        head: (B, F) → :class:`~rl_ae.latents.Latent`.
        latent_dim: D, the width of the latent's ``mode``.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.latent_dim = latent_dim

    def forward(self, images: Tensor) -> Latent:
        latent: Latent = self.head(self.trunk(images))
        return latent


class Autoencoder(nn.Module):
    """Encode, decode, and both in a row. Computes no loss.

    Args:
        encoder: (B, C, H, W) in [0, 1] → latent.
        decoder: (B, D) → (B, C, H, W).
        observation_shape: (C, H, W) of the images.
    """

    def __init__(self, encoder: Encoder, decoder: nn.Module, observation_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.observation_shape = observation_shape

    def encode(self, images: Tensor) -> Any:
        """Encode images (B, C, H, W) in [0, 1]; a :class:`~rl_ae.latents.Latent`.

        Raises:
            TypeError: If the images are not floating point, as frames are that nobody has scaled.
            ValueError: If the images do not have the autoencoder's shape.
        """
        if not images.is_floating_point():
            raise TypeError(f"expected floats in [0, 1], got {images.dtype}: scale frames with rl_ae.pixels.to_unit")
        if images.ndim != 4 or images.shape[1:] != self.observation_shape:
            expected = ", ".join(map(str, self.observation_shape))
            raise ValueError(f"expected images of shape (B, {expected}), got {tuple(images.shape)}")
        return self.encoder(images)

    def decode(self, z: Tensor) -> Tensor:
        """The mean reconstruction (B, C, H, W) of latents (B, D); near [0, 1], not clipped to it."""
        reconstruction: Tensor = self.decoder(z)
        return reconstruction
