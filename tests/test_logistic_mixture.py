"""Mixtures of discretised logistics against a transcription in float64, sums over all images, and samples."""

import copy
import itertools
import math

import pytest
import torch
from scipy import stats

from rl_ae.logistic_mixture import MIN_LOG_SCALE, LogisticMixture, LogisticMixtureHead
from rl_ae.losses import bits_per_dimension, logistic_mixture_nll, negative_log_likelihood
from rl_ae.pixels import to_unit


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def mixture(
    batch=2, channels=3, components=4, size=(3, 5), frame_channels=3, bits=8, low=-4.0, high=2.0, dtype=torch.float32
):
    """A random one; logits that a decoder repeats over a frame's channels differ here, but for the first."""
    shape = (batch, channels, components, *size)
    means = 3.0 * torch.rand(shape, dtype=dtype) - 1.5
    log_scales = low + (high - low) * torch.rand(shape, dtype=dtype)
    coeffs = 2.0 * torch.rand(shape, dtype=dtype) - 1.0
    return LogisticMixture(torch.randn(shape, dtype=dtype), means, log_scales, coeffs, frame_channels, bits)


def parameters(distribution):
    return distribution.logit_probs, distribution.means, distribution.log_scales, distribution.coeffs


def mapped(distribution, change):
    """The mixture of changed parameters."""
    return LogisticMixture(*map(change, parameters(distribution)), distribution.frame_channels, distribution.bits)


def images(distribution, dtype=torch.float32):
    """Random levels."""
    batch, channels, _, *size = distribution.means.shape
    top = 2**distribution.bits - 1
    return torch.randint(0, top + 1, (batch, channels, *size)).to(dtype) / top


def single_pixels(tensor):
    """(B, ..., H, W) to (B·H·W, ..., 1, 1): every pixel an image."""
    return tensor.movedim((-2, -1), (1, 2)).flatten(0, 2)[..., None, None]


def grid(bits, dtype):
    """Every level (2^bits·M, 1, 1, 1) under one component of every mean and log-scale, and M."""
    # some means on the edges of bins
    means = torch.cat([torch.linspace(-1.5, 1.5, 31), torch.tensor([-1e-8, 1e-8, 1.0 / 255.0, -254.0 / 255.0])])
    pairs = torch.cartesian_prod(means, torch.linspace(-7.0, 2.0, 19)).to(dtype)
    levels = torch.arange(2**bits, dtype=dtype) / (2**bits - 1)
    every_mean, every_scale = (column.repeat(len(levels)).reshape(-1, 1, 1, 1, 1) for column in pairs.unbind(1))
    nothing = torch.zeros_like(every_mean)
    target = levels.repeat_interleave(len(pairs)).reshape(-1, 1, 1, 1)
    return LogisticMixture(nothing, every_mean, every_scale, nothing, 1, bits), target, len(pairs)


# ---------------------------------------------------------------------- log_prob


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_masses_of_all_levels_sum_to_one(bits, dtype):
    distribution, target, pairs = grid(bits, dtype)
    masses = distribution.log_prob(target).reshape(-1, pairs).double().exp().sum(dim=0)
    assert masses.sub(1.0).abs().max() < (1e-12 if dtype == torch.float64 else 2e-6)


def test_the_joint_of_three_channels_sums_to_one():
    distribution = mapped(mixture(batch=40, size=(1, 1), bits=2), lambda p: p.repeat(64, 1, 1, 1, 1))
    colours = torch.tensor(list(itertools.product(range(4), repeat=3))) / 3.0
    log_probs = distribution.log_prob(colours.repeat_interleave(40, dim=0)[:, :, None, None]).reshape(64, 40)
    assert torch.allclose(log_probs.exp().sum(dim=0), torch.ones(40), atol=1e-5)


def naive_log_prob(distribution, target):
    """PixelCNN++'s equations, number by number in float64."""
    top, c = 2**distribution.bits - 1, distribution.frame_channels
    logits, means, log_scales, coeffs = (parameter.tolist() for parameter in parameters(distribution))
    batch, channels, components, height, width = distribution.means.shape

    def sigmoid(x):
        return 1.0 / (1.0 + math.exp(-x)) if x > 0.0 else math.exp(x) / (1.0 + math.exp(x))

    totals = []
    for b in range(batch):
        total = 0.0
        for first, row, column in itertools.product(range(0, channels, c), range(height), range(width)):
            levels = [round(target[b, first + i, row, column].item() * top) for i in range(c)]
            x = [2.0 * level / top - 1.0 for level in levels]
            weights = [math.exp(logits[b][first][k][row][column]) for k in range(components)]
            mass = 0.0
            for k in range(components):
                product = weights[k] / sum(weights)
                coeff = [coeffs[b][first + i][k][row][column] for i in range(c)]
                shifts = [0.0] if c == 1 else [0.0, coeff[0] * x[0], coeff[1] * x[0] + coeff[2] * x[1]]
                for i in range(c):
                    mean = means[b][first + i][k][row][column] + shifts[i]
                    scale = math.exp(log_scales[b][first + i][k][row][column])
                    above = 1.0 if levels[i] == top else sigmoid((x[i] + 1.0 / top - mean) / scale)
                    below = 0.0 if levels[i] == 0 else sigmoid((x[i] - 1.0 / top - mean) / scale)
                    product *= above - below
                mass += product
            total += math.log(mass)
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64)


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize(("channels", "frame_channels"), [(1, 1), (3, 3), (6, 3), (4, 1)])
def test_log_prob_is_that_of_the_equations(channels, frame_channels, bits):
    distribution = mixture(
        channels=channels, frame_channels=frame_channels, bits=bits, low=-2.0, size=(2, 3), dtype=torch.float64
    )
    target = images(distribution, torch.float64)
    target[:, :, 0, 0], target[:, :, 0, 1] = 0.0, 1.0  # both ends
    assert torch.allclose(distribution.log_prob(target), naive_log_prob(distribution, target), rtol=1e-10)


@pytest.mark.parametrize("frame_channels", [1, 3])
@pytest.mark.parametrize("low", [-7.0, -4.0])
def test_float32_is_within_1e_5_of_float64(low, frame_channels):
    """Pixel by pixel, of likely and of unlikely targets; at the smallest scales too, where rounding hurts most."""
    distribution = mixture(frame_channels=frame_channels, size=(24, 24), low=low)
    if low == -7.0:
        distribution = LogisticMixture(
            *parameters(distribution)[:2],
            torch.full_like(distribution.means, low),
            distribution.coeffs,
            frame_channels,
        )
    for target in (distribution.sample(), images(distribution)):
        pixels = mapped(distribution, single_pixels)
        single = pixels.log_prob(single_pixels(target))
        double = mapped(pixels, torch.Tensor.double).log_prob(single_pixels(target.double()))
        assert single.dtype == torch.float32
        assert torch.allclose(single.double(), double, rtol=1e-5, atol=1e-5)


def test_float32_is_within_1e_5_of_float64_for_every_level():
    distribution, target, _ = grid(8, torch.float32)
    double = mapped(distribution, torch.Tensor.double).log_prob(target.double())
    assert torch.allclose(distribution.log_prob(target).double(), double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("log_scale", [-7.0, -5.0, -2.0, 2.0])
@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_the_gradient_a_thousand_scales_away_points_back(level, log_scale):
    scale = math.exp(log_scale)
    target = torch.full((1, 1, 1, 1), level / 255.0)
    for side in [-1.0] * (level > 0) + [1.0] * (level < 255):  # beyond an end a mean is right
        mean = torch.full((1, 1, 1, 1, 1), 2.0 * level / 255.0 - 1.0 + side * 1000.0 * scale, requires_grad=True)
        log_scales = torch.full_like(mean, log_scale, requires_grad=True)
        nothing = torch.zeros_like(mean)
        log_prob = LogisticMixture(nothing, mean, log_scales, nothing, 1).log_prob(target)
        log_prob.sum().backward()
        assert -1010.0 < log_prob.item() < -990.0
        assert mean.grad.item() == pytest.approx(-side / scale, rel=0.01)
        assert log_scales.grad.item() == pytest.approx(1000.0, rel=0.01)  # a wider one would be better


def test_gradients_are_those_of_the_equations():
    distribution = mixture(batch=1, size=(1, 2), components=2, dtype=torch.float64, low=-2.0)
    target = images(distribution, torch.float64)
    leaves = [parameter.clone().requires_grad_() for parameter in parameters(distribution)]

    def log_prob(*values):
        return LogisticMixture(*values, 3).log_prob(target)

    assert torch.autograd.gradcheck(log_prob, leaves)


def test_coupling_is_read_from_where_the_documentation_says():
    distribution = mixture(components=1, low=-3.0)
    target = images(distribution)
    leaf = torch.zeros_like(distribution.coeffs, requires_grad=True)
    coupled = LogisticMixture(*parameters(distribution)[:3], leaf, 3)
    coupled.log_prob(target).sum().backward()
    x = 2.0 * target - 1.0
    # without coupling d/dc is d/dm of the channel that is moved, times what moves it
    means = distribution.means.clone().requires_grad_()
    LogisticMixture(distribution.logit_probs, means, distribution.log_scales, torch.zeros_like(means), 3).log_prob(
        target
    ).sum().backward()
    red, green = x[:, 0], x[:, 1]
    expected = torch.stack([means.grad[:, 1, 0] * red, means.grad[:, 2, 0] * red, means.grad[:, 2, 0] * green], dim=1)
    assert torch.allclose(leaf.grad[:, :, 0], expected, rtol=1e-3, atol=1e-4)


def test_grey_frames_read_no_coefficients():
    distribution = mixture(frame_channels=1)
    target = images(distribution)
    other = LogisticMixture(*parameters(distribution)[:3], torch.zeros_like(distribution.means), 1)
    assert torch.equal(distribution.log_prob(target), other.log_prob(target))
    assert torch.equal(distribution.mean, other.mean)


@pytest.mark.parametrize("frame_channels", [1, 3])
def test_frames_of_a_stack_are_independent(frame_channels):
    distribution = mixture(channels=9, frame_channels=frame_channels)
    target = images(distribution)
    frames = [slice(first, first + frame_channels) for first in range(0, 9, frame_channels)]
    single = [mapped(distribution, lambda parameter, frame=frame: parameter[:, frame]) for frame in frames]
    sums = sum(one.log_prob(target[:, frame]) for one, frame in zip(single, frames, strict=True))
    assert torch.allclose(distribution.log_prob(target), sums, rtol=1e-6)
    assert torch.allclose(distribution.mean, torch.cat([one.mean for one in single], dim=1), atol=1e-6)
    other = mixture(channels=9, frame_channels=3 if frame_channels == 1 else 1)
    regrouped = LogisticMixture(*parameters(distribution), other.frame_channels)
    assert not torch.allclose(regrouped.log_prob(target), sums, rtol=1e-3)


def test_bfloat16_is_finite_and_computed_in_float32():
    distribution = mapped(mixture(channels=9, low=-7.0), lambda parameter: parameter.bfloat16())
    target = images(distribution)
    log_prob = distribution.log_prob(target)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
    assert torch.equal(log_prob, mapped(distribution, lambda parameter: parameter.float()).log_prob(target))
    assert distribution.mean.isfinite().all() and distribution.sample().isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_level_of_a_frame_is_known_again_after_rounding(dtype):
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    distribution = mixture(batch=1, channels=1, frame_channels=1, size=(16, 16))
    exact = distribution.log_prob(frames.double() / 255.0)
    assert torch.allclose(distribution.log_prob(to_unit(frames, dtype)).double(), exact, rtol=1e-5)


def test_bits_per_dimension_and_the_losses_agree():
    distribution = mixture(channels=6)
    target = images(distribution)
    nll = logistic_mixture_nll(*parameters(distribution), target, frame_channels=3)
    assert nll.item() == pytest.approx(-distribution.log_prob(target).mean().item())
    assert torch.equal(nll, negative_log_likelihood(distribution, target))
    bits = distribution.bits_per_dimension(target)
    assert bits.shape == (2,)
    assert bits.mean().item() == pytest.approx(bits_per_dimension(nll, (6, 3, 5)).item())
    # a component of no width, right about everything
    certain = LogisticMixture(
        distribution.logit_probs,
        (2.0 * target - 1.0)[:, :, None].expand_as(distribution.means),
        torch.full_like(distribution.means, -12.0),
        torch.zeros_like(distribution.means),
        frame_channels=3,
    )
    assert certain.bits_per_dimension(target).abs().max() < 1e-6


# ---------------------------------------------------------------------- mean and samples


def chi_square_p_value(observed, expected):
    """p-value of counts; cells in which fewer than five are expected count as one."""
    rare = expected < 5.0
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    occupied = expected > 0.0
    return stats.chisquare(observed[occupied], expected[occupied], sum_check=False).pvalue


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_samples_have_the_probabilities_of_log_prob(bits):
    draws, levels = 50_000, 2**bits
    distribution = mixture(batch=1, channels=1, components=3, size=(1, 1), frame_channels=1, bits=bits, low=-3.0)
    sample = mapped(distribution, lambda parameter: parameter.expand(draws, -1, -1, -1, -1)).sample()
    observed = torch.bincount((sample.flatten() * (levels - 1)).round().long(), minlength=levels).double()
    every = (torch.arange(levels) / (levels - 1)).reshape(-1, 1, 1, 1)
    pmf = mapped(distribution, lambda parameter: parameter.expand(levels, -1, -1, -1, -1)).log_prob(every).exp()
    assert chi_square_p_value(observed, draws * pmf.double()) > 1e-3


def test_samples_of_colours_have_the_joint_probabilities_of_log_prob():
    """One component for the three channels, and each moved by the levels before."""
    draws = 50_000
    distribution = mixture(batch=1, components=3, size=(1, 1), bits=2, low=-3.0)
    sample = mapped(distribution, lambda parameter: parameter.expand(draws, -1, -1, -1, -1)).sample()
    levels = (3.0 * sample).round().long()[:, :, 0, 0]
    observed = torch.bincount(levels @ torch.tensor([16, 4, 1]), minlength=64).double()
    colours = torch.tensor(list(itertools.product(range(4), repeat=3))) / 3.0
    pmf = mapped(distribution, lambda parameter: parameter.expand(64, -1, -1, -1, -1)).log_prob(
        colours[..., None, None]
    )
    assert chi_square_p_value(observed, draws * pmf.exp().double()) > 1e-3


def test_samples_are_images_with_a_probability_and_reproducible():
    distribution = mixture(channels=6)
    sample = distribution.sample(torch.Generator().manual_seed(1))
    assert sample.shape == (2, 6, 3, 5) and not sample.requires_grad
    assert distribution.log_prob(sample).isfinite().all()
    assert torch.equal(sample, distribution.sample(torch.Generator().manual_seed(1)))
    assert not torch.equal(sample, distribution.sample(torch.Generator().manual_seed(2)))


def test_a_channel_reads_the_clipped_level_before_it():
    shape = (1, 3, 1, 1, 1)
    means = torch.tensor([5.0, -0.5, -0.5]).reshape(shape)  # red is far above what can be shown
    coeffs = torch.tensor([0.5, 0.25, 0.5]).reshape(shape)
    distribution = LogisticMixture(torch.zeros(shape), means, torch.full(shape, -7.0), coeffs, 3)
    # red 1; green -0.5 + 0.5 · 1 = 0; blue -0.5 + 0.25 · 1 + 0.5 · 0 = -0.25
    expected = torch.tensor([1.0, 0.5, 0.375])
    assert torch.allclose(distribution.mean.flatten(), expected, atol=1e-3)
    assert torch.allclose(distribution.sample(temperature=0.0).flatten(), expected, atol=0.5 / 255.0 + 1e-6)


def test_the_mean_is_the_expectation_of_the_equations_away_from_the_ends():
    shape = (2, 3, 4, 3, 5)
    means, coeffs = 0.6 * torch.rand(shape) - 0.3, torch.rand(shape) - 0.5
    distribution = LogisticMixture(torch.randn(shape), means, torch.full(shape, -5.0), coeffs, 3)
    probabilities = distribution.logit_probs[:, 0].softmax(dim=1)
    red = means[:, 0]
    green = means[:, 1] + coeffs[:, 0] * red
    blue = means[:, 2] + coeffs[:, 1] * red + coeffs[:, 2] * green
    expected = torch.stack([(probabilities * channel).sum(dim=1) for channel in (red, green, blue)], dim=1)
    assert torch.allclose(2.0 * distribution.mean - 1.0, expected, atol=1e-6)


def test_the_mean_is_that_of_many_samples():
    """Though means and tails lie outside: of grey frames at all scales, of colours where clipping bends little."""
    draws = 20_000
    for frame_channels, high, slack in ((1, 2.0, 0.0), (3, -2.0, 0.005)):
        distribution = mixture(batch=1, size=(2, 4), frame_channels=frame_channels, low=-3.0, high=high)
        sample = mapped(distribution, lambda parameter: parameter.expand(draws, -1, -1, -1, -1)).sample()
        error = 5.0 * sample.std(dim=0) / math.sqrt(draws) + slack
        assert ((sample.mean(dim=0) - distribution.mean[0]).abs() < error).all()


def test_temperature_divides_logits_and_multiplies_scales():
    shape = (1, 1, 2, 100, 200)
    logits = torch.tensor([1.0, 0.0]).reshape(1, 1, 2, 1, 1).expand(shape)
    means = torch.tensor([-0.5, 0.5]).reshape(1, 1, 2, 1, 1).expand(shape)
    distribution = LogisticMixture(logits, means, torch.full(shape, -4.0), torch.zeros(shape), 1)
    spread = {}
    for temperature in (0.5, 1.0, 2.0):
        x = 2.0 * distribution.sample(temperature=temperature) - 1.0
        left = x < 0.0
        expected = 1.0 / (1.0 + math.exp(-1.0 / temperature))
        assert left.float().mean().item() == pytest.approx(expected, abs=5.0 * math.sqrt(0.25 / x.numel()))
        spread[temperature] = x[left].std().item()
    # of a logistic, π s / √3
    assert spread[1.0] == pytest.approx(math.pi * math.exp(-4.0) / math.sqrt(3.0), rel=0.05)
    assert spread[0.5] == pytest.approx(0.5 * spread[1.0], rel=0.05)
    assert spread[2.0] == pytest.approx(2.0 * spread[1.0], rel=0.05)
    cold = distribution.sample(temperature=0.0)
    assert (cold == cold.flatten()[0]).all() and cold.flatten()[0].item() == pytest.approx(0.25, abs=0.5 / 255.0 + 1e-6)


# ---------------------------------------------------------------------- the head


@pytest.mark.parametrize(("channels", "frame_channels"), [(1, 1), (3, 3), (3, 1), (9, 3)])
def test_head_decodes_what_it_documents(channels, frame_channels):
    head = LogisticMixtureHead(6, channels, 5, frame_channels)
    decoded = head(3.0 * torch.randn(2, 6, 9, 13))
    assert all(parameter.shape == (2, channels, 5, 9, 13) for parameter in decoded)
    frames = decoded.logit_probs.unflatten(1, (-1, frame_channels))
    assert torch.equal(frames, frames[:, :, :1].expand_as(frames))
    assert head.conv.out_channels == (10 if frame_channels == 3 else 3) * 5 * channels // frame_channels
    assert decoded.coeffs.abs().max() < 1.0 and bool(decoded.coeffs.any()) == (frame_channels == 3)
    distribution = head.likelihood(*decoded)
    assert distribution.frame_channels == frame_channels and distribution.bits == 8
    target = images(distribution)
    distribution.log_prob(target).sum().backward()
    # every number it computes is used, and trained
    assert (head.conv.bias.grad != 0.0).all() and (head.conv.weight.grad.abs().sum(dim=(1, 2, 3)) > 0.0).all()
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(head.sample(*decoded, generator=seeds[0]), distribution.sample(seeds[1]))


def test_head_starts_with_all_levels_about_as_likely():
    head = LogisticMixtureHead(16, 1, 10, 1)
    decoded = head(torch.randn(4, 16, 16, 16))
    distribution = head.likelihood(*decoded)
    assert 8.0 < distribution.bits_per_dimension(images(distribution)).mean().item() < 8.4


def test_head_bounds_scales_and_leads_back_from_the_bound():
    head = LogisticMixtureHead(2, 3, 2, 3)
    maps = torch.full((1, 2, 4, 4), -1.0, requires_grad=True)
    with torch.no_grad():
        head.conv.weight.fill_(10.0)
    log_scales = head(maps).log_scales
    assert log_scales.min() >= MIN_LOG_SCALE and log_scales.max() < MIN_LOG_SCALE + 1e-4
    log_scales.sum().backward()
    assert (maps.grad > 0.0).all()
    assert head(100.0 * maps.detach().abs()).log_scales.isfinite().all()


def test_head_computes_in_float32_under_autocast():
    head, maps = LogisticMixtureHead(6, 3, 4, 3), torch.randn(2, 6, 8, 8)
    plain = head(maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = head(maps)
        log_prob = head.likelihood(*decoded).log_prob(images(head.likelihood(*decoded)))
        coarse = head(maps.bfloat16())
    assert all(torch.equal(one, other) for one, other in zip(plain, decoded, strict=True))
    assert log_prob.dtype == torch.float32 and coarse.means.dtype == torch.float32


def test_head_is_copied_restored_and_compiled():
    head, maps = LogisticMixtureHead(6, 6, 4, 3), torch.randn(2, 6, 8, 9)
    restored = LogisticMixtureHead(6, 6, 4, 3)
    restored.load_state_dict(head.state_dict())

    def mean(module, inputs):
        return module.likelihood(*module(inputs)).mean

    expected = mean(head, maps)
    assert torch.equal(mean(copy.deepcopy(head), maps), expected) and torch.equal(mean(restored, maps), expected)
    compiled = torch.compile(mean, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(head, maps), expected, atol=1e-6)


def test_a_head_learns_two_colours_and_that_they_exclude_each_other():
    """What neither a Gaussian nor independent channels can say: a pixel is red or cyan."""
    colours = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    target = colours[torch.randint(0, 2, (64, 8, 8))].movedim(-1, 1)
    head = LogisticMixtureHead(1, 3, 4, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    maps = torch.ones(64, 1, 8, 8)
    for _ in range(200):
        optimizer.zero_grad()
        loss = negative_log_likelihood(head.likelihood(*head(maps)), target)
        loss.backward()
        optimizer.step()
    # one bit a pixel is the entropy; channels on their own would need three
    assert loss.item() / (64.0 * math.log(2.0)) < 1.1
    sample = head.likelihood(*head(maps)).sample()
    assert ((sample[:, 0] > 0.5) != (sample[:, 1] > 0.5)).float().mean() > 0.95
    assert ((sample[:, 1] > 0.5) == (sample[:, 2] > 0.5)).float().mean() > 0.95


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "up to 0.5 of a level"),
        (1.0 + 1.0 / 255.0, "to 1.00392"),
        (-1.0 / 255.0, "from -0.00392"),
        (255.0, "to 255"),
        (math.nan, "nan"),
        (0.25 / 255.0, "up to 0.25 of a level"),
    ],
)
def test_targets_that_are_no_levels_are_refused(value, message):
    distribution = mixture()
    target = images(distribution)
    target[1, 2, 0, 4] = value
    with pytest.raises(ValueError, match=message):
        distribution.log_prob(target)


def test_images_of_more_bits_are_refused_and_rounded_ones_are_not():
    distribution = mixture(bits=5)
    target = images(mixture())
    with pytest.raises(ValueError, match=r"of 5 bits needs targets k/31"):
        distribution.log_prob(target)
    assert distribution.log_prob((target * 31).round() / 31).isfinite().all()


def test_wrong_types_and_shapes_are_refused():
    distribution = mixture()
    with pytest.raises(TypeError, match=r"torch.uint8.*to_unit"):
        distribution.log_prob(torch.zeros(2, 3, 3, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected targets \(2, 3, 3, 5\), got \(2, 1, 3, 5\)"):
        distribution.log_prob(torch.zeros(2, 1, 3, 5))
    logits, means, log_scales, coeffs = parameters(distribution)
    with pytest.raises(ValueError, match=r"'logit_probs': \(2, 4, 3, 5\)"):  # as others have them
        LogisticMixture(logits[:, 0], means, log_scales, coeffs, 3)
    with pytest.raises(ValueError, match="one shape"):
        LogisticMixture(*(parameter[..., 0] for parameter in parameters(distribution)), 3)


@pytest.mark.parametrize(
    ("channels", "frame_channels", "bits", "message"),
    [
        (4, 3, 8, "4 channels are no stack of frames of 3"),
        (4, 2, 8, "frame_channels must be 3 .* got 2"),
        (3, 3, 9, "bits must be between 1 and 8, got 9"),
        (3, 3, 0, "bits must be between 1 and 8, got 0"),
        (0, 1, 8, "0 channels"),
    ],
)
def test_formats_that_do_not_exist_are_refused(channels, frame_channels, bits, message):
    empty = torch.zeros(1, channels, 2, 3, 3)
    with pytest.raises(ValueError, match=message):
        LogisticMixture(empty, empty, empty, empty, frame_channels, bits)
    with pytest.raises(ValueError, match=message):
        LogisticMixtureHead(4, channels, 2, frame_channels, bits)


def test_heads_without_channels_or_components_and_negative_temperatures_are_refused():
    with pytest.raises(ValueError, match="got 0 and 2"):
        LogisticMixtureHead(0, 3, 2, 3)
    with pytest.raises(ValueError, match="got 4 and 0"):
        LogisticMixtureHead(4, 3, 0, 3)
    for temperature in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be ≥ 0"):
            mixture().sample(temperature=temperature)
