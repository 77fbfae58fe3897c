"""The one place where terms become a loss."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


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
