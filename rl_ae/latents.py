"""Latents: what ``encode`` returns, so that nobody asks which kind of autoencoder it was."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Latent(Protocol):
    """A latent code with a most likely value and samples."""

    @property
    def mode(self) -> Tensor:
        """The most likely latent, (B, D): what policies, targets and predictions read."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A latent drawn from the code's distribution, (B, D): what the decoder reads in training.

        Args:
            generator: Of the noise, on the latent's device; torch's global one if omitted.
        """


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


class GaussianLatent(NamedTuple):
    """A diagonal Gaussian, the posterior of a VAE (arXiv 1312.6114).

    Attributes:
        mu: Mean, (B, D).
        logvar: Logarithm of the variance, (B, D).
    """

    mu: Tensor
    logvar: Tensor

    @property
    def mode(self) -> Tensor:
        """The mean, (B, D)."""
        return self.mu

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """μ + σ ε with standard normal ε, (B, D): gradients reach μ and σ (the reparametrisation trick)."""
        noise = torch.randn(self.mu.shape, generator=generator, dtype=self.mu.dtype, device=self.mu.device)
        return self.mu + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL to the standard normal prior in nats, one value a dimension, (B, D)."""
        return 0.5 * (self.mu.square() + self.logvar.exp() - 1.0 - self.logvar)


class QuantizedLatent(NamedTuple):
    """A grid of codes from a codebook, chosen deterministically (VQ-VAE, FSQ).

    Attributes:
        z: What was quantised, (B, D, h, w).
        quantized: The codes' vectors, (B, D, h, w); gradients pass straight through to :attr:`z`.
        indices: The codes' numbers, (B, h, w), integers.
    """

    z: Tensor
    quantized: Tensor
    indices: Tensor

    @property
    def mode(self) -> Tensor:
        """The codes' vectors, (B, D·h·w)."""
        return self.quantized.flatten(start_dim=1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """(B, D·h·w), always :attr:`mode`."""
        return self.mode


class StochasticLatent(NamedTuple):
    r"""A grid of codes, each with a probability: the posterior of SQ-VAE (arXiv 2205.07547).

    Code :math:`k` has logit :math:`-\frac12 \sum_d (z_d - e_{k,d})^2 / \sigma_d^2`.

    Attributes:
        z: What is quantised, (B, D, h, w).
        variance: σ², (B, D, h, w) or sizes of 1 where it does not vary.
        codebook: e, (K, D).
    """

    z: Tensor
    variance: Tensor
    codebook: Tensor

    @property
    def logits(self) -> Tensor:
        """Unnormalised log-probabilities of the codes, (B, h, w, K)."""
        with torch.autocast(self.z.device.type, enabled=False):  # differences of squares need their digits
            precision = self.variance.expand_as(self.z).reciprocal().movedim(1, -1)  # (B, h, w, D)
            z = self.z.movedim(1, -1)
            squares = (precision * z.square()).sum(-1, keepdim=True)
            products = (precision * z) @ self.codebook.T
            return -0.5 * (squares - 2.0 * products + precision @ self.codebook.square().T)

    @property
    def indices(self) -> Tensor:
        """The most likely codes' numbers, (B, h, w)."""
        return self.logits.argmax(dim=-1)

    @property
    def mode(self) -> Tensor:
        """The most likely codes' vectors, (B, D·h·w); gradients pass straight through to :attr:`z`."""
        vectors = self.codebook[self.indices].movedim(-1, 1)
        return (self.z + (vectors - self.z).detach()).flatten(start_dim=1)

    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Vectors weighed by a Gumbel-softmax draw (arXiv 1611.01144), (B, D·h·w).

        Args:
            generator: Of the noise, on the latent's device; torch's global one if omitted.
            temperature: τ > 0; towards 0 the draws become single codes.
        """
        logits, codebook = self.logits, self.codebook
        uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
        tiny = torch.finfo(logits.dtype).tiny
        gumbel = -torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))
        with torch.autocast(self.z.device.type, enabled=False):  # the draw's distance to z is part of the loss
            weights = torch.softmax((logits + gumbel) / temperature, dim=-1)
            return (weights @ codebook).movedim(-1, 1).flatten(start_dim=1)


class ResidualGaussian(NamedTuple):
    """A group's prior N(μ, σ²), and its posterior N(μ + Δμ, σ² Δσ²) relative to it.

    NVAE, arXiv 2007.03898, section 3.2: when the prior moves, the posterior moves along.

    Attributes:
        mu: μ, (B, D, h, w).
        log_sigma: log σ, the same shape.
        delta_mu: Δμ, the same shape.
        delta_log_sigma: log Δσ, the same shape.
    """

    mu: Tensor
    log_sigma: Tensor
    delta_mu: Tensor
    delta_log_sigma: Tensor

    @property
    def mean(self) -> Tensor:
        """The posterior's, (B, D, h, w)."""
        return self.mu + self.delta_mu

    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A draw of the posterior, (B, D, h, w); its σ is multiplied by the temperature ≥ 0."""
        noise = torch.randn(self.mu.shape, generator=generator, dtype=self.mu.dtype, device=self.mu.device)
        return self.mean + temperature * (self.log_sigma + self.delta_log_sigma).exp() * noise

    def kl(self) -> Tensor:
        r"""KL of the posterior to the prior in nats, one value an element, (B, D, h, w).

        :math:`\frac12 (\Delta\mu^2 / \sigma^2 + \Delta\sigma^2 - 1) - \log \Delta\sigma`, NVAE, section 3.2.
        """
        shift = self.delta_mu * (-self.log_sigma).exp()
        return 0.5 * (shift.square() + (2.0 * self.delta_log_sigma).exp() - 1.0) - self.delta_log_sigma

    def log_prior(self, z: Tensor) -> Tensor:
        """Log-density of elements z (B, D, h, w) under the prior in nats, the same shape."""
        return _log_normal(z, self.mu, self.log_sigma)

    def log_posterior(self, z: Tensor) -> Tensor:
        """Log-density of elements z (B, D, h, w) under the posterior in nats, the same shape."""
        return _log_normal(z, self.mean, self.log_sigma + self.delta_log_sigma)


def _log_normal(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    standard = (z - mu) * (-log_sigma).exp()
    return -0.5 * (standard.square() + math.log(2.0 * math.pi)) - log_sigma


class Descent(NamedTuple):
    """A way down through the groups of a hierarchy, from the coarsest to the finest.

    Attributes:
        z: What was chosen for all groups, flattened and in a row, (B, F).
        groups: Each group's prior and posterior, given what was chosen for those above it.
    """

    z: Tensor
    groups: tuple[ResidualGaussian, ...]


class TopDown(Protocol):
    """Priors and posteriors of a hierarchy's groups."""

    @property
    def shapes(self) -> Sequence[tuple[int, int, int]]:
        """(D, h, w) of each group, coarsest first."""

    def __call__(self, features: Sequence[Tensor], choose: Callable[[int, ResidualGaussian], Tensor]) -> Descent:
        """Go down, choosing z for each group.

        Args:
            features: Of the observations, a map (B, C, h, w) for each scale, coarsest first.
            choose: From a group's number and its distributions to z, (B, D, h, w).
        """


class _HierarchicalFields(NamedTuple):
    features: tuple[Tensor, ...]
    top_down: TopDown


class HierarchicalLatent(_HierarchicalFields):
    """Groups of Gaussians on ever finer grids, each conditioned on what was drawn for those above (arXiv 2007.03898).

    A group's distributions exist only once z is chosen above it, so a latent is what they are made from: features of
    the observations, and the way down through the groups. Each method goes that way. What is drawn holds all groups in
    a row, coarsest first and flattened; its KL is that along its own way, which is gone again unless it was the last.

    Attributes:
        features: Of the observations, a map (B, C, h, w) for each scale, coarsest first.
        top_down: Priors and posteriors of the groups.
    """

    # a mode is asked for often, a draw's KL right after the draw
    _of_mode: Descent | None = None
    _latest: Descent | None = None

    @property
    def mode(self) -> Tensor:
        """All groups' posterior means, each given the means above it, (B, F); computed when it is first asked for."""
        if not _has_graph(self._of_mode):
            self._of_mode = self._descend(lambda _, group: group.mean)
        assert self._of_mode is not None
        return self._of_mode.z

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """All groups' draws, each given the draws above it, (B, F); gradients reach all parameters."""
        return self._descend(lambda _, group: group.sample(generator)).z

    def groups(self, z: Tensor | None = None) -> tuple[ResidualGaussian, ...]:
        """Each group's prior and posterior on the way that led to z (B, F), or to the mode.

        Raises:
            ValueError: If z is not (B, F).
        """
        z = self.mode if z is None else z
        for known in (self._latest, self._of_mode):
            if known is not None and known.z is z and _has_graph(known):
                return known.groups
        parts = split_groups(z, self.top_down.shapes)
        return self._descend(lambda index, _: parts[index]).groups

    def kl(self, z: Tensor | None = None) -> Tensor:
        """KL of each group's posterior to its prior in nats, (B, L) for L groups, coarsest first.

        Args:
            z: The draw (B, F) on whose way down they are; the mode if omitted. Averaged over draws, a row's sum is the
                KL of the whole posterior.

        Raises:
            ValueError: If z is not (B, F).
        """
        return torch.stack([group.kl().flatten(start_dim=1).sum(dim=1) for group in self.groups(z)], dim=1)

    def log_ratio(self, z: Tensor) -> Tensor:
        """``log p(z) - log q(z|x)`` of draws (B, F) in nats, (B,): minus a one-sample estimate of the KL.

        Raises:
            ValueError: If z is not (B, F).
        """
        parts = split_groups(z, self.top_down.shapes)
        ratios = [
            (group.log_prior(part) - group.log_posterior(part)).flatten(start_dim=1).sum(dim=1)
            for group, part in zip(self.groups(z), parts, strict=True)
        ]
        return torch.stack(ratios).sum(dim=0)

    def _descend(self, choose: Callable[[int, ResidualGaussian], Tensor]) -> Descent:
        self._latest = self.top_down(self.features, choose)
        return self._latest


def _has_graph(descent: Descent | None) -> bool:
    """Whether a descent can stand for a new one: gradients reach it, or nobody wants any."""
    return descent is not None and (descent.z.requires_grad or not torch.is_grad_enabled())


def split_groups(z: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Flat latents (B, F) as the groups' maps (B, D, h, w).

    Args:
        z: (B, F).
        shapes: (D, h, w) of each group, in the order of z.

    Raises:
        ValueError: If z is not (B, F) with as many numbers as the shapes have.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if z.ndim != 2 or z.shape[1] != sum(sizes):
        raise ValueError(f"expected latents (B, {sum(sizes)}) of groups {list(shapes)}, got {tuple(z.shape)}")
    return [part.reshape(-1, *shape) for part, shape in zip(z.split(sizes, dim=1), shapes, strict=True)]
