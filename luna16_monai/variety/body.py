"""What lies around the lung: liver; and in a wide field of view skin, air, the table, an arm at the side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luna16_monai.phantom.anatomy import Chest
from luna16_monai.variety.settings import Variety

Floats = NDArray[np.floating]

_OPEN_AIR_HU = -1000.0
_BONE_HU, _LIVER_HU = 110, 60.0
_BLUNT = 2.4
"""As the lung's outline: 2 is an ellipse."""


def add_surroundings(rng: np.random.Generator, chest: Chest, settings: Variety) -> None:
    """End the body at a skin some way outside the lung, and put a table and an arm beside it, as the settings ask for.

    Towards the other lung the body goes on to the edge of the volume.
    """
    lung, image = chest.lung, chest.image_hu
    y, x = ((np.arange(n) + 0.5) * s for n, s in zip(lung.shape_zyx[1:], lung.spacing_zyx[1:], strict=True))
    medial = (x - lung.middle_zyx[2]) * lung.side - 0.45 * lung.half_axes_zyx[2]
    skin_mm = rng.uniform(12, 20) + 3 * np.maximum(medial, 0)
    # as wide above the lung and below it; the heart lies inside
    from_axis = [np.abs(v - m) / a for v, m, a in zip((y, x), lung.middle_zyx[1:], lung.half_axes_zyx[1:], strict=True)]
    norm = (from_axis[0][:, None] ** _BLUNT + from_axis[1] ** _BLUNT) ** (1 / _BLUNT)
    beyond = (norm - 1) * lung.half_axes_zyx[1:].mean() - skin_mm
    # no lung is cut, however rough its outline
    beyond = np.minimum(beyond, chest.wall_distance_mm.min(0) - 4)
    beyond = np.broadcast_to(beyond, image.shape)
    air = np.clip(beyond / lung.edge_mm + 0.5, 0, 1)
    fat = (beyond > -rng.uniform(3, 8)) & (beyond < -1.5)
    image[fat] = np.minimum(image[fat], -95)
    if not (air > 0.5).any():
        return
    outside = np.full(image.shape, _OPEN_AIR_HU, np.float32)
    if rng.random() < settings.table:
        _add_table(rng, outside, y, air)
    if rng.random() < settings.arms:
        _add_arm(rng, outside, y, x, lung.side)
    image += (air * (outside - image)).astype(np.float32)


def _add_table(rng: np.random.Generator, outside: Floats, y_mm: Floats, air: Floats) -> None:
    """A board of foam between two thin shells, under the back."""
    behind = np.flatnonzero((air < 0.5).any((0, 2)))[-1]
    start = min(y_mm[behind] + rng.uniform(1, 6), y_mm[-1] - 3)
    thick = rng.uniform(12, 30)
    board = (y_mm > start) & (y_mm < start + thick)
    shell = ((y_mm > start) & (y_mm < start + 1.5)) | ((y_mm > start + thick - 1.5) & (y_mm < start + thick))
    outside[:, board] = rng.uniform(-960, -880)
    outside[:, shell] = rng.uniform(-400, 150)


def _add_arm(rng: np.random.Generator, outside: Floats, y_mm: Floats, x_mm: Floats, side: int) -> None:
    """A round arm with its bone, most of it out of view at the side."""
    centre_x = x_mm[0] - rng.uniform(5, 25) if side > 0 else x_mm[-1] + rng.uniform(5, 25)
    centre_y, radius = rng.uniform(0.25, 0.8) * y_mm[-1], rng.uniform(30, 45)
    distance = np.hypot(y_mm[:, None] - centre_y, x_mm - centre_x)
    outside[:, distance < radius] = -95
    outside[:, distance < radius - 4] = 50
    outside[:, distance < 11] = 800
    outside[:, distance < 7] = 100


def soften_below_diaphragm(chest: Chest) -> None:
    """Draw liver instead of bone below the dome of the diaphragm, where ribs have no place."""
    lung = chest.lung
    below = (lung.to_voxels(lung.diaphragm_mm) < -1) & (chest.wall_distance_mm > 2)
    chest.image_hu[below & (chest.image_hu > _BONE_HU)] = _LIVER_HU
