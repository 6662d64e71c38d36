"""The brightest spots of a lung: where they lie, which comes first, and what they keep off."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.ct.lungs import whole_scan
from luna16_monai.ct.spots import brightest_spots
from luna16_monai.geometry.grid import Geometry

GEOMETRY = Geometry.from_axes((48, 48, 48), (1, 1, 1), (0, 0, 0), np.eye(3))
# (z, y, x) mm: the first is the brighter one
CENTRES = np.array([[12, 14, 30], [34, 36, 12]])


def chest() -> np.ndarray:
    """Lung with two balls of 6 mm, 100 and -300 HU."""
    z, y, x = np.indices((48, 48, 48))
    hu = np.full((48, 48, 48), -850, np.int16)
    for centre, value in zip(CENTRES, (100, -300), strict=True):
        hu[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= 9] = value
    return hu


def spots(number: int, keep_off_xyz: object = (), keep_off_mm: object = ()) -> np.ndarray:
    return brightest_spots(chest(), GEOMETRY, whole_scan(GEOMETRY), number, keep_off_xyz, keep_off_mm)  # type: ignore[arg-type]


def test_brightest_spots_come_by_their_brightness_as_x_y_z():
    found = spots(2)
    assert found == pytest.approx(CENTRES[:, ::-1].astype(float), abs=1.0)
    assert len(spots(1)) == 1


def test_brightest_spots_keep_off_the_nodules():
    # 6 mm off its surface: the first ball is left out, the second lies 38 mm away
    found = spots(1, [CENTRES[0, ::-1]], [3.0])
    assert found == pytest.approx(CENTRES[1:, ::-1].astype(float), abs=1.0)
