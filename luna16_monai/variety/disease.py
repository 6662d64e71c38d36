"""Diseases of the lung around the nodules: emphysema, fibrosis, consolidation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luna16_monai.phantom.anatomy import Chest, smooth_field
from luna16_monai.phantom.lesions import ellipsoid_share, random_turn
from luna16_monai.phantom.nodules import Nodule, in_view

Floats = NDArray[np.floating]

_AIR_HU = -975.0
_BRIGHTER_THAN_LUNG_HU = -700.0


def add_emphysema(rng: np.random.Generator, chest: Chest) -> None:
    """Darken the lung in patches, more of them above, and with some bullae at the wall; vessels stay."""
    lung, image = chest.lung, chest.image_hu
    z = (np.arange(lung.shape_zyx[0]) + 0.5)[:, None, None] / lung.shape_zyx[0]
    field = smooth_field(rng, lung.shape_zyx, lung.size_mm, rng.uniform(3.5, 7.0))
    level = rng.uniform(0.3, 1.3) - 0.8 * (z - 0.5)
    share = np.clip((field - level) * 3, 0, 1) * (chest.wall_distance_mm < -1) * (image < _BRIGHTER_THAN_LUNG_HU)
    image += (share * 0.9 * np.minimum(_AIR_HU - image, 0)).astype(np.float32)
    for _ in range(rng.integers(0, 6)):
        point = lung.slide_to_depth(lung.sample(rng, 1, 0.5)[0], rng.uniform(4, 10))
        half_axes = rng.uniform(5, 14) * rng.uniform(0.6, 1, 3)
        turn = random_turn(rng)
        for larger, hu in ((1.0, -780.0), (0.0, _AIR_HU)):
            axes = half_axes + larger
            box, filled = ellipsoid_share(axes, turn, lung.edge_mm, point, lung.shape_zyx, lung.spacing_zyx)
            filled = filled * (chest.wall_distance_mm[box] < -0.7)
            change = hu - image[box]
            # the thin wall of a bulla is brighter than what it was, its inside darker
            image[box] += filled * (np.maximum(change, 0) if larger else np.minimum(change, 0))


def add_fibrosis(rng: np.random.Generator, chest: Chest) -> None:
    """Draw a net of thick septa and small cysts beneath the pleura, most of it below and at the back."""
    lung, image = chest.lung, chest.image_hu
    z, y = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in lung.shape_zyx[:2])
    low_and_back = np.clip(1.3 - z[:, None, None] + 0.6 * (y[None, :, None] - 0.5), 0, 1.3)
    depth = -chest.wall_distance_mm
    beneath = np.clip(1 - depth / rng.uniform(10, 22), 0, 1) * (depth > 0)
    patches = np.clip(smooth_field(rng, lung.shape_zyx, lung.size_mm, 25) + 0.8, 0, 1)
    amount = (low_and_back * beneath * patches).astype(np.float32)
    for grain_mm, width, hu in ((5.0, 0.16, 420.0), (3.0, 0.2, 300.0)):
        net = np.clip(1 - np.abs(smooth_field(rng, lung.shape_zyx, lung.size_mm, grain_mm)) / width, 0, 1)
        image += amount * net * hu * (image < -100)
    image += 130 * amount * (image < -300)
    cysts = np.clip((smooth_field(rng, lung.shape_zyx, lung.size_mm, 3.5) - 1.1) * 4, 0, 1) * (amount > 0.35)
    image += (cysts * np.minimum(-930 - image, 0)).astype(np.float32)


def add_consolidation(rng: np.random.Generator, chest: Chest) -> list[Nodule]:
    """Fill a part of the lung with tissue or haze, ragged at its border; airways in it stay open.

    Returns:
        Where it lies, as one nodule that others keep away from; nothing where it finds no place.
    """
    lung, image = chest.lung, chest.image_hu
    radius = min(rng.uniform(10, 26), 0.22 * float(lung.size_mm.min()))
    for _ in range(20):
        middle = lung.slide_to_depth(lung.sample(rng, 1, 0.5)[0], radius * rng.uniform(0.2, 0.9))
        if lung.distance_at(middle)[0] < 0 and in_view(middle, lung.size_mm, 6):
            break
    else:
        return []
    half_axes, turn = radius * rng.uniform(0.6, 1.0, 3), random_turn(rng)
    box, ball = ellipsoid_share(half_axes * 1.3, turn, 0.5 * radius, middle, lung.shape_zyx, lung.spacing_zyx)
    if min(ball.shape) < 4:
        return []
    ragged = smooth_field(rng, ball.shape, np.array(ball.shape) * lung.spacing_zyx, 6)
    share = np.clip((ball - 0.45 + 0.18 * ragged) * 5, 0, 1) * np.clip(-chest.wall_distance_mm[box], 0, 1)
    dense = rng.uniform(10, 60) if rng.random() < 0.6 else rng.uniform(-550, -250)
    # air in the airways is darker than lung
    share *= image[box] > -940
    image[box] += (share * np.maximum(dense + 25 * ragged - image[box], 0)).astype(np.float32)
    return [Nodule(middle, 2.6 * radius, "consolidation", "isolated", -1, None, None)]
