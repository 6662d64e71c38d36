"""Test-time views: the flips and quarter turns whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def _views(images: Tensor) -> Iterator[Tensor]:
    """The 16 ways to flip and quarter-turn a cutout that keep z upright or upside down."""
    for in_z in (images, images.flip(2)):
        for in_x in (in_z, in_z.flip(4)):
            for turns in range(4):
                yield torch.rot90(in_x, turns, (3, 4))
