"""Figures: what an autoencoder makes of images, and what its latent dimensions mean.

Every function returns a Matplotlib ``Figure``: ``figure.savefig(path)`` writes it, a notebook shows it. Images have one
or three channels or are stacks of such frames, of which the newest is shown; values outside [0, 1] are clipped. The
autoencoder is left as it was found, its modules in the mode they were in.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from rl_ae.autoencoders import VAE, Autoencoder, HierarchicalVAE
from rl_ae.configs import CONFIGS
from rl_ae.diagnostics import evaluating
from rl_ae.factory import autoencoder_class
from rl_ae.latents import GaussianLatent, Latent, QuantizedLatent, StochasticLatent, split_groups
from rl_ae.losses import psnr
from rl_ae.pixels import count_frame_channels, to_uint8

Span = tuple[float, float]

#: Values a Gaussian dimension is moved over: 99 % of the prior's mass.
PRIOR_SPAN: Span = (-2.5, 2.5)
#: Values a point's dimension is moved over when nothing is known of it: all that SAC-AE's tanh can return.
TANH_SPAN: Span = (-1.0, 1.0)

#: What has a prior that samples are drawn from.
_PRIORS = VAE | HierarchicalVAE

#: Images encoded at a time.
BATCH_SIZE = 64

#: Images are enlarged by whole numbers until their shorter side has as many pixels on the screen.
TILE_SIDE = 96
#: In pixels of the screen.
GAP, MARGIN, LINE_HEIGHT, LETTER_WIDTH = 2, 10, 20, 7
DPI, FONT_SIZE = 100, 9
#: Neither black nor white, which backgrounds often are.
GAP_COLOUR = "0.75"


def plot_reconstructions(autoencoder: Autoencoder, images: Tensor, *, frame_channels: int | None = None) -> Figure:
    """Images in a row above their reconstructions, with the PSNR of each.

    The PSNR is that of all channels, before values are clipped.

    Args:
        autoencoder: Of images.
        images: (B, C, H, W) in [0, 1].
        frame_channels: Channels of the frame that is shown of a stack, 1 or 3; 3 if C is a multiple of it, else 1.

    Raises:
        TypeError: If the images are not floating point.
        ValueError: If there are none, they do not have the autoencoder's shape, or it encodes vectors.
    """
    with _undisturbed(autoencoder) as device:
        images = _checked(autoencoder, images).to(device)
        reconstructions = torch.cat([autoencoder.reconstruct(batch) for batch in images.split(BATCH_SIZE)])
        decibels = psnr((reconstructions - images).square().mean(dim=(1, 2, 3))).tolist()
    return _grid(
        [images, reconstructions],
        frame_channels,
        row_labels=["input", "reconstruction"],
        column_labels=[f"{value:.1f} dB" for value in decibels],
        columns_are="PSNR",
    )


def plot_traversals(
    autoencoder: Autoencoder,
    image: Tensor,
    dimensions: Sequence[int] | int | None = None,
    span: Span | None = None,
    steps: int = 7,
    *,
    reference: Tensor | None = None,
    frame_channels: int | None = None,
) -> Figure:
    """What each latent dimension draws: a row a dimension, which takes several values while the others keep theirs.

    What :func:`traverse` returns, drawn; Gaussian dimensions are labelled with their KL in nats, points' with their
    extremes in ``reference``.

    Args:
        autoencoder: See :func:`traverse`, as all below.
        image: See there.
        dimensions: See there.
        span: See there.
        steps: See there.
        reference: See there.
        frame_channels: Channels of the frame that is shown of a stack, 1 or 3; 3 if C is a multiple of it, else 1.

    Raises:
        TypeError: As :func:`traverse`.
        ValueError: As there.
    """
    traversals = traverse(autoencoder, image, dimensions, span, steps, reference=reference)
    alike = len({traversal.values for traversal in traversals}) == 1
    first, *_, last = traversals[0].values
    return _grid(
        [traversal.images for traversal in traversals],
        frame_channels,
        row_labels=[traversal.label for traversal in traversals],
        column_labels=_numbers(first, last, steps) if alike else ["lowest", *[""] * (steps - 2), "highest"],
        columns_are="value of the dimension",
    )


class Traversal(NamedTuple):
    """What one latent dimension draws.

    Attributes:
        dimension: Its number, from 0.
        label: Its name, with its KL or its range where these are known.
        start: Its value in the image that was started from.
        values: What it was moved to, ascending.
        images: Decoded, (steps, C, H, W), on the autoencoder's device.
    """

    dimension: int
    label: str
    start: float
    values: tuple[float, ...]
    images: Tensor


def traverse(
    autoencoder: Autoencoder,
    image: Tensor,
    dimensions: Sequence[int] | int | None = None,
    span: Span | None = None,
    steps: int = 7,
    *,
    reference: Tensor | None = None,
) -> list[Traversal]:
    """Give latent dimensions several values, one dimension at a time, and decode.

    The values are absolute, not offsets; the dimensions that are not moved stay at the mode of ``image``. Gaussian
    dimensions are moved over the prior's span. Points have no prior: each dimension is moved between its extremes in
    ``reference``, or over the range of SAC-AE's tanh without one.

    Args:
        autoencoder: Of images, with a vector for a latent.
        image: The image to start from, (C, H, W) or (1, C, H, W), in [0, 1].
        dimensions: Which dimensions, in this order; or how many. All if omitted. Unless they are listed, those of the
            greatest KL come first, of points those of the widest range in ``reference``.
        span: The first and the last value of every dimension, instead of the above.
        steps: Values of each dimension, ≥ 2.
        reference: Images (B, C, H, W) that KL (its mean) and range are taken from; ``image`` alone if omitted.

    Raises:
        TypeError: If images are not floating point.
        ValueError: If images do not have the autoencoder's shape, it encodes vectors, its latent is a grid of codes,
            or a number is out of range.
    """
    _check_steps(steps)
    if span is not None and not (np.isfinite(span).all() and span[0] < span[1]):
        raise ValueError(f"expected a span (low, high) of finite numbers with low < high, got {span}")
    with _undisturbed(autoencoder) as device:
        latent = autoencoder.encode(_one(autoencoder, image).to(device))
        if isinstance(latent, QuantizedLatent | StochasticLatent):
            raise ValueError(
                f"{type(autoencoder).__name__} has a grid of codes, in which no dimension can be moved alone: "
                "traversals need a latent that is a vector; an interpolation shows what lies between two images"
            )
        if reference is None:
            latents = [latent]
        else:
            reference = _checked(autoencoder, reference)
            latents = [autoencoder.encode(batch.to(device)) for batch in reference.split(BATCH_SIZE)]
        activity, labels, spans = _describe_dimensions(latents)
        if span is not None:
            spans = [span] * len(spans)
        traversals = []
        for dimension in _choose(dimensions, activity):
            values = np.linspace(*spans[dimension], steps)
            moved = latent.mode.repeat(steps, 1)
            moved[:, dimension] = torch.from_numpy(values).to(moved)
            start = latent.mode[0, dimension].item()
            decoded = autoencoder.decode(moved)
            traversals.append(Traversal(dimension, labels[dimension], start, tuple(values.tolist()), decoded))
    return traversals


def _describe_dimensions(latents: Sequence[Latent]) -> tuple[Tensor, list[str], list[Span]]:
    """How much each dimension varies (D,), its label, and the values worth looking at."""
    gaussians = [latent for latent in latents if isinstance(latent, GaussianLatent)]
    if gaussians:
        kl = torch.cat([latent.kl() for latent in gaussians]).mean(dim=0)
        return kl, [f"z{number}: {nats:.2f} nats" for number, nats in enumerate(kl)], [PRIOR_SPAN] * len(kl)
    modes = torch.cat([latent.mode for latent in latents])
    if len(modes) == 1:
        unknown = torch.zeros_like(modes[0])
        return unknown, [f"z{number}" for number in range(len(unknown))], [TANH_SPAN] * len(unknown)
    low, high = modes.amin(dim=0), modes.amax(dim=0)
    spans = list(zip(low.tolist(), high.tolist(), strict=True))
    return high - low, [f"z{number}: {a:z.2f} … {b:z.2f}" for number, (a, b) in enumerate(spans)], spans


def _choose(dimensions: Sequence[int] | int | None, activity: Tensor) -> list[int]:
    """The dimensions of the rows, in order."""
    width = len(activity)
    by_activity: list[int] = activity.argsort(descending=True, stable=True).tolist()
    if dimensions is None:
        return by_activity
    if isinstance(dimensions, int):
        if dimensions < 1:
            raise ValueError(f"expected at least 1 dimension, got {dimensions}")
        return by_activity[:dimensions]
    if not dimensions or min(dimensions) < 0 or max(dimensions) >= width:
        raise ValueError(f"expected dimensions from 0 to {width - 1}, at least one, got {list(dimensions)}")
    return list(dimensions)


def plot_interpolation(
    autoencoder: Autoencoder, first: Tensor, second: Tensor, steps: int = 8, *, frame_channels: int | None = None
) -> Figure:
    """What lies between two images: their latents' modes mixed linearly and decoded, between the images themselves.

    A grid of codes is mixed position by position, and the mixture is decoded as it is: rounded to codes, it would be a
    patchwork of both images.

    Args:
        autoencoder: Of images.
        first: (C, H, W) or (1, C, H, W), in [0, 1].
        second: The same shape.
        steps: Decoded images, both reconstructions included, ≥ 2.
        frame_channels: Channels of the frame that is shown of a stack, 1 or 3; 3 if C is a multiple of it, else 1.

    Raises:
        TypeError: If an image is not floating point.
        ValueError: If an image does not have the autoencoder's shape, it encodes vectors, or there are fewer steps.
    """
    _check_steps(steps)
    with _undisturbed(autoencoder) as device:
        ends = [_one(autoencoder, image).to(device) for image in (first, second)]
        start, end = (autoencoder.encode(image).mode for image in ends)
        share = torch.linspace(0.0, 1.0, steps).to(start)[:, None]
        between = autoencoder.decode((1.0 - share) * start + share * end)
    return _grid(
        [torch.cat([ends[0], between, ends[1]])],
        frame_channels,
        column_labels=["first", *_numbers(0.0, 1.0, steps), "second"],
        columns_are="share of the second latent",
    )


def plot_samples(
    autoencoder: Autoencoder,
    count: int = 16,
    generator: torch.Generator | None = None,
    *,
    frame_channels: int | None = None,
) -> Figure:
    """Decoded draws of the prior, mean images, row by row in a square.

    Args:
        autoencoder: A :class:`~rl_ae.autoencoders.VAE` or a :class:`~rl_ae.autoencoders.HierarchicalVAE` of images.
            Points have no prior. Codes drawn independently of each other, which is the only prior that a quantised
            autoencoder is trained with, decode to noise.
        count: Images, ≥ 1.
        generator: Of the draws, on the CPU; torch's global one if omitted.
        frame_channels: Channels of the frame that is shown of a stack, 1 or 3; 3 if C is a multiple of it, else 1.

    Raises:
        ValueError: If the autoencoder has no prior to draw from or encodes vectors, or ``count`` is below 1.
    """
    generative = _with_prior(autoencoder)
    with _undisturbed(autoencoder):
        images = generative.sample(count, generator=generator)
    return _grid(images.split(math.ceil(math.sqrt(count))), frame_channels)


def walk_prior(autoencoder: Autoencoder, stops: int, steps: int, generator: torch.Generator | None = None) -> Tensor:
    """Decode a closed walk through draws of the prior, mean images.

    From draw to draw the prior's noise is turned, on the arc between the two: its length stays that of draws, while
    a straight line would pass through latents that are shorter than any draw.

    Args:
        autoencoder: A :class:`~rl_ae.autoencoders.VAE` or a :class:`~rl_ae.autoencoders.HierarchicalVAE` of images.
        stops: Draws, ≥ 2.
        steps: Images from one draw to the next, ≥ 1.
        generator: Of the draws, on the CPU; torch's global one if omitted.

    Returns:
        (stops · steps, C, H, W), on the autoencoder's device; the image at ``i · steps`` is draw i, and after the last
        image comes the first.

    Raises:
        ValueError: If the autoencoder has no prior to draw from or encodes vectors, or a number is too small.
    """
    if stops < 2 or steps < 1:
        raise ValueError(f"expected stops ≥ 2 and steps ≥ 1, got {stops} and {steps}")
    _with_prior(autoencoder)
    draws = torch.randn(stops, autoencoder.latent_dim, generator=generator)
    share = torch.arange(steps)[:, None] / steps
    noise = torch.cat(
        [_arc(draws[stop], draws[(stop + 1) % stops], share) for stop in range(stops)]
    )  # (stops · steps, D)
    with _undisturbed(autoencoder) as device:
        return torch.cat([autoencoder.decode(_from_noise(autoencoder, z.to(device))) for z in noise.split(BATCH_SIZE)])


def _arc(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Vectors (S, D) between two (D,), by their angle (Shoemake, SIGGRAPH 1985), at shares (S, 1) in [0, 1]."""
    angle = torch.acos(
        torch.cosine_similarity(first, second, dim=0).clamp(-0.5, 0.999)
    )  # of opposite ones there is no arc
    return (torch.sin((1.0 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)


def _from_noise(autoencoder: Autoencoder, noise: Tensor) -> Tensor:
    """The prior's latents (B, D) of standard normal noise (B, D)."""
    if not isinstance(autoencoder, HierarchicalVAE):
        return noise
    parts = split_groups(noise, autoencoder.groups.shapes)
    return autoencoder.groups.prior(len(noise), lambda index, group: group.mu + group.log_sigma.exp() * parts[index]).z


def _with_prior(autoencoder: Autoencoder) -> VAE | HierarchicalVAE:
    if not isinstance(autoencoder, _PRIORS):
        with_prior = sorted(name for name, config in CONFIGS.items() if issubclass(autoencoder_class(config), _PRIORS))
        raise ValueError(
            f"{type(autoencoder).__name__} has no prior to draw samples from; these have one: {', '.join(with_prior)}"
        )
    return autoencoder


# ---------------------------------------------------------------------- frames


def last_frame(observations: Tensor | NDArray[Any], frame_channels: int) -> NDArray[np.uint8]:
    """The newest frame of each stack as RGB: (T, C, H, W) in [0, 1] or ``uint8`` to ``uint8`` (T, H, W, 3)."""
    newest = torch.as_tensor(observations)[:, -frame_channels:]
    if newest.dtype != torch.uint8:
        newest = to_uint8(newest)
    return newest.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()


# ---------------------------------------------------------------------- what the functions share


@contextmanager
def _undisturbed(autoencoder: Autoencoder) -> Iterator[torch.device]:
    """Evaluation without gradients, on the device that is given; each module gets its own mode back.

    Raises:
        ValueError: If the autoencoder encodes vectors.
    """
    if len(autoencoder.observation_shape) != 3:
        raise ValueError(
            f"figures need an autoencoder of images (C, H, W), got {type(autoencoder).__name__} of vectors "
            f"{autoencoder.observation_shape}"
        )
    with evaluating(autoencoder) as device:
        yield device


def _checked(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Images (B, C, H, W) with B ≥ 1; their type is checked by ``encode``."""
    if images.ndim != 4 or tuple(images.shape[1:]) != autoencoder.observation_shape or not len(images):
        expected = ", ".join(map(str, autoencoder.observation_shape))
        raise ValueError(f"expected images of shape (B, {expected}) with B ≥ 1, got {tuple(images.shape)}")
    return images


def _one(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    """An image (C, H, W) or (1, C, H, W) as a batch."""
    shape = autoencoder.observation_shape
    if tuple(image.shape) not in (shape, (1, *shape)):
        raise ValueError(f"expected one image of shape {shape} or {(1, *shape)}, got {tuple(image.shape)}")
    return image.reshape(1, *shape)


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise ValueError(f"expected steps ≥ 2, got {steps}")


def _numbers(low: float, high: float, count: int) -> list[str]:
    return [f"{value:z.2f}" for value in np.linspace(low, high, count)]


def _grid(
    rows: Sequence[Tensor],
    frame_channels: int | None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    columns_are: str = "",
) -> Figure:
    """Images (n, C, H, W) row by row, each an image of its own in the figure's only axes.

    Laid out in pixels of the screen: were images scaled to the room there is, some of their rows would be drawn wider
    than others.
    """
    channels, *size = rows[0].shape[1:]
    frame_channels = count_frame_channels(channels, frame_channels)
    height, width = (side * math.ceil(TILE_SIDE / min(size)) for side in size)
    grid_height = len(rows) * (height + GAP) + GAP
    grid_width = max(map(len, rows)) * (width + GAP) + GAP
    left = MARGIN + LETTER_WIDTH * max(map(len, row_labels), default=0)
    bottom = MARGIN + LINE_HEIGHT * (bool(column_labels) + bool(columns_are))
    figure_width, figure_height = left + grid_width + MARGIN, bottom + grid_height + MARGIN
    figure = Figure(figsize=(figure_width / DPI, figure_height / DPI), dpi=DPI)
    axes = figure.add_axes(
        (left / figure_width, bottom / figure_height, grid_width / figure_width, grid_height / figure_height)
    )
    for row, images in enumerate(rows):
        top = GAP + row * (height + GAP)
        for column, image in enumerate(last_frame(images, frame_channels)):
            start = GAP + column * (width + GAP)
            extent = (start, start + width, top + height, top)
            axes.imshow(image, extent=extent, interpolation="nearest", aspect="auto")
    axes.set(xlim=(0, grid_width), ylim=(grid_height, 0), facecolor=GAP_COLOUR)
    axes.spines[:].set_visible(False)
    axes.set_yticks([GAP + row * (height + GAP) + height / 2 for row in range(len(row_labels))], row_labels)
    axes.set_xticks([GAP + column * (width + GAP) + width / 2 for column in range(len(column_labels))], column_labels)
    axes.set_xlabel(columns_are, fontsize=FONT_SIZE)
    axes.tick_params(length=0, labelsize=FONT_SIZE)
    return figure
