"""Pixels: the one place where frames are scaled, quantised, shifted, padded and cropped.

Everything above this module sees float images in [0, 1] of shape (B, C, H, W).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_IMAGE_SIZE = 8


def to_unit(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale frames to [0, 1].

    Args:
        frames: (B, C, H, W), ``uint8`` in [0, 255], or floating point that is already in [0, 1].
        dtype: Floating-point type of the result. bfloat16 keeps the 256 grey levels up to half a level.

    Returns:
        The same shape, of type ``dtype``; images in memory with their channels last, as convolutions like them best.

    Raises:
        TypeError: If ``frames`` is neither ``uint8`` nor floating point.
    """
    if not frames.is_floating_point() and frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8 or floating point, got {frames.dtype}")
    if frames.ndim == 4:  # while they are small
        frames = frames.contiguous(memory_format=torch.channels_last)
    return frames.to(dtype) if frames.is_floating_point() else frames.to(dtype).div_(255.0)


def scale_range(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Scale images with bounds of their own, depth in metres say, to [0, 1].

    Args:
        values: (B, C, H, W) in [``low``, ``high``], floating point.
        low: What becomes 0; broadcastable to (C, H, W).
        high: What becomes 1.
    """
    return (values - low) / (high - low)


def to_uint8(images: Tensor) -> Tensor:
    """Turn images in [0, 1] into displayable ``uint8`` frames, clipping what lies outside."""
    return (images.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def dequantize(images: Tensor, bits: int, noise: Tensor | None = None) -> Tensor:
    r"""Reduce the bit depth and fill each level with uniform noise: the decoder's target.

    With :math:`L = 2^{bits}` levels, :math:`(\lfloor 255 x / 2^{8 - bits} \rfloor + u) / L`, :math:`u \sim U[0, 1)`.
    Glow (arXiv 1807.03039) trains on such images and SAC-AE (arXiv 1910.01741) reconstructs them; their further shift
    by -0.5 is left out because our decoders are centred on 0.5 instead, which gives the same error.

    Args:
        images: (B, C, H, W), ``uint8`` frames, or floats in [0, 1], best multiples of 1/255.
        bits: Bits kept, 1 to 8.
        noise: Uniform noise in [0, 1) of the same shape; :func:`uniform_noise` if omitted.

    Returns:
        (B, C, H, W) in [0, 1), floating point.

    Raises:
        TypeError: If the images are neither ``uint8`` nor floating point.
        ValueError: If ``bits`` is not between 1 and 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be between 1 and 8, got {bits}")
    if images.dtype == torch.uint8:
        levels = images.contiguous(memory_format=torch.channels_last) >> (8 - bits)
    elif images.is_floating_point():
        levels = torch.floor((images * 255.0).round_() / 2 ** (8 - bits))
    else:
        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
    width = 1.0 / 2**bits  # of a level
    noise = uniform_noise(levels, width) if noise is None else width * noise
    return noise.add_(levels, alpha=width)


def uniform_noise(images: Tensor, width: float = 1.0) -> Tensor:
    """Noise in (0, width) of the shape of images, ``float32``, uniform over the middles of 256 intervals.

    A byte a pixel, eight of which the generator returns at once: on a CPU a tenth of the time of ``torch.rand``, which
    fills the numbers one by one. Each image starts with a draw of its own, so that part of a batch can be given its
    part of the noise. Drawn from torch's global generator.
    """
    words_each = -(-math.prod(images.shape[1:]) // 8)
    words = torch.empty(len(images), words_each, dtype=torch.int64, device=images.device).random_(-(2**63), None)
    layout = torch.empty_like(images).stride()  # without gaps
    bytes_of_pixels = words.view(torch.uint8).as_strided(images.shape, (8 * words_each, *layout[1:]))
    middle = torch.full((), 0.5 * width / 256.0, device=images.device)
    return torch.add(middle, bytes_of_pixels, alpha=width / 256.0)


def random_shift(images: Tensor, pixels: int, offsets: Tensor | None = None) -> Tensor:
    """Move every image by a number of pixels of its own; what comes in at a border repeats it.

    The augmentation of DrQ (arXiv 2004.13649, section 3.1): replicated padding and a random crop, of all stacked frames
    alike.

    Args:
        images: (B, C, H, W), of any type.
        pixels: Largest shift up, down, left and right, ≥ 0.
        offsets: (B, 2) integers, rows and columns that the images move up and left, from -``pixels`` to ``pixels``;
            uniform draws of torch's global generator if omitted.

    Returns:
        The same shape and type; in memory with the channels last.
    """
    batch, channels, height, width = images.shape
    device = images.device
    if offsets is None:
        offsets = torch.randint(-pixels, pixels + 1, (batch, 2), device=device)
    rows = (offsets[:, :1] + torch.arange(height, device=device)).clamp(0, height - 1)  # (B, H)
    columns = (offsets[:, 1:] + torch.arange(width, device=device)).clamp(0, width - 1)  # (B, W)
    first = torch.arange(batch, device=device)[:, None] * height
    # a pixel with all its channels is a row of a matrix: half the time of indexing the images, and no copy for padding
    sources = ((first + rows) * width)[:, :, None] + columns[:, None, :]  # (B, H, W)
    last = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(-1, channels)
    return last.index_select(0, sources.flatten()).view(batch, height, width, channels).permute(0, 3, 1, 2)


def count_frame_channels(channels: int, frame_channels: int | None = None) -> int:
    """Channels of a frame in a stack of so many.

    Args:
        channels: C of the stack.
        frame_channels: 1 or 3; 3 if C is a multiple of it, else 1, if omitted. A stack of three grey frames cannot be
            told from a coloured one.

    Raises:
        ValueError: If a frame has neither 1 nor 3 channels, or the stack is not made of such.
    """
    if frame_channels is None:
        return 1 if channels % 3 else 3
    if frame_channels not in (1, 3) or channels % frame_channels:
        raise ValueError(f"frame_channels must be 1 or 3 and divide the image's {channels}, got {frame_channels}")
    return frame_channels


def pad_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Replicate the right and lower border until an image has at least ``size`` = (H, W) pixels.

    The counterpart of :func:`crop_to`: an architecture whose kernels need more pixels than an image has pads its input
    and crops its output, so that ``reconstruction.shape == input.shape`` for every size.
    """
    missing_height = max(size[0] - images.shape[-2], 0)
    missing_width = max(size[1] - images.shape[-1], 0)
    if missing_height == missing_width == 0:
        return images
    return F.pad(images, (0, missing_width, 0, missing_height), mode="replicate")


def crop_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Keep the upper left ``size`` = (H, W) pixels: undo :func:`pad_to`."""
    return images[..., : size[0], : size[1]]
