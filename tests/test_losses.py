import math

import pytest
import torch

from rl_ae.losses import RAELoss, latent_l2, psnr, squared_error, weigh


def test_terms_by_hand():
    reconstruction = torch.tensor([[[[0.0, 1.0]]], [[[0.5, 0.5]]]])
    target = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.0]]]])
    assert squared_error(reconstruction, target).item() == pytest.approx((1.0 + 0.5) / 2)
    assert latent_l2(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item() == pytest.approx(0.5 * 25 / 2)
    assert psnr(torch.tensor(0.01)).item() == pytest.approx(20.0)
    assert psnr(torch.tensor(1.0)).item() == 0.0


def test_squared_error_is_a_gaussian_likelihood_up_to_a_constant():
    torch.manual_seed(0)
    reconstruction, target = torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5)
    nll = -torch.distributions.Normal(reconstruction, math.sqrt(0.5)).log_prob(target).sum() / 4
    constant = 75 * 0.5 * math.log(math.pi)
    assert squared_error(reconstruction, target).item() == pytest.approx(nll.item() - constant, rel=1e-5)


def test_duplicating_the_batch_changes_nothing():
    torch.manual_seed(0)
    reconstruction, target, z = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4), torch.randn(3, 5)
    loss = RAELoss(latent_weight=0.3)
    once = loss(reconstruction, target, z).total
    twice = loss(*(torch.cat([tensor, tensor]) for tensor in (reconstruction, target, z))).total
    assert twice.item() == pytest.approx(once.item(), rel=1e-6)


def test_total_is_the_weighted_sum_and_matches_the_papers_mean():
    torch.manual_seed(0)
    reconstruction, target, z = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4), torch.randn(3, 5)
    total, terms = RAELoss(latent_weight=0.1, reconstruction_weight=1 / 32)(reconstruction, target, z)
    mean = torch.nn.functional.mse_loss(reconstruction, target)
    assert total.item() == pytest.approx((mean + 0.1 * 0.5 * z.pow(2).sum(1).mean()).item(), rel=1e-6)
    assert terms["reconstruction"].item() == pytest.approx(32 * mean.item(), rel=1e-6)


def test_names_and_shapes_are_checked():
    one = torch.tensor(1.0)
    with pytest.raises(ValueError, match="same names"):
        weigh({"a": one}, {"b": 1.0})
    with pytest.raises(ValueError, match="scalars"):
        weigh({"a": torch.ones(2)}, {"a": 1.0})
    with pytest.raises(ValueError, match=r"\(2, 1\) and target \(2, 2\)"):
        squared_error(torch.ones(2, 1), torch.ones(2, 2))
