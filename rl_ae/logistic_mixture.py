"""Mixtures of discretised logistics: what a decoder says about pixels that are integers (PixelCNN++, arXiv 1701.05517).

Images are levels k / (2^bits - 1) in [0, 1]. Parameters live where the literature has them: a level is the point
2k / (2^bits - 1) - 1 of [-1, 1], and its probability is the mass of the bin that reaches 1 / (2^bits - 1) to either
side. The bins at both ends reach to infinity, so that the masses of all levels sum to 1.

The channels of a colour frame are coupled: within a component the mean of green moves with red, and that of blue with
red and green. Frames of a stack are independent given what was decoded, and each has one choice of component a pixel.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Log-scales of a head stay above it, as in PixelCNN++: a scale of a ninth of an 8-bit bin.
MIN_LOG_SCALE = -7.0


class MixtureParameters(NamedTuple):
    """What :class:`LogisticMixture` is made of, each (B, C, K, H, W) with K components.

    Attributes:
        logit_probs: Unnormalised log-probabilities of the components, the same for all channels of a frame.
        means: On [-1, 1].
        log_scales: Of the logistics, on the same scale.
        coeffs: In (-1, 1); 0 where nothing is coupled.
    """

    logit_probs: Tensor
    means: Tensor
    log_scales: Tensor
    coeffs: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class LogisticMixture:
    r"""A mixture of discretised logistics for every pixel of images (B, C, H, W), a Likelihood.

    A frame is ``frame_channels`` consecutive channels. Component k has the probability
    :math:`\pi_k \prod_c \big[\sigma((x_c + h - \mu_{kc}) / s_{kc}) - \sigma((x_c - h - \mu_{kc}) / s_{kc})\big]`
    with the half bin :math:`h = 1 / (2^{bits} - 1)`, without the second term at the lowest level and with 1 for the
    first at the highest (arXiv 1701.05517, eq. 2). In a colour frame :math:`\mu` moves with the channels before it, as
    :math:`\mu_g = m_g + c_0 x_r` and :math:`\mu_b = m_b + c_1 x_r + c_2 x_g` (eq. 3).

    All is computed in float32 at least, under autocast too.

    Attributes:
        logit_probs: Unnormalised :math:`\log \pi`, (B, C, K, H, W). One component is chosen for a whole frame: only the
            frame's first channel is read, the others repeat it.
        means: m on [-1, 1], (B, C, K, H, W); may lie outside.
        log_scales: log s on the same scale, (B, C, K, H, W).
        coeffs: c in (-1, 1), (B, C, K, H, W): the three channels of a colour frame hold :math:`c_0, c_1, c_2`. Not read
            for frames of one channel, where nothing is coupled.
        frame_channels: 3 for colour frames, 1 for grey ones.
        bits: Bit depth of the images, 1 to 8.

    Raises:
        ValueError: If the shapes differ or are not (B, C, K, H, W), C is no multiple of ``frame_channels``, or a number
            is out of range.
    """

    logit_probs: Tensor
    means: Tensor
    log_scales: Tensor
    coeffs: Tensor
    frame_channels: int
    bits: int = 8

    def __post_init__(self) -> None:
        shapes = [tuple(parameter.shape) for parameter in self._parameters]
        if len(set(shapes)) > 1 or len(shapes[0]) != 5:
            names = dict(zip(MixtureParameters._fields, shapes, strict=True))
            raise ValueError(f"parameters must all have one shape (B, C, K, H, W), got {names}")
        _check_format(shapes[0][1], self.frame_channels, self.bits)

    @property
    def mean(self) -> Tensor:
        r"""The expected image, (B, C, H, W) in [0, 1].

        Of the continuous variable of which a level is the rounded value, clipped to [-1, 1] as the levels are:
        :math:`\sum_k \pi_k e_{kc}`, where :math:`e_{kc}` is the mean of the component's clipped logistic,
        :math:`1 - s \big[\log(1 + e^{(1 - \mu) / s}) - \log(1 + e^{(-1 - \mu) / s})\big]`, and :math:`\mu` is moved by
        the :math:`e` of the channels before. Far from the ends :math:`e = \mu`. Exact for grey frames and for red; for
        green and blue as far as clipping does not bend what they read of the channels before.
        """
        logits, means, log_scales, coeffs = self._frames()
        expected: list[Tensor] = []
        for channel in range(self.frame_channels):
            mean = means[:, :, channel] + _shift(coeffs, expected)
            scale = log_scales[:, :, channel].exp()
            expected.append(1.0 - scale * (F.softplus((1.0 - mean) / scale) - F.softplus((-1.0 - mean) / scale)))
        probabilities = torch.softmax(logits, dim=2)
        image = torch.stack([(probabilities * component).sum(dim=2) for component in expected], dim=2)
        return (0.5 * image + 0.5).clamp(0.0, 1.0).flatten(1, 2)  # clamped against rounding alone

    def log_prob(self, target: Tensor) -> Tensor:
        """Log-probability of images in nats, summed over pixels, (B,).

        Gradients reach the parameters however unlikely the target, and never the target.

        Args:
            target: (B, C, H, W) in [0, 1], levels k / (2^bits - 1) up to the rounding of their type.

        Raises:
            TypeError: If the target is not floating point.
            ValueError: If its shape differs, or a value is not a level.
        """
        levels = self._levels(target).unflatten(1, (-1, self.frame_channels)).unsqueeze(3)  # (B, F, c, 1, H, W)
        top = 2.0**self.bits - 1.0
        # in half bins, distances on [-1, 1] times the top: points and edges are integers there
        points = (2.0 * levels - top).unbind(2)
        logits, means, log_scales, coeffs = self._frames()
        parts = tuple(zip(_coarse_and_fine(means), _coarse_and_fine(coeffs), strict=True))
        log_probs = torch.log_softmax(logits, dim=2)  # (B, F, K, H, W)
        for channel in range(self.frame_channels):
            level, point = levels[:, :, channel], points[channel]
            coarse, fine = (top * mean[:, :, channel] + _shift(coeff, points[:channel]) for mean, coeff in parts)
            lower, upper = point - 1.0 - coarse - fine, point + 1.0 - coarse - fine
            rate = (-log_scales[:, :, channel]).exp() / top
            log_probs = log_probs + _log_mass(lower, upper, rate, level > 0.0, level < top)
        return torch.logsumexp(log_probs, dim=2).flatten(start_dim=1).sum(dim=1)

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """A draw of the distribution that :meth:`log_prob` is of, (B, C, H, W): levels in [0, 1], without gradients.

        A component is chosen once a frame and pixel. Each channel is rounded to its level, and so clipped, before the
        next one reads it.

        Args:
            generator: Of the noise, on the parameters' device; torch's global one if omitted.
            temperature: t ≥ 0: logits are divided by it and scales multiplied, so that draws become less varied towards
                0, where they are the level next to the mean of the most likely component.

        Raises:
            ValueError: If the temperature is negative or not finite.
        """
        if not 0.0 <= temperature < math.inf:
            raise ValueError(f"temperature must be ≥ 0 and finite, got {temperature}")
        logits, *parameters = self._frames()
        # argmax (logits / t + noise), at t = 0 as well
        component = (logits + temperature * _gumbel(logits, generator)).argmax(dim=2)[:, :, None, None]
        means, log_scales, coeffs = (parameter.take_along_dim(component, dim=3) for parameter in parameters)
        # the difference of two Gumbel variables is logistic
        noise = _gumbel(means, generator) - _gumbel(means, generator)
        locations = means + temperature * log_scales.exp() * noise  # (B, F, c, 1, H, W)
        top = 2.0**self.bits - 1.0
        levels: list[Tensor] = []
        for channel in range(self.frame_channels):
            points = [2.0 * level / top - 1.0 for level in levels]
            location = locations[:, :, channel] + _shift(coeffs, points)
            levels.append((0.5 * top * (location + 1.0)).round().clamp(0.0, top))
        return torch.stack(levels, dim=2).flatten(1, 2).squeeze(2) / top

    def bits_per_dimension(self, target: Tensor) -> Tensor:
        """Minus :meth:`log_prob` as bits a channel of a pixel, (B,): ``bits`` for a uniform distribution."""
        return -self.log_prob(target) / (target[0].numel() * math.log(2.0))

    @property
    def _parameters(self) -> MixtureParameters:
        return MixtureParameters(self.logit_probs, self.means, self.log_scales, self.coeffs)

    def _frames(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (B, F, K, H, W), means, log-scales and coefficients (B, F, c, K, H, W): F frames of c channels."""
        dtype = torch.promote_types(self.means.dtype, torch.float32)
        logits, means, log_scales, coeffs = (
            parameter.to(dtype).unflatten(1, (-1, self.frame_channels)) for parameter in self._parameters
        )
        return logits[:, :, 0], means, log_scales, coeffs

    def _levels(self, target: Tensor) -> Tensor:
        """The target's levels, 0 to 2^bits - 1, (B, C, H, W)."""
        batch, channels, _, height, width = self.means.shape
        if tuple(target.shape) != (batch, channels, height, width):
            raise ValueError(f"expected targets {(batch, channels, height, width)}, got {tuple(target.shape)}")
        if not target.is_floating_point():
            raise TypeError(f"expected floats in [0, 1], got {target.dtype}: scale frames with rl_ae.pixels.to_unit")
        top = 2.0**self.bits - 1.0
        scaled = target.detach().to(torch.promote_types(target.dtype, torch.float32)) * top
        levels = scaled.round()
        # near 1 a type rounds by a quarter of its epsilon: half a level of 255 in bfloat16, which is just enough
        tolerance = max(1e-3, 0.25 * torch.finfo(target.dtype).eps * top)
        low, high, off = torch.stack([*levels.aminmax(), (scaled - levels).abs().amax()]).tolist()  # one wait
        if not (low >= 0.0 and high <= top and off <= tolerance):
            raise ValueError(
                f"a logistic mixture of {self.bits} bits needs targets k/{top:.0f} with k = 0 … {top:.0f}, got values "
                f"from {target.min().item():g} to {target.max().item():g}, up to {off:g} of a level beside the next k: "
                f"give it images without added noise, rounded to (x * {top:.0f}).round() / {top:.0f} in [0, 1]"
            )
        return levels.to(torch.promote_types(scaled.dtype, self.means.dtype))


class LogisticMixtureHead(nn.Module):
    """The end of a decoder: maps (B, ``in_channels``, H, W) to :class:`MixtureParameters` by a 1×1 convolution.

    It computes what is needed and nothing else, for K components 10 K numbers a colour frame and 3 K a grey one, in
    float32 under autocast too, because means in bfloat16 would jump by half a level. At first the components' means are
    spread evenly over [-1, 1], with the space between them as their scale: all levels are about as likely.

    Args:
        in_channels: Of the maps.
        image_channels: C.
        num_mixtures: K; 10 in PixelCNN++.
        frame_channels: Channels a frame, 3 for colour and 1 for grey; C is a multiple of it.
        bits: Bit depth of the images, 1 to 8.

    Raises:
        ValueError: If a number is out of range, or C is no multiple of ``frame_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        image_channels: int,
        num_mixtures: int,
        frame_channels: int,
        bits: int = LogisticMixture.bits,
    ) -> None:
        super().__init__()
        if in_channels < 1 or num_mixtures < 1:
            raise ValueError(f"in_channels and num_mixtures must be ≥ 1, got {in_channels} and {num_mixtures}")
        _check_format(image_channels, frame_channels, bits)
        self.num_mixtures, self.frame_channels, self.bits = num_mixtures, frame_channels, bits
        #: Of logits, means, log-scales and coefficients: how many a frame has, K of each.
        self.sizes = (1, frame_channels, frame_channels, frame_channels * (frame_channels - 1) // 2)
        frames = image_channels // frame_channels
        self.conv = nn.Conv2d(in_channels, frames * sum(self.sizes) * num_mixtures, kernel_size=1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the convolution: small weights, and biases that spread the components."""
        bound = 0.1 / math.sqrt(self.conv.in_channels)  # a tenth of a convolution's usual weights
        nn.init.uniform_(self.conv.weight, -bound, bound)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
        _, means, log_scales, _ = self._split(self.conv.bias[None, :, None, None])
        means[:] = ((2.0 * torch.arange(self.num_mixtures) + 1.0) / self.num_mixtures - 1.0)[:, None, None]
        log_scales.fill_(math.log(2.0 / self.num_mixtures))

    def forward(self, maps: Tensor) -> MixtureParameters:
        """Parameters (B, C, K, H, W) each, of an image as large as the maps."""
        with torch.autocast(maps.device.type, enabled=False):
            logits, means, raw_scales, raw_coeffs = self._split(self.conv(maps.to(self.conv.weight.dtype)))
            # softplus rather than a clamp, below which no gradient would lead back
            log_scales = MIN_LOG_SCALE + F.softplus(raw_scales - MIN_LOG_SCALE)
            coeffs = torch.tanh(raw_coeffs) if raw_coeffs.shape[2] else torch.zeros_like(means)
            parameters = (logits.expand_as(means), means, log_scales, coeffs)
            return MixtureParameters(*(parameter.flatten(1, 2) for parameter in parameters))

    def likelihood(self, logit_probs: Tensor, means: Tensor, log_scales: Tensor, coeffs: Tensor) -> LogisticMixture:
        """The distribution that parameters of :meth:`forward`, (B, C, K, H, W) each, are of."""
        return LogisticMixture(logit_probs, means, log_scales, coeffs, self.frame_channels, self.bits)

    def sample(
        self,
        logit_probs: Tensor,
        means: Tensor,
        log_scales: Tensor,
        coeffs: Tensor,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """A draw (B, C, H, W) in [0, 1] of parameters of :meth:`forward`; see :meth:`LogisticMixture.sample`."""
        return self.likelihood(logit_probs, means, log_scales, coeffs).sample(generator, temperature)

    def _split(self, raw: Tensor) -> tuple[Tensor, ...]:
        """(B, F·n·K, H, W) to logits (B, F, 1, K, H, W), means and log-scales (B, F, c, …), coefficients (B, F, …)."""
        numbers = raw.unflatten(1, (-1, sum(self.sizes), self.num_mixtures))
        return torch.split(numbers, list(self.sizes), dim=2)


def _check_format(channels: int, frame_channels: int, bits: int) -> None:
    if frame_channels not in (1, 3):
        raise ValueError(f"frame_channels must be 3 (colour) or 1 (grey), got {frame_channels}")
    if channels < 1 or channels % frame_channels:
        raise ValueError(
            f"{channels} channels are no stack of frames of {frame_channels}: pass frame_channels=1 to couple none"
        )
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be between 1 and 8, got {bits}")


def _shift(coeffs: Tensor, earlier: Sequence[Tensor]) -> Tensor | int:
    """What the channels before one add to its mean: Σ c x over the rows of c's triangle, 0 for the first channel.

    Args:
        coeffs: (B, F, c, K, H, W), of green on red, blue on red, blue on green.
        earlier: Values of the channels before, (B, F, K or 1, H, W).
    """
    first = len(earlier) * (len(earlier) - 1) // 2
    return sum(coeffs[:, :, first + index] * values for index, values in enumerate(earlier))


def _coarse_and_fine(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """A parameter as a multiple of 2⁻¹⁴, whose products with levels and their sums float32 holds exactly, and the rest.

    Small scales magnify rounding, e⁷ = 1,097 times. The rest is too small to suffer, and carries the whole gradient.
    """
    coarse = (parameter.detach() * 2.0**14).round() / 2.0**14
    return coarse, parameter - coarse


def _log_mass(lower: Tensor, upper: Tensor, rate: Tensor, bounded_below: Tensor, bounded_above: Tensor) -> Tensor:
    r"""Log-probability of a bin: :math:`\log(\sigma(a) - \sigma(b))` with a = upper · rate and b = lower · rate.

    As :math:`\log \sigma(a) + \log \sigma(-b) + \log(1 - e^{b - a})` no digits cancel, and far from the mean the
    gradient is that of a line.

    Args:
        lower: Where the bin begins, from the logistic's mean, in half bins.
        upper: Where it ends: at ``lower`` + 2.
        rate: Half a bin over the scale.
        bounded_below: Where the bin has a beginning; elsewhere it reaches to -∞, and σ(b) is 0.
        bounded_above: Where the bin has an end; elsewhere it reaches to +∞, and σ(a) is 1.
    """
    below_end = F.logsigmoid(upper * rate).where(bounded_above, 0.0)
    above_beginning = F.logsigmoid(-lower * rate).where(bounded_below, 0.0)
    width = torch.log(-torch.expm1(-2.0 * rate)).where(bounded_below & bounded_above, 0.0)
    return below_end + above_beginning + width


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard Gumbel noise of the shape of a tensor."""
    exponential = torch.empty_like(like, memory_format=torch.contiguous_format).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(like.dtype).tiny).log()
