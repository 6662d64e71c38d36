"""Candidates by hand: 1 x 0.5 x 0.5 mm voxels, cells of 2 x 4 x 4 voxels."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.ct.lungs import LungMask, whole_scan
from luna16_monai.detection.peaks import Found, candidates_of, decode, suppress
from luna16_monai.geometry.grid import Geometry

GRID = Geometry.from_axes((80, 80, 40), [0.5, 0.5, 1.0], (0, 0, 0), np.eye(3))
STRIDE = (2, 4, 4)


def output():
    maps = np.full((5, 10, 10, 10), 0.0, np.float32)
    maps[0] = -20
    maps[4] = np.log(8.0)
    return maps


def test_decode_gives_position_probability_and_diameter():
    maps = output()
    maps[:, 3, 4, 5] = [0.0, 0.5, -0.25, 0.0, np.log(12.0)]
    maps[0, 1, 1, 1] = 2.0
    found = decode(maps, (10, 0, 20), STRIDE, GRID, cells=2)
    assert found.probability.tolist() == pytest.approx([1 / (1 + np.exp(-2)), 0.5])
    # z = 10 + 0.5 + 3.5 x 2 = 17.5 voxels of 1 mm; y = 1.5 + 3.75 x 4 = 16.5 and x = 20 + 1.5 + 5 x 4 = 41.5 of 0.5 mm
    assert found.points_xyz[1].tolist() == pytest.approx([20.75, 8.25, 17.5])
    assert found.diameter_mm.tolist() == pytest.approx([8.0, 12.0])


def test_decode_bounds_offset_and_diameter():
    maps = output()
    maps[:, 3, 4, 5] = [5.0, 9.0, 0.0, -9.0, 20.0]
    found = decode(maps, (0, 0, 0), STRIDE, GRID, cells=1)
    # two cells at most: z = 0.5 + 5 x 2 = 10.5, x = 1.5 + 3 x 4 = 13.5
    assert found.points_xyz[0].tolist() == pytest.approx([6.75, 8.75, 10.5])
    assert found.diameter_mm[0] == pytest.approx(60)


def row(*xs, diameter=4.0):
    points = np.array([[x, 0, 0] for x in xs], float)
    return Found(points, np.linspace(0.9, 0.1, len(xs)), np.full(len(xs), diameter))


def test_suppress_keeps_the_most_probable_of_near_ones():
    # 3.9 lies within 4 mm of 0, 4 does not, and 7.9 lies within 4 mm of 4
    assert suppress(row(0, 3.9, 4, 7.9, 8.1), 10).points_xyz[:, 0].tolist() == [0, 4, 8.1]
    # what is dropped drops nothing itself: 6 is within 4 mm of 3, but 3 is gone
    assert suppress(row(0, 3, 6), 10).points_xyz[:, 0].tolist() == [0, 6]


def test_suppress_reaches_farther_around_large_ones():
    # 0.35 x 20 = 7 mm
    assert suppress(row(0, 6.9, 7, diameter=20.0), 10).points_xyz[:, 0].tolist() == [0, 7]


def test_suppress_keeps_so_many():
    assert len(suppress(row(0, 10, 20, 30), 2)) == 2
    assert len(suppress(row(), 2)) == 0


def test_candidates_lie_in_the_lungs_and_in_the_scan():
    maps = output()
    for z, y, x in ((2, 2, 2), (2, 2, 7), (9, 7, 7)):
        maps[0, z, y, x] = 3
    voxels = np.ones(GRID.shape_zyx, bool)
    voxels[:, :, 24:40] = False  # x = 29.5 is lung, 9.5 is; (2, 2, 7) lies at x = 29.5
    voxels[:, :, 28:32] = False
    scan = Geometry.from_axes((80, 80, 15), [0.5, 0.5, 1.0], (0, 0, 0), np.eye(3))  # ends below z = 18.5
    found = candidates_of(maps, (0, 0, 0), STRIDE, GRID, scan, LungMask(voxels, GRID), 1)
    assert found.points_xyz.tolist() == [[4.75, 4.75, 4.5]]
    assert len(candidates_of(maps, (0, 0, 0), STRIDE, GRID, GRID, whole_scan(GRID), 3)) == 3


def test_decode_gives_so_many_of_the_cells_inside():
    output = np.zeros((5, 1, 1, 6))
    output[0, 0, 0] = [3, 5, 4, 2, 1, 0]
    geometry = Geometry.from_axes((1, 1, 6), (1, 1, 1), (0, 0, 0), np.eye(3))
    # the two hottest cells lie outside; of the other four the two hottest are at x = 0 and x = 3
    found = decode(output, (0, 0, 0), (1, 1, 1), geometry, 2, lambda points: ~np.isin(points[:, 0], (1, 2)))
    assert found.points_xyz[:, 0].tolist() == [0, 3]
    assert len(decode(output, (0, 0, 0), (1, 1, 1), geometry, 2, lambda points: points[:, 0] > 4)) == 1
    assert len(decode(output, (0, 0, 0), (1, 1, 1), geometry, 2, lambda points: points[:, 0] > 9)) == 0
