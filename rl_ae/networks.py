"""Networks: a convolutional trunk, its mirror, and the projection between trunk and latent."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rl_ae.latents import DeterministicLatent
from rl_ae.pixels import crop_to, pad_to


def conv_output_size(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Positions a convolution leaves along one side of ``size`` pixels."""
    return (size + 2 * padding - kernel_size) // stride + 1


def minimum_input_size(kernel_size: int, strides: Sequence[int], padding: int) -> int:
    """Fewest pixels along a side from which every convolution of a stack still gets one position."""
    size = 1
    for stride in reversed(strides):
        size = max((size - 1) * stride + kernel_size - 2 * padding, 1)
    return size


class ConvTrunk(nn.Module):
    """Convolutions with ReLU, flattened: (B, C, H, W) in [0, 1] → (B, ``out_features``).

    Images below the stack's native minimum are padded with :func:`~rl_ae.pixels.pad_to`.
    The default configuration is the trunk of SAC-AE (arXiv 1910.01741, Appendix B.1).

    Args:
        observation_shape: (C, H, W).
        filters: Output channels, one number a layer.
        kernel_size: Side of every kernel.
        strides: Stride of each layer.
        padding: Zeros added on every side by each layer.
        centre: Subtracted from the images.
    """

    def __init__(
        self,
        observation_shape: tuple[int, int, int],
        filters: Sequence[int],
        kernel_size: int,
        strides: Sequence[int],
        padding: int,
        centre: float,
    ) -> None:
        super().__init__()
        self.centre = centre
        channels, height, width = observation_shape
        smallest = minimum_input_size(kernel_size, strides, padding)
        self.input_size = (max(height, smallest), max(width, smallest))
        self.kernel_size, self.strides, self.padding = kernel_size, tuple(strides), padding

        #: (channels, height, width) before the first layer and after each one.
        self.shapes = [(channels, *self.input_size)]
        layers: list[nn.Module] = []
        for out_channels, stride in zip(filters, strides, strict=True):
            in_channels, *sides = self.shapes[-1]
            layers += [nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding), nn.ReLU()]
            height, width = (conv_output_size(side, kernel_size, stride, padding) for side in sides)
            self.shapes.append((out_channels, height, width))
        self.layers = nn.Sequential(*layers)
        self.out_features = math.prod(self.shapes[-1])

    def forward(self, images: Tensor) -> Tensor:
        padded = pad_to(images, self.input_size) - self.centre
        # channels_last is the layout in which CPU and tensor-core convolutions run fastest
        features: Tensor = self.layers(padded.contiguous(memory_format=torch.channels_last))
        return features.flatten(start_dim=1)  # (B, F·h·w)


class ConvMirror(nn.Module):
    """The mirror of a trunk: (B, D) → (B, C, H, W), linear at the end.

    A linear layer to the trunk's last feature map, then one transposed convolution for each of its convolutions, whose
    output padding is computed so that every layer returns exactly the size its counterpart received.

    Args:
        trunk: The trunk to mirror; only its shapes are read.
        latent_dim: D.
        observation_shape: (C, H, W), to which the output is cropped where the trunk padded its input.
        centre: Added to the output. SAC-AE's decoder aims at images shifted to [-0.5, 0.5], ours at [0, 1].
    """

    def __init__(
        self, trunk: ConvTrunk, latent_dim: int, observation_shape: tuple[int, int, int], centre: float
    ) -> None:
        super().__init__()
        self.centre = centre
        self.feature_shape = trunk.shapes[-1]
        self.output_size = observation_shape[1:]
        self.project = nn.Sequential(nn.Linear(latent_dim, trunk.out_features), nn.ReLU())
        layers: list[nn.Module] = []
        for index in reversed(range(len(trunk.strides))):
            (out_channels, *target_sides), (in_channels, *sides) = trunk.shapes[index : index + 2]
            stride = trunk.strides[index]
            output_padding = [
                target - ((side - 1) * stride - 2 * trunk.padding + trunk.kernel_size)
                for target, side in zip(target_sides, sides, strict=True)
            ]
            layers += [
                nn.ConvTranspose2d(
                    in_channels,
                    out_channels,
                    trunk.kernel_size,
                    stride,
                    trunk.padding,
                    output_padding=(output_padding[0], output_padding[1]),
                ),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, z: Tensor) -> Tensor:
        features: Tensor = self.project(z).unflatten(1, self.feature_shape)  # (B, F, h, w)
        images: Tensor = self.layers(features.contiguous(memory_format=torch.channels_last))
        return crop_to(images, self.output_size) + self.centre


class TanhProjection(nn.Module):
    """Linear → LayerNorm → tanh: trunk features (B, F) to a latent (B, D) in [-1, 1] (SAC-AE, Appendix B.1)."""

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, latent_dim), nn.LayerNorm(latent_dim), nn.Tanh())

    def forward(self, features: Tensor) -> DeterministicLatent:
        return DeterministicLatent(self.layers(features))


def initialize(module: nn.Module) -> None:
    """SAC-AE's initialisation of one layer, to be passed to ``Module.apply``.

    Linear layers are orthogonal; convolutions, transposed ones included, are delta-orthogonal (arXiv 1806.05393):
    zero but for an orthogonal matrix with ReLU's gain at the centre of the kernel. Biases are zero.
    """
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.zeros_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        row, column = (side // 2 for side in module.kernel_size)
        with torch.no_grad():
            nn.init.orthogonal_(module.weight[:, :, row, column], gain=nn.init.calculate_gain("relu"))
