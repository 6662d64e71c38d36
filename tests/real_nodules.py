"""Nodules for banks, drawn as balls in lung, whose voxels are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from luna16_monai.semi_real.bank import RealNodule

LUNG_HU, NODULE_HU = -850, 40
BLUR_MM = np.array([1.0, 0.8, 0.8])


def ball(
    diameter_mm: float = 8.0,
    shape_zyx: Sequence[int] = (17, 33, 33),
    spacing_zyx: Sequence[float] = (2.0, 1.0, 1.0),
    wall_from_x: int | None = None,
    patient: str = "one",
) -> RealNodule:
    """A ball of tissue in the middle of a box of lung; from a column on, there is wall."""
    spacing = np.array(spacing_zyx)
    places = (np.indices(shape_zyx).T - (np.array(shape_zyx) - 1) / 2) * spacing
    inside = (diameter_mm / 2 >= np.sqrt((places**2).sum(-1)).T).astype(np.float32)
    hu = np.where(inside > 0, NODULE_HU, LUNG_HU).astype(float)
    if wall_from_x is not None:
        hu[:, :, wall_from_x:] = NODULE_HU
    hu = np.rint(ndimage.gaussian_filter(hu, BLUR_MM / spacing, mode="nearest")).astype(np.int16)
    return RealNodule(hu, inside, spacing, diameter_mm, patient, BLUR_MM, 5.0, 6.0, 3.0)


def bank_of(patients: int = 12) -> list[RealNodule]:
    """Nodules of some patients: solid ones of 5 to 8 mm."""
    return [replace(ball(5.0 + number % 4), patient=f"patient {number}") for number in range(patients)]
