"""Penalties on deterministic latents."""

from torch import Tensor, nn

from rl_ae.losses.base import LossBreakdown, weigh
from rl_ae.losses.reconstruction import squared_error


def latent_l2(z: Tensor) -> Tensor:
    r""":math:`\frac{1}{B} \sum_b \frac12 \lVert z_b \rVert^2` of latents (B, D), a scalar (RAE, arXiv 1903.12436)."""
    return 0.5 * z.square().sum() / z.shape[0]


class RAELoss(nn.Module):
    r"""The regularised autoencoder's loss, :math:`w\,\mathrm{SE} + \lambda_z\,\tfrac12 \lVert z \rVert^2`.

    RAE, arXiv 1903.12436, eq. 11, as used by SAC-AE (arXiv 1910.01741, eq. 5); the penalty on the decoder's weights is
    the decoder optimizer's weight decay.

    Args:
        latent_weight: λ_z, ≥ 0.
        reconstruction_weight: w. ``1 / (C·H·W)`` makes the squared error SAC-AE's mean over pixels, so that λ_z is in
            the paper's unit.
    """

    def __init__(self, latent_weight: float, reconstruction_weight: float = 1.0) -> None:
        super().__init__()
        self.weights = {"reconstruction": reconstruction_weight, "latent_l2": latent_weight}

    def forward(self, reconstruction: Tensor, target: Tensor, z: Tensor) -> LossBreakdown:
        """Weigh the terms.

        Args:
            reconstruction: (B, C, H, W).
            target: (B, C, H, W).
            z: (B, D).
        """
        terms = {"reconstruction": squared_error(reconstruction, target), "latent_l2": latent_l2(z)}
        return weigh(terms, self.weights)
