"""What every loss is: terms, weights, and the one place where they are summed."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rl_ae.latents import Latent
from rl_ae.likelihoods import Likelihood


class LossBreakdown(NamedTuple):
    """A loss and what it is made of.

    Attributes:
        total: Scalar, the weighted sum of :attr:`terms`.
        terms: Scalars before weighting, by name; what is logged.
    """

    total: Tensor
    terms: dict[str, Tensor]


def weigh(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> LossBreakdown:
    """Sum the terms, each times the weight of the same name.

    Raises:
        ValueError: If terms and weights do not have the same names, or a term is not a scalar.
    """
    if terms.keys() != weights.keys():
        raise ValueError(f"terms {sorted(terms)} and weights {sorted(weights)} must have the same names")
    shapes = {name: tuple(term.shape) for name, term in terms.items() if term.ndim > 0}
    if shapes:
        raise ValueError(f"terms must be scalars, got {shapes}")
    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return LossBreakdown(total, dict(terms))


class Loss(nn.Module):
    """A loss of autoencoders: pure terms, weighed. Owns no optimizer, no counter and no device.

    Every term is summed over pixels or latent dimensions and averaged over the batch, in nats. A loss of your own is
    any ``nn.Module`` whose forward has the signature of :meth:`forward`.

    Attributes:
        whole_batch: Why the loss of a batch is not the mean of its parts' losses, where it is not; such a loss cannot
            be computed in parts. ``None`` where it is.
    """

    whole_batch: str | None = None

    @abstractmethod
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
        """Weigh the terms.

        Args:
            reconstruction: What was decoded: a likelihood, or a tensor (B, ...), whose squared error then counts.
            target: What was to be decoded, (B, ...).
            latent: What was encoded.
            z: The draw that was decoded, (B, D); for losses that look at the draws themselves.
            step: Updates made so far; drives the schedules.
            n_data: Size of the data set the batch was drawn from; for losses that estimate the aggregate posterior.

        Raises:
            ValueError: If an argument that this loss needs is missing, or shapes do not agree.
        """


def check_weights(**weights: float) -> None:
    """Refuse negative or non-finite weights.

    Raises:
        ValueError: With the weight's name and value.
    """
    for name, weight in weights.items():
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"{name} must be ≥ 0 and finite, got {weight}")
