"""The detector: a small fully convolutional 3-D network that marks the middle of each nodule.

CenterNet's output (Zhou et al., 2019, arXiv 1904.07850) in 3-D, on a pyramid: stem, two coarser levels, and up again to
every fourth voxel. No instance or group norm, whose statistics would depend on the tile. Rejected: a stem that keeps
the z resolution, which has twice the cost and scored the same in an equal time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn import functional as F

LOW_HU, HIGH_HU = -1000.0, 400.0
NECK = 32
OUTPUTS = 5
TYPICAL_DIAMETER_MM = 8.0


class NoduleDetector(nn.Module):
    """Mark nodules in CT voxels in HU: heat, offset and diameter for each cell of (stride) voxels.

    With the default arguments it has 742,629 parameters.

    Args:
        stem_stride_zyx: voxels that a cell of the first level has.
        channels: width of the levels; each is half as fine as the one before. The output is on the second.
        prior: probability of a nodule that a new network gives everywhere.

    Attributes:
        stride_zyx: voxels of an output cell, on each axis.
        total_stride_zyx: voxels of a cell of the coarsest level: sides have to be multiples of it.
        bfloat16_blocks: (True,) to train in bfloat16 on a CPU, see ``networks.precision``; scoring is float32.

    Raises:
        ValueError: fewer than two levels, or a stem stride other than 1 or 2.
    """

    def __init__(
        self,
        stem_stride_zyx: Sequence[int] = (2, 2, 2),
        channels: Sequence[int] = (16, 48, 96),
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or not set(stem_stride_zyx) <= {1, 2}:
            raise ValueError(
                f"a detector of {len(channels)} levels and stem stride {tuple(stem_stride_zyx)}: give two channels or "
                "more, and strides of 1 or 2"
            )
        # TorchScript reads no names of the module
        self.window_hu: tuple[float, float] = (LOW_HU, HIGH_HU)
        self.stem_stride_zyx = tuple(int(s) for s in stem_stride_zyx)
        self.stride_zyx = tuple(2 * s for s in self.stem_stride_zyx)
        self.bfloat16_blocks: tuple[bool, ...] = ()
        self.total_stride_zyx = tuple(s * 2 ** (len(channels) - 1) for s in self.stem_stride_zyx)
        # even kernels where there is a stride: the middle of a cell then stays the middle of its voxels
        kernel = [3 if s == 1 else 4 for s in self.stem_stride_zyx]
        self.stem = nn.Sequential(
            _convolution(1, channels[0], kernel, self.stem_stride_zyx), _convolution(channels[0], channels[0])
        )
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList([nn.Sequential(_convolution(a, b, 2, 2), _Residual(b)) for a, b in pairs])
        self.side = nn.ModuleList([nn.Conv3d(b, a, 1, bias=False) for a, b in pairs[:0:-1]])
        self.up = nn.ModuleList([_convolution(a, a) for a, _ in pairs[:0:-1]])
        self.neck = _convolution(channels[1], NECK, 1)
        self.head = nn.Conv3d(NECK, OUTPUTS, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=0.01)
        start = [-math.log((1 - prior) / prior), 0.0, 0.0, 0.0, math.log(TYPICAL_DIAMETER_MM)]
        self.head.bias = nn.Parameter(torch.tensor(start))

    def fine(self, image: Tensor) -> Tensor:
        """Return the first level of (batch, 1, z, y, x) HU; it looks no farther than 4 voxels."""
        return self.stem(self.scaled(image))

    def scaled(self, image: Tensor) -> Tensor:
        """Return HU clipped to the window, as float32 from -1 to 1."""
        low, high = self.window_hu
        # in place: no cache holds the copies of a tile
        return image.float().clamp(low, high).sub_((low + high) / 2).div_((high - low) / 2)

    def coarse(self, first: Tensor) -> Tensor:
        """Return the output from the first level."""
        return self.head(self.features(first))

    def features(self, first: Tensor) -> Tensor:
        """Return what the head is given, from the first level."""
        kept = []
        x = first
        for down in self.down:
            x = down(x)
            kept.append(x)
        x = kept.pop()
        for side, up in zip(self.side, self.up, strict=True):
            x = up(F.interpolate(side(x), scale_factor=2.0, mode="nearest") + kept.pop())
        return self.neck(x)

    def forward(self, image: Tensor) -> Tensor:
        """Score a batch.

        Args:
            image: (batch, 1, z, y, x), HU; sides are multiples of ``total_stride_zyx``.

        Returns:
            (batch, 5, z, y, x) of the output's cells: the logit of a nodule's middle; how far it lies from the cell's
            own along z, y and x, in cells; the logarithm of the diameter in mm.
        """
        if not torch.jit.is_scripting():  # TorchScript takes no autocast that may be off
            low = any(self.bfloat16_blocks) and self.training and image.is_cpu
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                return self.coarse(self.fine(image))
        return self.coarse(self.fine(image))

    def blocks(self) -> list[nn.Module]:
        """Return the network as the one block that it counts as where blocks are trained in bfloat16."""
        return [self]

    def example_image(self) -> Tensor:
        """Return a batch of four crops of air, of the size that the bundle trains on."""
        return torch.full((4, 1, 32, 64, 64), LOW_HU)


class _Residual(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = Convolution(3, width, width, kernel_size=3, adn_ordering="N", norm="BATCH", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (batch, width, z, y, x)."""
        return F.relu(x + self.second(self.first(x)))


def _convolution(
    width_in: int, width: int, kernel: int | Sequence[int] = 3, stride: int | Sequence[int] = 1
) -> Convolution:
    """Return a convolution without bias, batch norm, ReLU; same padding for odd kernels, half of it for even ones."""
    sizes = [kernel] * 3 if isinstance(kernel, int) else list(kernel)
    return Convolution(
        3, width_in, width, strides=stride, kernel_size=kernel, padding=tuple((k - 1) // 2 for k in sizes),
        adn_ordering="NA", act=("RELU", {"inplace": True}), norm="BATCH", bias=False,
    )  # fmt: skip
