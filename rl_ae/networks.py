"""Networks: trunks, their mirrors, and the heads between trunk and latent."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from rl_ae.latents import DeterministicLatent, GaussianLatent
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
    """Convolutions with ReLU: (B, C, H, W) in [0, 1] → maps (B, F, h, w), ``out_features`` numbers each.

    Images below the stack's native minimum are padded with :func:`~rl_ae.pixels.pad_to`.
    The default configuration is the trunk of SAC-AE (arXiv 1910.01741, Appendix B.1).

    Args:
        observation_shape: (C, H, W).
        filters: Output channels, one number a layer.
        kernel_size: Side of every kernel.
        strides: Stride of each layer.
        padding: Zeros added on every side by each layer.
        centre: Subtracted from the images.
        normalize: Put a :func:`group_norm` before every ReLU.
    """

    def __init__(
        self,
        observation_shape: tuple[int, int, int],
        filters: Sequence[int],
        kernel_size: int,
        strides: Sequence[int],
        padding: int,
        centre: float,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.centre, self.normalize = centre, normalize
        channels, height, width = observation_shape
        smallest = minimum_input_size(kernel_size, strides, padding)
        self.input_size = (max(height, smallest), max(width, smallest))
        self.kernel_size, self.strides, self.padding = kernel_size, tuple(strides), padding

        #: (channels, height, width) before the first layer and after each one.
        self.shapes = [(channels, *self.input_size)]
        layers: list[nn.Module] = []
        for out_channels, stride in zip(filters, strides, strict=True):
            in_channels, *sides = self.shapes[-1]
            layers += [nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)]
            layers += [*group_norm(out_channels, normalize), nn.ReLU(inplace=True)]
            height, width = (conv_output_size(side, kernel_size, stride, padding) for side in sides)
            self.shapes.append((out_channels, height, width))
        self.layers = nn.Sequential(*layers)
        self.out_features = math.prod(self.shapes[-1])

    def forward(self, images: Tensor) -> Tensor:
        padded = pad_to(images, self.input_size)
        if self.centre != 0.0:
            padded = padded - self.centre
        # channels_last is the layout in which CPU and tensor-core convolutions run fastest
        maps: Tensor = self.layers(padded.contiguous(memory_format=torch.channels_last))
        return maps


class _TransposedConvolution(torch.autograd.Function):
    """``conv_transpose2d`` whose weight's gradient is taken as that of the convolution C it transposes.

    The two are equal, because ⟨Cᵀx, g⟩ = ⟨x, Cg⟩: input and gradient change places. On a CPU torch's own way takes two
    to three times as long.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        stride: list[int],
        padding: list[int],
        output_padding: list[int],
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.stride, ctx.padding, ctx.output_padding = stride, padding, output_padding
        return F.conv_transpose2d(inputs, weight, bias, stride, padding, output_padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        # of input, weight and bias; a bias's size would matter to the last alone
        ours = (None, ctx.stride, ctx.padding, [1, 1], True, ctx.output_padding, 1, [needs_input, False, False])
        convolution = (None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, [False, needs_weight, False])
        backward = torch.ops.aten.convolution_backward
        return (
            backward(gradient, inputs, weight, *ours)[0],
            backward(inputs, gradient, weight, *convolution)[1],
            gradient.sum(dim=(0, 2, 3)) if needs_bias else None,
            None,
            None,
            None,
        )


class TransposedConv(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with the same parameters and the same map, and a faster gradient on a CPU.

    Attributes:
        shift: Added to the bias.
    """

    shift = 0.0

    def forward(self, inputs: Tensor, output_size: list[int] | None = None) -> Tensor:
        if inputs.device.type != "cpu" or output_size is not None:
            return super().forward(inputs, output_size) + self.shift
        assert self.bias is not None
        tensors = [inputs, self.weight, self.bias + self.shift]
        if torch.is_autocast_enabled("cpu"):  # which does not look into a function of ours
            tensors = [tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors]
        geometry = (list(sides) for sides in (self.stride, self.padding, self.output_padding))
        images: Tensor = _TransposedConvolution.apply(*tensors, *geometry)  # type: ignore[no-untyped-call]
        return images


class ConvMirror(nn.Module):
    """The mirror of a trunk: the trunk's last feature map → (B, C, H, W), linear at the end.

    One transposed convolution for each of the trunk's convolutions, whose output padding is computed so that every
    layer returns exactly the size its counterpart received.

    Args:
        trunk: The trunk to mirror; only its shapes are read.
        project: From latents (B, D) to the trunk's last maps, or to as many numbers.
        observation_shape: (C, H, W), to which the output is cropped where the trunk padded its input.
        centre: Added to the output. SAC-AE's decoder aims at images shifted to [-0.5, 0.5], ours at [0, 1].
        channels: Maps to return instead of C, for what reads more of an image than its mean.
    """

    def __init__(
        self,
        trunk: ConvTrunk,
        project: nn.Module,
        observation_shape: tuple[int, int, int],
        centre: float,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        self.feature_shape = trunk.shapes[-1]
        self.output_size = observation_shape[1:]
        self.project = project
        layers: list[nn.Module] = []
        for index in reversed(range(len(trunk.strides))):
            (out_channels, *target_sides), (in_channels, *sides) = trunk.shapes[index : index + 2]
            stride = trunk.strides[index]
            if index == 0 and channels is not None:
                out_channels = channels
            output_padding = [
                target - ((side - 1) * stride - 2 * trunk.padding + trunk.kernel_size)
                for target, side in zip(target_sides, sides, strict=True)
            ]
            conv = TransposedConv(
                in_channels,
                out_channels,
                trunk.kernel_size,
                stride,
                trunk.padding,
                output_padding=(output_padding[0], output_padding[1]),
            )
            layers.append(conv)
            if index > 0:
                layers += [*group_norm(out_channels, trunk.normalize), nn.ReLU(inplace=True)]
            else:
                conv.shift = centre  # in the bias, which costs nothing
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        features: Tensor = self.project(z).reshape(-1, *self.feature_shape)  # (B, F, h, w)
        images: Tensor = self.layers(features.contiguous(memory_format=torch.channels_last))
        return crop_to(images, self.output_size)


class WorldModelsDecoder(nn.Module):
    """The decoder of World Models (arXiv 1803.10122): (B, D) → (B, C, H, W), linear at the end.

    A linear layer to 1,024 channels on a grid of h×w positions, then transposed convolutions of kernels 5, 5, 6, 6 and
    stride 2. One position becomes 64 pixels and each further one adds 16: the grid is the smallest that covers the
    image, and the output is cropped to it.

    Args:
        widths: D, and the widths of linear layers with ReLU behind it.
        observation_shape: (C, H, W).
    """

    def __init__(self, widths: Sequence[int], observation_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *self.output_size = observation_shape
        self.feature_shape = (1024, *(1 + max(math.ceil((side - 64) / 16), 0) for side in self.output_size))
        self.project = nn.Sequential(mlp(widths), nn.Linear(widths[-1], math.prod(self.feature_shape)))
        self.layers = nn.Sequential(
            TransposedConv(1024, 128, 5, stride=2),
            nn.ReLU(inplace=True),
            TransposedConv(128, 64, 5, stride=2),
            nn.ReLU(inplace=True),
            TransposedConv(64, 32, 6, stride=2),
            nn.ReLU(inplace=True),
            TransposedConv(32, channels, 6, stride=2),
        )

    def forward(self, z: Tensor) -> Tensor:
        features: Tensor = self.project(z).reshape(-1, *self.feature_shape)  # (B, 1024, h, w)
        images: Tensor = self.layers(features.contiguous(memory_format=torch.channels_last))
        return crop_to(images, (self.output_size[0], self.output_size[1]))


class VectorTrunk(nn.Module):
    """Linear layers with ReLU: vectors (B, N) → (B, ``out_features``).

    Args:
        input_dim: N.
        hidden: Widths of the layers.
    """

    def __init__(self, input_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.widths = (input_dim, *hidden)
        self.layers = mlp(self.widths)
        self.out_features = self.widths[-1]

    def forward(self, vectors: Tensor) -> Tensor:
        features: Tensor = self.layers(vectors)
        return features


class VectorMirror(nn.Module):
    """The mirror of a vector trunk: (B, D) → (B, N), linear at the end.

    Args:
        trunk: The trunk to mirror; only its widths are read.
        latent_dim: D.
    """

    def __init__(self, trunk: VectorTrunk, latent_dim: int) -> None:
        super().__init__()
        input_dim, *hidden = trunk.widths
        self.layers = nn.Sequential(mlp((latent_dim, *reversed(hidden))), nn.Linear(hidden[0], input_dim))

    def forward(self, z: Tensor) -> Tensor:
        vectors: Tensor = self.layers(z)
        return vectors


class FlattenedLinear(nn.Linear):
    """A linear layer on flattened features: (B, F) or maps (B, C, h, w) with F = C·h·w numbers → (B, D).

    On batches of maps it is computed as the convolution it is, whose kernel covers them, because their channels are
    last in memory and flattening would copy them into another order. Of few maps the copy is cheaper than the kernel's.
    """

    #: From how many maps on.
    LARGE_BATCH = 32

    def forward(self, features: Tensor) -> Tensor:
        # an exported or compiled graph is to hold for batches of any size
        if features.ndim == 2 or torch.compiler.is_compiling() or len(features) < self.LARGE_BATCH:
            return super().forward(features.flatten(start_dim=1))
        return F.conv2d(features, self.weight.view(-1, *features.shape[1:]), self.bias).flatten(start_dim=1)


class TanhProjection(nn.Module):
    """Linear → LayerNorm → tanh: trunk features to a latent (B, D) in [-1, 1] (SAC-AE, Appendix B.1)."""

    def __init__(self, in_features: int, latent_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(FlattenedLinear(in_features, latent_dim), nn.LayerNorm(latent_dim), nn.Tanh())

    def forward(self, features: Tensor) -> DeterministicLatent:
        return DeterministicLatent(self.layers(features))


class GaussianHead(nn.Module):
    """Trunk features, (B, F) or maps, to the mean and log-variance (B, D) of a Gaussian.

    The log-variance is bounded smoothly to (-10, 10), ``10 tanh(x / 10)``, so that its exponential is finite in every
    precision and its gradient is never cut off (the code of NVAE, arXiv 2007.03898, does the same with 5).

    Args:
        in_features: F.
        latent_dim: D.
        hidden: Widths of linear layers with ReLU in between.
    """

    LOGVAR_BOUND = 10.0

    def __init__(self, in_features: int, latent_dim: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        widths = (in_features, *hidden)
        self.layers = mlp(widths)
        self.mu = nn.Linear(widths[-1], latent_dim)
        self.logvar = nn.Linear(widths[-1], latent_dim)

    def forward(self, features: Tensor) -> GaussianLatent:
        hidden = self.layers(features.flatten(start_dim=1))
        # losses exponentiate and subtract: what autocast rounded is not rounded further
        mu, logvar = (layer(hidden).to(self.mu.weight.dtype) for layer in (self.mu, self.logvar))
        return GaussianLatent(mu, self.LOGVAR_BOUND * torch.tanh(logvar / self.LOGVAR_BOUND))


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """A linear layer and a ReLU between every two widths; nothing for a single one."""
    layers = [(nn.Linear(inputs, outputs), nn.ReLU()) for inputs, outputs in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain.from_iterable(layers))


def group_norm(channels: int, normalize: bool) -> list[nn.Module]:
    """GroupNorm over at most 8 groups (arXiv 1803.08494), or nothing.

    As many parameters as a BatchNorm has, but an image is encoded the same whatever its batch mates are.
    """
    return [nn.GroupNorm(math.gcd(channels, 8), channels)] if normalize else []


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


def initialize_kaiming(module: nn.Module) -> None:
    """Uniform Kaiming weights with ReLU's gain and zero biases, for ``Module.apply`` (arXiv 1502.01852)."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def initialize_xavier(module: nn.Module) -> None:
    """Normal Xavier weights and zero biases, for ``Module.apply`` (Glorot & Bengio, 2010)."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
