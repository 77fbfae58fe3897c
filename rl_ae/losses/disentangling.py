"""Losses that penalise the total correlation of the aggregate posterior: FactorVAE and β-TCVAE."""

import itertools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rl_ae.latents import GaussianLatent, Latent
from rl_ae.likelihoods import Likelihood
from rl_ae.losses.base import Loss, LossBreakdown, check_weights, weigh
from rl_ae.losses.gaussian import gaussian
from rl_ae.losses.reconstruction import negative_log_likelihood
from rl_ae.losses.schedules import linear_schedule


def _draw(z: Tensor | None) -> Tensor:
    if z is None:
        raise ValueError("this loss looks at the latent's draws: pass z, the (B, D) that was decoded")
    return z


# ---------------------------------------------------------------------- FactorVAE


class Discriminator(nn.Module):
    """FactorVAE's critic of draws (B, D): linear layers with LeakyReLU 0.2 (arXiv 1802.05983).

    Args:
        latent_dim: D.
        hidden: Width of the layers; 1,000 in the paper.
        layers: Number of linear layers, the last one included; 6 in the paper.

    Raises:
        ValueError: If a number is below 1.
    """

    def __init__(self, latent_dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        if min(latent_dim, hidden, layers) < 1:
            raise ValueError(f"latent_dim, hidden and layers must be ≥ 1, got {latent_dim}, {hidden} and {layers}")
        widths = [latent_dim, *[hidden] * (layers - 1)]
        stack: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            stack += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*stack, nn.Linear(widths[-1], 2))

    def forward(self, z: Tensor) -> Tensor:
        """Logits (B, 2) of a draw (B, D): 0, it came as it is; 1, its dimensions were permuted apart."""
        logits: Tensor = self.layers(z)
        return logits


def permute_latents(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Shuffle every dimension of draws (B, D) over the batch, each on its own: a draw of the product of marginals.

    FactorVAE, arXiv 1802.05983, Algorithm 1.
    """
    order = torch.rand(z.shape, generator=generator, device=z.device).argsort(dim=0)
    return z.gather(0, order)


def density_ratio(logits: Tensor) -> Tensor:
    """Total correlation estimated from a discriminator's logits (B, 2): the mean log-odds, a scalar (eq. 3)."""
    return (logits[:, 0] - logits[:, 1]).mean()


def discriminator_loss(joint: Tensor, permuted: Tensor) -> Tensor:
    """Half the cross-entropy of each kind, a scalar: ln 2 for a discriminator that cannot tell them apart.

    Args:
        joint: Logits (B, 2) of draws.
        permuted: Logits (B', 2) of permuted draws.
    """
    kinds = [torch.full((len(logits),), kind, device=logits.device) for kind, logits in enumerate((joint, permuted))]
    return 0.5 * (F.cross_entropy(joint, kinds[0]) + F.cross_entropy(permuted, kinds[1]))


class FactorLoss(Loss):
    r"""FactorVAE's loss, :math:`\mathrm{NLL} + \mathrm{KL} + \gamma(t)\,\mathrm{TC}`, arXiv 1802.05983, eq. 2.

    The total correlation is the discriminator's density ratio on the batch's draws. The discriminator is only asked
    here: no gradient reaches its parameters. It is trained by :class:`~rl_ae.adversary.Adversary` on detached draws, so
    that its own loss never reaches the encoder. Given the discriminator, duplicating a batch changes nothing here; its
    own training, which permutes over the batch, is another one then.

    Args:
        discriminator: What is asked.
        gamma: γ ≥ 0 after the warm-up.
        warmup_steps: Steps over which γ rises linearly from 0.

    Raises:
        ValueError: If a number is negative.
    """

    def __init__(self, discriminator: Discriminator, gamma: float, warmup_steps: int = 0) -> None:
        super().__init__()
        self.whole_batch = "the discriminator learns from latents permuted over the batch"
        check_weights(gamma=gamma, warmup_steps=warmup_steps)
        self.discriminator, self.gamma, self.warmup_steps = discriminator, gamma, warmup_steps

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
        z = _draw(z)
        if z.shape[1] != self.discriminator.latent_dim:
            raise ValueError(f"the discriminator is for {self.discriminator.latent_dim} dimensions, z has {z.shape[1]}")
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        terms = {
            "reconstruction": negative_log_likelihood(reconstruction, target),
            "kl": gaussian(latent).kl().sum(dim=1).mean(),
            "total_correlation": density_ratio(functional_call(self.discriminator, frozen, (z,))),
        }
        weights = {
            "reconstruction": 1.0,
            "kl": 1.0,
            "total_correlation": linear_schedule(step, 0.0, self.gamma, self.warmup_steps),
        }
        return weigh(terms, weights)


# ---------------------------------------------------------------------- β-TCVAE


class Decomposition(NamedTuple):
    """The KL of a VAE in three parts, scalars in nats whose sum estimates it (arXiv 1802.04942, eq. 2).

    Attributes:
        mutual_information: Between data and latent, by the index code.
        total_correlation: Dependence between the latent's dimensions.
        dimension_kl: KL of each marginal to the prior, summed.
    """

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor


def stratified_weights(batch_size: int, n_data: int, device: torch.device | str = "cpu") -> Tensor:
    """Weights of minibatch stratified sampling, (B, B): rows sum to 1 (arXiv 1802.04942, Appendix C.2).

    In row i, for draws from :math:`q(z|x_i)`: the sample itself stands for itself, 1/N; one other of the batch stands
    for the N - M it is drawn from, (N - M) / (N M) with M = B - 1; the rest 1/M each.

    Args:
        batch_size: B ≥ 2.
        n_data: N ≥ B.
        device: Of the result.

    Raises:
        ValueError: If B < 2 or N < B.
    """
    _check_n_data(n_data, batch_size)
    if batch_size < 2:
        raise ValueError(f"stratified sampling needs a batch of at least 2, got {batch_size}")
    others = batch_size - 1
    weights = torch.full((batch_size, batch_size), 1.0 / others, device=device)
    weights.fill_diagonal_(1.0 / n_data)
    rows = torch.arange(batch_size, device=device)
    weights[rows, (rows + 1) % batch_size] = (n_data - others) / (n_data * others)
    return weights


def decompose_kl(
    z: Tensor, latent: GaussianLatent, n_data: int, estimator: Literal["mss", "mws"] = "mss"
) -> Decomposition:
    r"""Estimate the parts of the KL from a minibatch (arXiv 1802.04942, Section 4.1 and Appendix C).

    The aggregate posterior at a draw, :math:`q(z_i) = E_{n}[q(z_i | n)]`, is a weighted sum over the batch: with
    minibatch weighted sampling (``"mws"``) every sample counts :math:`1 / NB`; with stratified sampling (``"mss"``) as
    in :func:`stratified_weights`. The latter depends on which samples share a batch, also if all are there twice.

    Args:
        z: Draws of the latent, (B, D).
        latent: (B, D).
        n_data: N, the size of the data set, at least B.
        estimator: ``"mss"`` or ``"mws"``.

    Raises:
        ValueError: If ``n_data`` is smaller than the batch, or the estimator is unknown.
    """
    batch_size = len(z)
    _check_n_data(n_data, batch_size)
    _check_estimator(estimator)
    mu, logvar = latent
    # (B, B, D): density of draw i under the posterior of sample j
    pairs = normal_log_density(z.unsqueeze(1), mu.unsqueeze(0), logvar.unsqueeze(0))
    if estimator == "mss":
        log_weights = stratified_weights(batch_size, n_data, z.device).log().to(z.dtype)
    else:
        log_weights = torch.full((batch_size, batch_size), -math.log(n_data * batch_size), device=z.device).to(z.dtype)
    log_joint = torch.logsumexp(pairs.sum(dim=2) + log_weights, dim=1)  # log q(z), (B,)
    log_marginals = torch.logsumexp(pairs + log_weights.unsqueeze(2), dim=1).sum(dim=1)  # log Π_d q(z_d), (B,)
    log_posterior = normal_log_density(z, mu, logvar).sum(dim=1)
    log_prior = normal_log_density(z, torch.zeros_like(z), torch.zeros_like(z)).sum(dim=1)
    return Decomposition(
        (log_posterior - log_joint).mean(),
        (log_joint - log_marginals).mean(),
        (log_marginals - log_prior).mean(),
    )


def normal_log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """Log N(z; μ, σ²) of each element, in nats; shapes broadcast."""
    return -0.5 * ((z - mu).square() * (-logvar).exp() + logvar + math.log(2.0 * math.pi))


def _check_estimator(estimator: str) -> None:
    if estimator not in ("mss", "mws"):
        raise ValueError(f"estimator must be 'mss' or 'mws', got {estimator!r}")


def _check_n_data(n_data: int | None, batch_size: int) -> None:
    if n_data is None:
        raise ValueError("this loss needs n_data, the size of the data set the batch was drawn from")
    if n_data < batch_size:
        raise ValueError(f"n_data must be at least the batch, got n_data {n_data} and a batch of {batch_size}")


class BTCLoss(Loss):
    r"""β-TCVAE's loss, :math:`\mathrm{NLL} + w(t)\,(\alpha\,\mathrm{MI} + \beta\,\mathrm{TC} + \gamma\,\mathrm{DKL})`.

    Chen et al., arXiv 1802.04942, eq. 4, with the KL's three parts from :func:`decompose_kl`. With α = β = γ = 1 it
    estimates the negative ELBO.

    Args:
        beta: Weight of the total correlation, ≥ 0.
        alpha: Weight of the mutual information, ≥ 0.
        gamma: Weight of the dimension-wise KL, ≥ 0.
        estimator: ``"mss"`` (default, exact on average) or ``"mws"``.
        warmup_steps: Steps over which w rises linearly from 0 to 1.

    Raises:
        ValueError: If a number is negative or the estimator is unknown.
    """

    def __init__(
        self,
        beta: float,
        alpha: float = 1.0,
        gamma: float = 1.0,
        estimator: Literal["mss", "mws"] = "mss",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        self.whole_batch = "the aggregate posterior is estimated from the batch"
        check_weights(beta=beta, alpha=alpha, gamma=gamma, warmup_steps=warmup_steps)
        _check_estimator(estimator)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.estimator, self.warmup_steps = estimator, warmup_steps

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
        _check_n_data(n_data, len(target))
        assert n_data is not None
        posterior = gaussian(latent)
        parts = decompose_kl(_draw(z), posterior, n_data, self.estimator)
        warmup = linear_schedule(step, 0.0, 1.0, self.warmup_steps)
        terms = {
            "reconstruction": negative_log_likelihood(reconstruction, target),
            "kl": posterior.kl().sum(dim=1).mean(),
            **parts._asdict(),
        }
        weights = {
            "reconstruction": 1.0,
            "kl": 0.0,  # shown beside its parts
            "mutual_information": warmup * self.alpha,
            "total_correlation": warmup * self.beta,
            "dimension_kl": warmup * self.gamma,
        }
        return weigh(terms, weights)
