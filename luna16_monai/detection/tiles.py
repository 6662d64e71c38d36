"""The network over a whole box of a CT, with bounded memory and the result of the whole box.

The first level takes nearly all of the memory and looks only a few voxels far: it runs in tiles with a halo, and the
coarser levels on all of its features at once. MONAI's ``SlidingWindowInferer`` blends windows that lack their
surroundings, and differs from the whole by up to 0.4 in the heat.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor

from luna16_monai.machine.progress import counted
from luna16_monai.networks.nodule_detector import NoduleDetector


class TiledInferer(Inferer):
    """Apply a detector to a volume; the result is that of the volume at once, up to rounding.

    Args:
        tile_zyx: voxels that the first level is given at once, without its halo; multiples of 16.
        halo_zyx: voxels around a tile; at least what the first level sees, and multiples of its stride.

    Raises:
        ValueError: a tile or a halo that is no such multiple.
    """

    def __init__(self, tile_zyx: Sequence[int] = (64, 256, 256), halo_zyx: Sequence[int] = (4, 4, 4)) -> None:
        self.tile, self.halo = np.array(tile_zyx), np.array(halo_zyx)
        if (self.tile % 16).any() or (self.tile < 16).any() or (self.halo % 4).any() or (self.halo < 4).any():
            raise ValueError(
                f"tiles of {self.tile.tolist()} voxels with a halo of {self.halo.tolist()}: give multiples of 16, and "
                "for the halo multiples of 4 from 4 on"
            )

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output for (batch, 1, z, y, x) of any number type; sides multiples of the total stride."""
        net: NoduleDetector = network
        shape, stride = np.array(inputs.shape[2:]), np.array(net.stem_stride_zyx)
        first: Tensor | None = None
        place: Any
        corners = list(itertools.product(*(range(0, n, t) for n, t in zip(shape, self.tile, strict=True))))
        for corner in counted(corners, "search", "tile"):
            low = np.array(corner)
            high = np.minimum(low + self.tile, shape)
            wide_low, wide_high = np.maximum(low - self.halo, 0), np.minimum(high + self.halo, shape)
            place = (..., *map(slice, wide_low, wide_high))
            part = net.fine(inputs[place])
            inner: Any = (..., *map(slice, (low - wide_low) // stride, (high - wide_low) // stride))
            if first is None:
                first = part.new_empty((*part.shape[:2], *(shape // stride).tolist()))
                if part.is_contiguous(memory_format=torch.channels_last_3d):
                    first = first.contiguous(memory_format=torch.channels_last_3d)
            place = (..., *map(slice, low // stride, high // stride))
            first[place] = part[inner]
        if first is None:
            raise ValueError(f"a volume of {shape.tolist()} voxels has no tile: give one that is not empty")
        return net.coarse(first)
