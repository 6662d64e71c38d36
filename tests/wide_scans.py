"""Small drawn chests and settings of recipe 3, in which one thing is sure and all others are absent."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from luna16_monai.phantom.anatomy import Chest, Frame, draw_chest
from luna16_monai.variety.settings import SHARES, Variety

NOTHING: dict[str, Any] = dict.fromkeys(SHARES, 0.0)
SMALL: dict[str, Any] = {
    "field_mm": (84.0, 90.0), "height_mm": (60.0, 70.0), "pixel_mm": (0.9, 1.0), "slice_mm": (1.5, 2.5),
    "voxels": 400_000, "nodules": (2, 3), "negatives_per_positive": 3.0,
}  # fmt: skip


def small_variety(**changes: Any) -> Variety:
    """Settings of a small scan that holds nothing but nodules, and what is changed."""
    return Variety(**{**SMALL, **NOTHING, **changes})


def small_chest(seed: int = 1, above_mm: float = 0.0) -> Chest:
    """A chest of 40 x 96 x 96 voxels of 2 x 1 x 1 mm, around the middle of the lung or above it; drawn once."""
    chest = _chest(seed, above_mm)
    return replace(chest, image_hu=chest.image_hu.copy())


@cache
def _chest(seed: int, above_mm: float) -> Chest:
    return draw_chest(np.random.default_rng(seed), (40, 96, 96), np.array([2.0, 1.0, 1.0]), Frame(100.0, above_mm, 1.0))
