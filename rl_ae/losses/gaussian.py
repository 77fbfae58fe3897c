"""Losses of variational autoencoders with a Gaussian posterior, whose KL has a closed form."""

import torch
from torch import Tensor

from rl_ae.latents import GaussianLatent, Latent
from rl_ae.likelihoods import Likelihood
from rl_ae.losses.base import Loss, LossBreakdown, check_weights, weigh
from rl_ae.losses.reconstruction import negative_log_likelihood, squared_error
from rl_ae.losses.schedules import linear_schedule


def kl_standard_normal(mu: Tensor, logvar: Tensor) -> Tensor:
    r"""KL of N(μ, σ²) to N(0, 1) in nats: :math:`\frac12 (\mu^2 + \sigma^2 - 1 - \log \sigma^2)`.

    VAE, arXiv 1312.6114, Appendix B.

    Args:
        mu: (B, D).
        logvar: log σ², (B, D).

    Returns:
        (B, D), one value a dimension.
    """
    return GaussianLatent(mu, logvar).kl()


def free_nats(kl: Tensor, floor: float) -> Tensor:
    """KL that costs nothing new below a floor, averaged over the batch: ``mean_b max(KL_b, floor)``.

    As World Models (arXiv 1803.10122) uses them. Below the floor the gradient is exactly zero.

    Args:
        kl: KL of each sample, (B,), in nats.
        floor: Nats.

    Returns:
        A scalar.
    """
    return torch.where(kl > floor, kl, floor).mean()


def active_units(mu: Tensor, threshold: float = 0.01) -> Tensor:
    """Latent dimensions whose mean varies with the input: variance of μ over the batch above a threshold.

    Burda et al., arXiv 1509.00519.

    Args:
        mu: (B, D).
        threshold: Of the variance.

    Returns:
        A scalar count.
    """
    return (mu.var(dim=0, correction=0) > threshold).sum()


def gaussian(latent: Latent) -> GaussianLatent:
    """The latent, refused if it is of another kind.

    Raises:
        TypeError: If it is not a :class:`GaussianLatent`.
    """
    if not isinstance(latent, GaussianLatent):
        raise TypeError(f"this loss needs a GaussianLatent(mu, logvar), got a {type(latent).__name__}")
    return latent


class VAELoss(Loss):
    r"""The negative ELBO with a weight on its KL, :math:`\mathrm{NLL} + \beta(t)\,\mathrm{KL}`.

    VAE, arXiv 1312.6114, eq. 10; the weight is of the β-VAE (Higgins et al., ICLR 2017, eq. 4). Both terms are in nats,
    so that the effective β is β: 1 is the ELBO of the likelihood that decodes.

    Args:
        beta: β ≥ 0 after the warm-up.
        free_nats: Nats of a sample's total KL that cost nothing, see :func:`free_nats`.
        warmup_steps: Steps over which the weight rises linearly from 0 to β; 0 for none.
        mean_weight: Weight of the squared error of the decoded distribution's mean, summed over an image, beside its
            nats; for distributions whose nats say little of the mean.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(
        self, beta: float = 1.0, free_nats: float = 0.0, warmup_steps: int = 0, mean_weight: float = 0.0
    ) -> None:
        super().__init__()
        check_weights(beta=beta, free_nats=free_nats, warmup_steps=warmup_steps, mean_weight=mean_weight)
        self.beta, self.free_nats, self.warmup_steps = beta, free_nats, warmup_steps
        self.mean_weight = mean_weight

    def forward(
        self,
        reconstruction: Likelihood | Tensor,
        target: Tensor,
        latent: Latent,
        z: Tensor | None = None,
        *,
        step: int = 0,
        n_data: int | None = None,
    ) -> LossBreakdown:
        kl = gaussian(latent).kl().sum(dim=1)  # (B,)
        terms = {
            "reconstruction": negative_log_likelihood(reconstruction, target),
            "kl": free_nats(kl, self.free_nats) if self.free_nats > 0.0 else kl.mean(),
        }
        weights = {"reconstruction": 1.0, "kl": linear_schedule(step, 0.0, self.beta, self.warmup_steps)}
        if self.mean_weight > 0.0:
            mean = reconstruction if isinstance(reconstruction, Tensor) else reconstruction.mean
            terms["squared_error"], weights["squared_error"] = squared_error(mean, target), self.mean_weight
        return weigh(terms, weights)


class BetaHLoss(VAELoss):
    """The loss of β-VAE as Higgins et al. (ICLR 2017, https://openreview.net/forum?id=Sy2fzU9gl) use it: β > 1.

    Args:
        beta: β ≥ 0; 4 as in their dSprites experiments.
        warmup_steps: See :class:`VAELoss`.
    """

    def __init__(self, beta: float, warmup_steps: int = 0) -> None:
        super().__init__(beta=beta, warmup_steps=warmup_steps)


class BetaBLoss(Loss):
    r"""Controlled capacity, :math:`\mathrm{NLL} + \gamma\,|\mathrm{KL} - C(t)|`.

    Burgess et al., arXiv 1804.03599, eq. 8. The KL is the batch's mean; C rises (or falls) linearly.

    Args:
        gamma: γ ≥ 0.
        initial_capacity: C at step 0, nats.
        final_capacity: C from ``capacity_steps`` on, nats.
        capacity_steps: Steps in between.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(
        self,
        gamma: float,
        initial_capacity: float,
        final_capacity: float,
        capacity_steps: int,
    ) -> None:
        super().__init__()
        self.whole_batch = "the capacity is compared with the batch's mean KL"
        check_weights(
            gamma=gamma,
            initial_capacity=initial_capacity,
            final_capacity=final_capacity,
            capacity_steps=capacity_steps,
        )
        self.gamma, self.capacity_steps = gamma, capacity_steps
        self.initial_capacity, self.final_capacity = initial_capacity, final_capacity

    def capacity(self, step: int) -> float:
        """C in nats."""
        return linear_schedule(step, self.initial_capacity, self.final_capacity, self.capacity_steps)

    def forward(
        self,
        reconstruction: Likelihood | Tensor,
        target: Tensor,
        latent: Latent,
        z: Tensor | None = None,
        *,
        step: int = 0,
        n_data: int | None = None,
    ) -> LossBreakdown:
        kl = gaussian(latent).kl().sum(dim=1).mean()
        terms = {
            "reconstruction": negative_log_likelihood(reconstruction, target),
            "kl": kl,
            "capacity_distance": (kl - self.capacity(step)).abs(),
        }
        return weigh(terms, {"reconstruction": 1.0, "kl": 0.0, "capacity_distance": self.gamma})
