"""Diagnostics: numbers that answer "is my encoder trained?", from latents and gradients.

Beside them, :func:`~rl_ae.losses.psnr` measures the reconstruction.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl_ae.autoencoders import Autoencoder
from rl_ae.latents import GaussianLatent, HierarchicalLatent
from rl_ae.likelihoods import Likelihood
from rl_ae.losses import active_units, bits_per_dimension, psnr
from rl_ae.pixels import dequantize

__all__ = [
    "PrincipalComponents",
    "active_units",
    "bits_per_dimension",
    "describe_autoencoder",
    "describe_latents",
    "effective_rank",
    "evaluating",
    "gradient_cosine",
    "gradient_norm",
    "latent_norm",
    "level_log_prob",
    "principal_components",
    "total_norm",
]


def effective_rank(latents: Tensor) -> Tensor:
    r"""How many directions a batch of latents spreads in: exp of the entropy of its singular values.

    :math:`\exp(-\sum_k p_k \log p_k)` with :math:`p_k = \sigma_k / \sum_j \sigma_j`, of the centred latents. Roy &
    Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007, eq. 4.

    Args:
        latents: (B, D).

    Returns:
        A scalar between 1 and min(B - 1, D); 0 where all latents are the same, NaN where one is not finite.

    Raises:
        ValueError: If the latents are not (B, D).
    """
    latents = _matrix(latents)
    if not torch.isfinite(latents).all():  # on which the decomposition does not converge
        return torch.full((), torch.nan)
    singular = _without_rounding(torch.linalg.svdvals(latents - latents.mean(dim=0)), latents)
    share = singular / singular.sum().clamp_min(torch.finfo(latents.dtype).tiny)
    return torch.where(singular.sum() > 0.0, torch.special.entr(share).sum().exp(), 0.0)


class PrincipalComponents(NamedTuple):
    """The directions in which a batch of latents spreads most.

    Attributes:
        coordinates: Of the centred latents along them, (B, count), the widest first.
        shares: Of the variance that is along each, (count,), in [0, 1].
    """

    coordinates: Tensor
    shares: Tensor


@torch.no_grad()
def principal_components(latents: Tensor, count: int = 2) -> PrincipalComponents:
    """Latents seen from where they differ most; of each direction the sign in which its largest coordinate is positive.

    Args:
        latents: (B, D), detached or not.
        count: How many directions; those beyond min(B, D) are zeros.

    Raises:
        ValueError: If the latents are not (B, D).
    """
    latents = _matrix(latents)
    left, singular, _ = torch.linalg.svd(latents - latents.mean(dim=0), full_matrices=False)
    singular = _without_rounding(singular, latents)
    coordinates = left * singular
    largest = coordinates.gather(0, coordinates.abs().argmax(dim=0, keepdim=True))
    coordinates = coordinates * torch.where(largest < 0.0, -1.0, 1.0)
    tiny = torch.finfo(singular.dtype).tiny
    shares = singular.square() / singular.square().sum().clamp_min(tiny)
    missing = max(count - len(singular), 0)
    return PrincipalComponents(
        nn.functional.pad(coordinates[:, :count], (0, missing)), nn.functional.pad(shares[:count], (0, missing))
    )


def latent_norm(latents: Tensor) -> Tensor:
    """Mean Euclidean length of latents (B, D), a scalar ≥ 0.

    Raises:
        ValueError: If the latents are not (B, D).
    """
    lengths: Tensor = torch.linalg.vector_norm(_matrix(latents), dim=1)
    return lengths.mean()


@torch.no_grad()
def describe_latents(latents: Tensor) -> dict[str, Tensor]:
    """Active units, effective rank and norm of latents (B, D), detached scalars by name."""
    latents = _matrix(latents)
    return {
        "active_units": active_units(latents),
        "effective_rank": effective_rank(latents),
        "latent_norm": latent_norm(latents),
    }


@torch.no_grad()
def describe_autoencoder(
    autoencoder: Autoencoder, observations: Tensor, target: Tensor | None = None
) -> dict[str, Tensor]:
    """How well observations come back from their latents' modes, and what those latents are like.

    Args:
        autoencoder: The autoencoder.
        observations: Images (B, C, H, W) in [0, 1], or vectors (B, N).
        target: What is to come back, the same shape; the observations if omitted.

    Returns:
        Detached scalars by name: ``psnr`` in dB, what :func:`describe_latents` returns, and for a Gaussian or
        hierarchical latent ``latent_kl``, the mean KL of a sample in nats before any free nats; of a hierarchy, that on
        the way to the mode.
    """
    latent = autoencoder.encode(observations)
    target = observations if target is None else target
    error = (autoencoder.decode(latent.mode) - target).float().square().mean()
    perfect = torch.finfo(torch.float32).eps ** 2  # and no infinite PSNR
    described = {"psnr": psnr(error.clamp_min(perfect)), **describe_latents(latent.mode)}
    if isinstance(latent, GaussianLatent | HierarchicalLatent):
        described["latent_kl"] = latent.kl().sum(dim=1).mean()
    return described


def level_log_prob(
    likelihood: Likelihood, images: Tensor, bits: int = 8, generator: torch.Generator | None = None
) -> Tensor:
    r"""Log-probability of grey levels under a density, in nats, (B,): in expectation a lower bound of it.

    A level's probability is the integral of the density over its width :math:`2^{-bits}`, and by Jensen's inequality
    :math:`\log P(k) \ge E_u[\log p((k + u) / 2^{bits})] - C H W\,bits \log 2` with uniform u (Theis et al., arXiv
    1511.01844, eq. 10 to 13). Minus it, :func:`bits_per_dimension` makes comparable what is said about the same levels.

    Args:
        likelihood: With a density of images in [0, 1]; one without its constant, as a
            :class:`~rl_ae.likelihoods.SquaredError`, has none.
        images: (B, C, H, W), multiples of 1/255 in [0, 1].
        bits: Bits of the levels, 1 to 8; finer ones are dropped.
        generator: Of the noise, on the images' device; torch's global one if omitted.

    Raises:
        ValueError: If the images are not on the grid of 8 bits, or ``bits`` is out of range.
    """
    levels = 255.0 * images
    distance = (levels - levels.round().clamp(0.0, 255.0)).abs().max().item()
    if not distance < 0.01:
        raise ValueError(f"expected multiples of 1/255 in [0, 1], got images up to {distance:.3g} levels away from any")
    noise = torch.rand(images.shape, generator=generator, dtype=images.dtype, device=images.device)
    elements = math.prod(images.shape[1:])
    return likelihood.log_prob(dequantize(images, bits, noise)) - elements * bits * math.log(2.0)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """:func:`total_norm` of the gradients that parameters hold."""
    return total_norm(parameter.grad for parameter in parameters)


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """Euclidean norm of gradients as one vector, a scalar; 0 where all are ``None``."""
    norm: Tensor = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    return norm


def gradient_cosine(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Tensor:
    """Cosine of the angle between two losses' gradients: below 0 they pull apart.

    Du et al., "Adapting auxiliary losses using gradient similarity", arXiv 1812.02224, section 3.

    Args:
        first: Gradients of one loss, a tensor a parameter, ``None`` where it does not reach it; as
            ``torch.autograd.grad(..., allow_unused=True)`` returns them.
        second: Those of another loss for the same parameters.

    Returns:
        A scalar in [-1, 1]; 0 where either gradient vanishes.

    Raises:
        ValueError: If the lists are not of one length.
    """
    if len(first) != len(second):
        raise ValueError(f"expected gradients of the same parameters: got {len(first)} and {len(second)}")
    lengths = [total_norm(gradients) for gradients in (first, second)]
    if not all(length > 0.0 for length in lengths):
        return torch.zeros(())
    products = [
        (one.float() * other.float()).sum()
        for one, other in zip(first, second, strict=True)
        if one is not None and other is not None
    ]
    return torch.stack(products).sum() / (lengths[0] * lengths[1]) if products else torch.zeros(())


def _without_rounding(singular: Tensor, latents: Tensor) -> Tensor:
    """Singular values of centred latents (B, D), 0 where they are no more than what centring rounds."""
    rounding = max(latents.shape) * torch.finfo(latents.dtype).eps * torch.linalg.matrix_norm(latents)
    return torch.where(singular > rounding, singular, 0.0)


def _matrix(latents: Tensor) -> Tensor:
    """Latents (B, D) in at least single precision."""
    if latents.ndim != 2:
        raise ValueError(f"expected latents (B, D), got {tuple(latents.shape)}")
    return latents if latents.dtype == torch.float64 else latents.float()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[torch.device]:
    """Evaluation without gradients, on the device that is given; each module gets its own mode back."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    finally:
        for each, training in modes:  # not train(): a frozen part would be woken
            each.training = training
