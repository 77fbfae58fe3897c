import math

import pytest
import torch
from torch import nn

from rl_ae import losses
from rl_ae.diagnostics import (
    active_units,
    bits_per_dimension,
    describe_latents,
    effective_rank,
    gradient_cosine,
    gradient_norm,
    latent_norm,
)


def orthogonal_columns(rows, *lengths):
    """(rows, D): centred columns at right angles to one another, of these lengths."""
    draws = torch.randn(rows, len(lengths), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(draws - draws.mean(dim=0)).Q * torch.tensor(lengths)


def test_active_units_are_the_losses_own():
    assert active_units is losses.active_units


@pytest.mark.parametrize(
    ("lengths", "rank"),
    [
        ((3.0, 3.0, 3.0, 3.0), 4.0),
        ((7.0, 0.0, 0.0), 1.0),
        ((2.0, 2.0, 0.0), 2.0),
        ((3.0, 1.0), math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_effective_rank_is_the_entropy_of_the_singular_values(lengths, rank):
    latents = orthogonal_columns(32, *lengths)
    assert effective_rank(latents).item() == pytest.approx(rank, rel=1e-9)
    # neither where the cloud lies, nor its size, nor its axes matter
    axes = torch.linalg.qr(torch.randn(len(lengths), len(lengths), dtype=torch.float64)).Q
    assert effective_rank(5.0 + 0.1 * latents @ axes).item() == pytest.approx(rank, rel=1e-6)


def test_latents_that_are_all_the_same_have_no_rank():
    assert effective_rank(torch.full((7, 5), 0.1)).item() == 0.0
    assert effective_rank(torch.zeros(7, 5)).item() == 0.0
    assert effective_rank(torch.randn(1, 5)).item() == 0.0


def test_latent_norm_is_the_mean_length():
    assert latent_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).item() == 2.5


def test_bits_per_dimension():
    assert bits_per_dimension(math.log(2.0) * 60, (3, 4, 5)) == pytest.approx(1.0)
    assert bits_per_dimension(torch.tensor(6.0), (6,)).item() == pytest.approx(1.0 / math.log(2.0))


def test_gradient_norm_is_over_all_parameters_that_have_one():
    first, second, third = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    assert gradient_norm([first, second]).item() == 0.0
    assert gradient_norm([]).item() == 0.0
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, -4.0])
    assert gradient_norm(iter([first, second, third])).item() == 5.0
    assert first.grad.tolist() == [3.0, 0.0]


def test_gradient_cosine_is_between_whole_lists():
    ones, minus = [torch.ones(2, 2), torch.ones(1)], [-torch.ones(2, 2), -torch.ones(1)]
    assert gradient_cosine(ones, ones).item() == pytest.approx(1.0)
    assert gradient_cosine(ones, [10.0 * g for g in minus]).item() == pytest.approx(-1.0)
    # 4 of 5 elements agree, the fifth has no gradient there
    assert gradient_cosine(ones, [torch.ones(2, 2), None]).item() == pytest.approx(4 / (math.sqrt(5) * 2))
    assert gradient_cosine([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 1.0])]).item() == 0.0


def test_gradient_cosine_of_nothing_is_zero():
    assert gradient_cosine([None], [torch.ones(2)]).item() == 0.0
    assert gradient_cosine([torch.zeros(2)], [torch.ones(2)]).item() == 0.0
    assert gradient_cosine([], []).item() == 0.0


def test_lists_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="same parameters: got 2 and 1"):
        gradient_cosine([torch.ones(1), None], [torch.ones(1)])


@pytest.mark.parametrize("latents", [torch.zeros(3), torch.zeros(2, 3, 4)])
@pytest.mark.parametrize("diagnostic", [effective_rank, latent_norm])
def test_other_shapes_are_refused(diagnostic, latents):
    with pytest.raises(ValueError, match=r"latents \(B, D\), got"):
        diagnostic(latents)


def test_a_description_of_latents_names_what_it_measures():
    latents = torch.randn(16, 5, requires_grad=True)
    described = describe_latents(latents)
    measured = {f.__name__: f(latents.detach()).item() for f in (active_units, effective_rank, latent_norm)}
    assert {name: value.item() for name, value in described.items()} == measured
    assert not any(value.requires_grad for value in described.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_full(dtype):
    latents = torch.tensor([[300.0, 0.0], [0.0, 300.0], [-300.0, -300.0]])  # whose squares float16 cannot hold
    for name, value in describe_latents(latents.to(dtype)).items():
        assert value.item() == pytest.approx(describe_latents(latents)[name].item(), rel=1e-2), name
