"""Bright spots in the lungs: where they are found, in which order, and what they keep off."""

from __future__ import annotations

import numpy as np

from luna16_monai.ct.lungs import whole_scan
from luna16_monai.ct.spots import brightest_spots
from luna16_monai.geometry.grid import Geometry

SHAPE_ZYX = (40, 60, 80)
GEOMETRY = Geometry.from_axes(SHAPE_ZYX[::-1], [1.25] * 3, (-50.0, 10.0, 100.0), np.eye(3))


def scan(*blobs: tuple[tuple[int, int, int], float]) -> np.ndarray:
    """Lung of -850 HU with balls of 4 mm radius: voxel (z, y, x) of the middle, and HU."""
    hu = np.full(SHAPE_ZYX, -850, np.int16)
    for middle, value in blobs:
        mm = np.linalg.norm((np.indices(SHAPE_ZYX).T - np.array(middle)) * 1.25, axis=-1).T
        hu[mm < 4] = value
    return hu


def found(hu: np.ndarray, number: int, keep_off_xyz=(), keep_off_mm=()) -> list[list[float]]:
    lungs = whole_scan(GEOMETRY)
    return brightest_spots(hu, GEOMETRY, lungs, number, keep_off_xyz, keep_off_mm).tolist()


# voxel (z, y, x) lies at x = -50 + 1.25 x, y = 10 + 1.25 y, z = 100 + 1.25 z
BRIGHT, MIDDLE, FAINT = ((10, 20, 20), 100), ((20, 40, 60), -100), ((30, 20, 40), -400)
BRIGHT_XYZ, MIDDLE_XYZ, FAINT_XYZ = [-25.0, 35.0, 112.5], [25.0, 60.0, 125.0], [0.0, 35.0, 137.5]


def test_spots_are_found_in_world_mm_the_brightest_first():
    assert found(scan(FAINT, BRIGHT, MIDDLE), 3) == [BRIGHT_XYZ, MIDDLE_XYZ, FAINT_XYZ]
    assert found(scan(FAINT, BRIGHT, MIDDLE), 2) == [BRIGHT_XYZ, MIDDLE_XYZ]


def test_spots_keep_6_mm_off_a_nodule():
    # the brightest lies 9 mm from the nodule's middle: within 4 + 6 mm, not within 2 + 6 mm
    beside = [BRIGHT_XYZ[0] + 9, *BRIGHT_XYZ[1:]]
    assert found(scan(BRIGHT, MIDDLE), 2, [beside], [4.0])[0] == MIDDLE_XYZ
    assert found(scan(BRIGHT, MIDDLE), 2, [beside], [2.0]) == [BRIGHT_XYZ, MIDDLE_XYZ]


def test_spots_are_8_mm_apart():
    spots = np.array(found(scan(BRIGHT, ((10, 20, 25), 90), MIDDLE), 20))
    apart = np.linalg.norm(spots[:, None] - spots, axis=-1) + np.eye(len(spots)) * 99
    assert len(spots) >= 2
    assert apart.min() >= 8


def test_even_lung_has_none():
    assert found(scan(), 5) == []
