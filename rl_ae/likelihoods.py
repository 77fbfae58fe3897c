"""Likelihoods: what a decoder says about its input, with a density and a mean.

Every ``log_prob`` is in nats, summed over pixels (or features), one value a sample.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Likelihood(Protocol):
    """A distribution over inputs (B, ...) of which the parameters have been decoded."""

    @property
    def mean(self) -> Tensor:
        """The mean reconstruction, (B, ...)."""

    def log_prob(self, target: Tensor) -> Tensor:
        """Log-density of targets (B, ...) in nats, (B,).

        Raises:
            ValueError: If the shapes differ, or the targets are outside the distribution's support.
        """

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw, (B, ...)."""


def _check_shape(decoded: Tensor, target: Tensor) -> None:
    if decoded.shape != target.shape:  # they would broadcast silently
        raise ValueError(f"reconstruction {tuple(decoded.shape)} and target {tuple(target.shape)} must agree")


class _SquaredErrors(torch.autograd.Function):
    """Squared errors of means and targets (B, ...) summed over all but the batch, (B,).

    Summed in the targets' precision, with a gradient in the means': each pass over the pixels of a batch counts.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, target: Tensor) -> Tensor:
        errors = mean.to(target.dtype, copy=True).sub_(target)
        ctx.save_for_backward(errors.to(mean.dtype))
        ctx.target_dtype = target.dtype
        norms: Tensor = torch.linalg.vector_norm(_rows(errors), dim=1)
        return norms.square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (errors,) = ctx.saved_tensors
        of_mean = (2.0 * gradient).to(errors.dtype).reshape(-1, *(1,) * (errors.ndim - 1)) * errors
        return of_mean, -of_mean.to(ctx.target_dtype) if ctx.needs_input_grad[1] else None


def _squares(mean: Tensor, target: Tensor) -> Tensor:
    """Squared errors summed over all but the batch, (B,), in the target's precision."""
    _check_shape(mean, target)
    squares: Tensor = _SquaredErrors.apply(mean, target)  # type: ignore[no-untyped-call]
    return squares


def _rows(images: Tensor) -> Tensor:
    """Everything but the batch as one dimension, in an order that needs no copy where channels are last in memory."""
    last = images.ndim == 4 and images.is_contiguous(memory_format=torch.channels_last)
    return (images.movedim(1, -1) if last else images).flatten(start_dim=1)


def _noise(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)


class SquaredError(NamedTuple):
    """A Gaussian with variance ½ without its constant: the log-density is minus the squared error.

    With it, a VAE's loss is the squared error plus β·KL, as most code has it; β = 1 is the ELBO of that Gaussian.

    Attributes:
        mean: (B, ...).
    """

    mean: Tensor

    def log_prob(self, target: Tensor) -> Tensor:
        """``-‖x - μ‖²``, (B,)."""
        return -_squares(self.mean, target)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The mean plus noise of variance ½."""
        return self.mean + math.sqrt(0.5) * _noise(self.mean, generator)


class Gaussian(NamedTuple):
    """A Gaussian with one standard deviation.

    Attributes:
        mean: (B, ...).
        sigma: σ > 0, a scalar, fixed or learned.
    """

    mean: Tensor
    sigma: Tensor

    def log_prob(self, target: Tensor) -> Tensor:
        """``-‖x - μ‖² / 2σ² - N/2 log 2πσ²`` with N elements a sample, (B,)."""
        elements = target[0].numel()
        constant = 0.5 * elements * torch.log(2.0 * math.pi * self.sigma.square())
        return -0.5 * _squares(self.mean, target) / self.sigma.square() - constant

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + self.sigma * _noise(self.mean, generator)


class OptimalGaussian(NamedTuple):
    """A Gaussian whose variance is the best one for the batch, its mean squared error (σ-VAE, arXiv 2006.13202).

    Averaged over the batch the log-density is ``-N/2 (log 2π MSE + 1)``: reconstruction and KL balance themselves, on
    any scale of data.

    Attributes:
        mean: (B, ...).
    """

    mean: Tensor

    def log_prob(self, target: Tensor) -> Tensor:
        squares, elements = _squares(self.mean, target), target[0].numel()
        # at a perfect reconstruction the density is unbounded: σ stops at a thousandth of a grey level
        variance = (squares.mean() / elements).clamp_min(1e-11)
        return -0.5 * (squares / variance + elements * torch.log(2.0 * math.pi * variance))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The mean: without targets there is no variance."""
        return self.mean


class Bernoulli(NamedTuple):
    """Independent pixels in [0, 1], each a coin.

    Attributes:
        logits: Log-odds of 1, (B, ...).
    """

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    def log_prob(self, target: Tensor) -> Tensor:
        """Minus the cross-entropy, (B,).

        Raises:
            ValueError: If a target is outside [0, 1].
        """
        _check_shape(self.logits, target)
        low, high = torch.stack(target.aminmax()).tolist()  # one wait for the device
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"a Bernoulli likelihood needs targets in [0, 1], got values from {low:g} to {high:g}")
        logits = self.logits.to(target.dtype)
        entropies = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return -_rows(entropies).sum(dim=1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Zeros and ones, (B, ...)."""
        return torch.bernoulli(self.mean, generator=generator)


class Laplace(NamedTuple):
    """A Laplace distribution with one scale: the absolute error.

    Attributes:
        mean: (B, ...).
        scale: b > 0, a scalar.
    """

    mean: Tensor
    scale: Tensor

    def log_prob(self, target: Tensor) -> Tensor:
        """``-|x - μ| / b - log 2b`` summed over elements, (B,)."""
        _check_shape(self.mean, target)
        errors = _rows((self.mean.to(target.dtype) - target).abs()).sum(dim=1)
        return -errors / self.scale - target[0].numel() * torch.log(2.0 * self.scale)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        centred = uniform.clamp_min(torch.finfo(uniform.dtype).eps) - 0.5
        return self.mean - self.scale * centred.sign() * torch.log1p(-2.0 * centred.abs())


#: Name → from a mean and a scale. ``bernoulli`` is not here: it is decoded as logits.
_FROM_MEAN: dict[str, Callable[[Tensor, Tensor], Likelihood]] = {
    "squared_error": lambda mean, scale: SquaredError(mean),
    "gaussian": Gaussian,
    "learned_gaussian": Gaussian,
    "optimal_gaussian": lambda mean, scale: OptimalGaussian(mean),
    "laplace": Laplace,
}

#: The names that configs know.
LIKELIHOODS = ("bernoulli", *_FROM_MEAN)


class LikelihoodHead(nn.Module):
    """The end of a decoder: its raw output (B, ...) to a likelihood.

    Args:
        name: One of :data:`LIKELIHOODS`: ``"bernoulli"``, ``"squared_error"``, ``"gaussian"`` (σ = ``scale``),
            ``"learned_gaussian"`` (σ a parameter that starts there), ``"optimal_gaussian"``, ``"laplace"`` (b =
            ``scale``).
        scale: σ or b, > 0.
        squash: Pass means through a sigmoid, into (0, 1). A Bernoulli's are there anyway.

    Attributes:
        whole_batch: Why log-densities depend on the whole batch, where they do, else ``None``.

    Raises:
        ValueError: If the name is unknown or the scale is not positive.
    """

    def __init__(self, name: str, scale: float = 1.0, squash: bool = False) -> None:
        super().__init__()
        if name not in LIKELIHOODS:
            raise ValueError(f"unknown likelihood {name!r}, expected one of {sorted(LIKELIHOODS)}")
        if not scale > 0.0:
            raise ValueError(f"the scale of a likelihood must be > 0, got {scale}")
        self.name, self.squash = name, squash
        own_variance = name == "optimal_gaussian"
        self.whole_batch = "an optimal Gaussian's variance is the batch's error" if own_variance else None
        log_scale = torch.tensor(math.log(scale))
        if name == "learned_gaussian":
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale, persistent=False)

    def forward(self, raw: Tensor) -> Likelihood:
        if self.name == "bernoulli":
            return Bernoulli(raw)
        return _FROM_MEAN[self.name](torch.sigmoid(raw) if self.squash else raw, self.log_scale.exp())
