"""How far a reconstruction is from its target."""

import torch
from torch import Tensor


def squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    r""":math:`\frac{1}{B} \sum_b \lVert \hat x_b - x_b \rVert^2`: summed over pixels, averaged over the batch.

    Up to a constant the negative log-likelihood, in nats, of a Gaussian with variance 1/2.

    Args:
        reconstruction: (B, ...).
        target: The same shape.

    Returns:
        A scalar.

    Raises:
        ValueError: If the shapes differ (they would broadcast silently).
    """
    if reconstruction.shape != target.shape:
        raise ValueError(f"reconstruction {tuple(reconstruction.shape)} and target {tuple(target.shape)} must agree")
    return (reconstruction - target).square().sum() / target.shape[0]


def psnr(mean_squared_error: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio in dB, :math:`-10 \log_{10} \mathrm{MSE}`, of images in [0, 1].

    Args:
        mean_squared_error: Mean over pixels, any shape.
    """
    return -10.0 * torch.log10(mean_squared_error)
