"""Adversary: the discriminator of FactorVAE and the one step that trains it."""

import torch
from torch import Tensor

from rl_ae.losses.disentangling import Discriminator, discriminator_loss, permute_latents
from rl_ae.optimizers import Adam


class Adversary:
    """A discriminator and its optimizer.

    The discriminator learns to tell draws of the latent from the same draws with their dimensions permuted apart; the
    draws are detached, so that nothing it learns from reaches the encoder (arXiv 1802.05983, Algorithm 2). The paper
    permutes a second batch; here the same one is, so that the autoencoder and the discriminator see every sample, odd
    batches included.

    Args:
        discriminator: What is trained.
        learning_rate: Of its Adam, with β = (0.5, 0.9) as in the paper.

    Attributes:
        discriminator: As given.
        optimizer: Of its parameters.
    """

    def __init__(self, discriminator: Discriminator, learning_rate: float) -> None:
        self.discriminator = discriminator
        self.optimizer = Adam(discriminator.parameters(), lr=learning_rate, betas=(0.5, 0.9))

    def update(self, z: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Take one gradient step.

        Args:
            z: Draws of the latent, (B, D).
            generator: Of the permutation; torch's global one if omitted.

        Returns:
            ``{"discriminator": loss}``, a detached scalar: ln 2 where it cannot tell.
        """
        z = z.detach()
        loss = discriminator_loss(self.discriminator(z), self.discriminator(permute_latents(z, generator)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"discriminator": loss.detach()}
