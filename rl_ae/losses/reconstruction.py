"""How far a reconstruction is from its target."""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rl_ae.likelihoods import Bernoulli, Gaussian, Laplace, Likelihood, OptimalGaussian, SquaredError
from rl_ae.logistic_mixture import LogisticMixture

Number = TypeVar("Number", float, Tensor)


def negative_log_likelihood(reconstruction: Likelihood | Tensor, target: Tensor) -> Tensor:
    """Minus the log-density of the target in nats: summed over pixels, averaged over the batch.

    Args:
        reconstruction: A likelihood, or a tensor (B, ...), whose squared error then counts.
        target: (B, ...).

    Returns:
        A scalar.

    Raises:
        ValueError: If the shapes differ, or the target is outside the likelihood's support.
    """
    likelihood = SquaredError(reconstruction) if isinstance(reconstruction, Tensor) else reconstruction
    return -likelihood.log_prob(target).mean()


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
    return negative_log_likelihood(SquaredError(reconstruction), target)


def gaussian_nll(mean: Tensor, target: Tensor, sigma: float | Tensor) -> Tensor:
    """Negative log-likelihood of a Gaussian with a fixed or learned σ, a scalar; see :class:`Gaussian`."""
    sigma = torch.as_tensor(sigma, dtype=target.dtype, device=target.device)
    return negative_log_likelihood(Gaussian(mean, sigma), target)


def optimal_gaussian_nll(mean: Tensor, target: Tensor) -> Tensor:
    """The same with the best σ for the batch (arXiv 2006.13202), a scalar; see :class:`OptimalGaussian`."""
    return negative_log_likelihood(OptimalGaussian(mean), target)


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of targets in [0, 1] under logits, a scalar; see :class:`Bernoulli`."""
    return negative_log_likelihood(Bernoulli(logits), target)


def laplace_nll(mean: Tensor, target: Tensor, scale: float | Tensor) -> Tensor:
    """Negative log-likelihood of a Laplace distribution of scale b, a scalar; see :class:`Laplace`."""
    scale = torch.as_tensor(scale, dtype=target.dtype, device=target.device)
    return negative_log_likelihood(Laplace(mean, scale), target)


def logistic_mixture_nll(
    logit_probs: Tensor,
    means: Tensor,
    log_scales: Tensor,
    coeffs: Tensor,
    target: Tensor,
    frame_channels: int,
    bits: int = LogisticMixture.bits,
) -> Tensor:
    """Negative log-likelihood of images (B, C, H, W) of ``bits`` bits, a scalar; see :class:`LogisticMixture`.

    The parameters are (B, C, K, H, W) each.
    """
    mixture = LogisticMixture(logit_probs, means, log_scales, coeffs, frame_channels, bits)
    return negative_log_likelihood(mixture, target)


def bits_per_dimension(nats: Number, observation_shape: Sequence[int]) -> Number:
    r"""Nats an observation as bits an element: :math:`\mathrm{nats} / (C H W \ln 2)`.

    The unit of, say, PixelRNN (arXiv 1601.06759, section 5.1).

    Args:
        nats: Negative log-likelihood of an observation, summed over its elements.
        observation_shape: (C, H, W) of images or (N,) of vectors.
    """
    return nats / (math.prod(observation_shape) * math.log(2.0))


def psnr(mean_squared_error: Tensor) -> Tensor:
    r"""Peak signal-to-noise ratio in dB, :math:`-10 \log_{10} \mathrm{MSE}`, of images in [0, 1].

    Args:
        mean_squared_error: Mean over pixels, any shape.
    """
    return -10.0 * torch.log10(mean_squared_error)
