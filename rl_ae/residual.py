"""Residual blocks: convolutions whose output is added to what they read."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcitation(nn.Module):
    """Weigh the channels of maps (B, C, h, w) by what all positions say together (arXiv 1709.01507).

    Args:
        channels: C ≥ 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 4)  # as in NVAE (arXiv 2007.03898)
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, maps: Tensor) -> Tensor:
        weights: Tensor = self.layers(maps.mean(dim=(2, 3)))  # (B, C)
        return maps * weights[:, :, None, None]


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with squeeze-and-excitation beside a shortcut: (B, C, h, w) → (B, C', ⌈h/s⌉, ⌈w/s⌉).

    ``shortcut(x) + gate · branch(x)``, the branch normalised first (arXiv 1603.05027). GroupNorm, because an image is
    to be encoded the same whatever its batch mates are. The gate is learned and begins at 1: at 0, as in some networks
    of this kind, the branch's weights would have no gradient.

    Args:
        in_channels: C.
        out_channels: C'.
        stride: s, 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *normalized(in_channels),
            nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1),
            *normalized(out_channels),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            SqueezeExcitation(out_channels),
        )
        self.gate = nn.Parameter(torch.ones(()))
        self.stride = stride
        self.project = nn.Conv2d(in_channels, out_channels, kernel_size=1) if in_channels != out_channels else None

    def forward(self, maps: Tensor) -> Tensor:
        # averages of the positions that there are: at an odd border there is one of two
        shortcut = maps if self.stride == 1 else F.avg_pool2d(maps, self.stride, ceil_mode=True)
        if self.project is not None:
            shortcut = self.project(shortcut)
        out: Tensor = shortcut + self.gate * self.branch(maps)
        return out


def normalized(channels: int) -> list[nn.Module]:
    """GroupNorm (arXiv 1803.08494) and SiLU.

    Over as many groups as divide the channels, 8 at most, of 4 channels at least: on a map of one position, groups of
    a single channel would be all zero.
    """
    groups = max((count for count in range(2, 9) if channels % count == 0 and channels // count >= 4), default=1)
    return [nn.GroupNorm(groups, channels), nn.SiLU()]
