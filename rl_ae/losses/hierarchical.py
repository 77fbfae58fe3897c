"""Losses of autoencoders whose latent is a hierarchy of groups, whose KLs have closed forms one below the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rl_ae.latents import HierarchicalLatent, Latent
from rl_ae.likelihoods import Likelihood
from rl_ae.losses.base import Loss, LossBreakdown, check_weights, weigh
from rl_ae.losses.reconstruction import negative_log_likelihood
from rl_ae.losses.schedules import linear_schedule

#: Nats of a group's mean KL from which it counts as used; NVAE's code counts channels so.
ACTIVE_NATS = 0.1


def balance_weights(kl: Tensor, groups: Sequence[int]) -> Tensor:
    r"""Weights that make groups with much KL dearer and those with little cheaper, so that none is given up early.

    :math:`\gamma_l \propto (\mathrm{KL}_l + 0.01) / \alpha_l` with mean 1, where :math:`\mathrm{KL}_l` is the batch's
    mean and :math:`\alpha_l \propto 4^s / L_s` the share of group l on grid s, the s-th from the coarsest, which has
    :math:`L_s` groups and a quarter of the next one's positions. NVAE, arXiv 2007.03898, Appendix A.

    Args:
        kl: KL of each group, (B, L), in nats, coarsest first.
        groups: L_s, groups on each grid, coarsest first.

    Returns:
        (L,), without gradient.

    Raises:
        ValueError: If there are not as many KLs as groups.
    """
    if kl.ndim != 2 or kl.shape[1] != sum(groups):
        raise ValueError(f"expected the KL (B, {sum(groups)}) of groups {tuple(groups)}, got {tuple(kl.shape)}")
    shares = [4.0**scale / count for scale, count in enumerate(groups) for _ in range(count)]
    weights = (kl.detach().mean(dim=0).abs() + 0.01) / kl.new_tensor(shares)
    return weights / weights.mean()


class HierarchicalLoss(Loss):
    r"""The negative ELBO of a hierarchy, :math:`\mathrm{NLL} + \beta(t) \sum_l \gamma_l \mathrm{KL}_l`.

    NVAE, arXiv 2007.03898, eq. 1, in nats: β = 1 is the ELBO of the likelihood that decodes. Each group's KL is that on
    the way to the draw that was decoded. During the warm-up the groups are balanced (:func:`balance_weights`), then all
    γ are 1.

    Terms: ``reconstruction``; ``weighed_kl``, what is charged, after free nats and γ; and, charged nothing, ``kl``, all
    groups' KL, ``active_groups``, those with a mean above :data:`ACTIVE_NATS`, and ``kl_1``, ``kl_2``, …, each group's,
    coarsest first.

    Args:
        groups: Groups on each grid, coarsest first.
        beta: β ≥ 0 after the warm-up.
        free_nats: Nats of each group's KL of a sample that cost nothing; below, their gradient is exactly zero
            (arXiv 1606.04934).
        warmup_steps: Steps over which the weight rises linearly from β/10,000 to β; 0 for none.

    Raises:
        ValueError: If a number is negative, or there is no group.
    """

    #: Of β at step 0, so that no KL grows without bound.
    INITIAL_SHARE = 1e-4

    def __init__(self, groups: Sequence[int], beta: float = 1.0, free_nats: float = 0.0, warmup_steps: int = 0) -> None:
        super().__init__()
        check_weights(beta=beta, free_nats=free_nats, warmup_steps=warmup_steps)
        if not groups or min(groups) < 1:
            raise ValueError(f"groups must be counts ≥ 1, one a grid, at least one; got {tuple(groups)}")
        self.groups = tuple(groups)
        self.beta, self.free_nats, self.warmup_steps = beta, free_nats, warmup_steps
        if warmup_steps:
            self.whole_batch = (
                "during the warm-up, groups are balanced by the batch's mean KL (warmup_steps=0 has none)"
            )

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
        if not isinstance(latent, HierarchicalLatent):
            raise TypeError(f"HierarchicalLoss needs a HierarchicalLatent, got a {type(latent).__name__}")
        kl = latent.kl(z)  # (B, L)
        share = linear_schedule(step, self.INITIAL_SHARE, 1.0, self.warmup_steps)
        charged = torch.where(kl > self.free_nats, kl, self.free_nats) if self.free_nats > 0.0 else kl
        if share < 1.0:
            charged = charged * balance_weights(kl, self.groups)
        each = kl.detach().mean(dim=0)
        logged = {
            "kl": each.sum(),
            "active_groups": (each > ACTIVE_NATS).sum(),
            **{f"kl_{number}": mean for number, mean in enumerate(each, start=1)},
        }
        terms = {
            "reconstruction": negative_log_likelihood(reconstruction, target),
            "weighed_kl": charged.sum(dim=1).mean(),
        }
        weights = {"reconstruction": 1.0, "weighed_kl": self.beta * share, **dict.fromkeys(logged, 0.0)}
        return weigh({**terms, **logged}, weights)
