"""Cutouts around points, inside a volume and over its edge."""

from __future__ import annotations

import numpy as np
import pytest
from drawn_scans import raw_cutout
from hypothesis import given
from hypothesis import strategies as st

from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.volume import AIR_HU, Volume

# 10 x 12 x 14 voxels of 1 mm (z, y, x), the first one's centre at (100, 200, 300) mm.
GEOMETRY = Geometry.from_axes((14, 12, 10), (1, 1, 1), (100, 200, 300), np.eye(3))


VOXELS = np.arange(10 * 12 * 14, dtype=np.int16).reshape(10, 12, 14)


VOLUME = Volume(VOXELS, GEOMETRY, GEOMETRY)


def test_cutout_puts_the_nearest_voxel_at_half_the_shape():
    # (104.4, 206.4, 302.6) mm is index (2.6, 6.4, 4.4): nearest (3, 6, 4)
    box = VOLUME.cutout((104.4, 206.4, 302.6), (4, 6, 2))
    assert box.shape == (4, 6, 2)
    assert box[2, 3, 1] == VOXELS[3, 6, 4]
    np.testing.assert_array_equal(box, VOXELS[1:5, 3:9, 3:5])


def test_cutout_of_an_odd_shape_is_centred():
    np.testing.assert_array_equal(VOLUME.cutout((104, 206, 303), (3, 3, 3)), VOXELS[2:5, 5:8, 3:6])
    assert VOLUME.cutout((104, 206, 303), (1, 1, 1)).tolist() == [[[VOXELS[3, 6, 4]]]]


def test_cutout_rounds_a_half_up():
    assert VOLUME.cutout((104.5, 206, 303), (1, 1, 1)).item() == VOXELS[3, 6, 5]


def test_cutout_is_air_outside_the_scan():
    box = VOLUME.cutout((100, 200, 300), (4, 4, 4))  # the first voxel comes to (2, 2, 2)
    assert (box[:2] == AIR_HU).all()
    assert (box[:, :2] == AIR_HU).all()
    assert (box[:, :, :2] == AIR_HU).all()
    np.testing.assert_array_equal(box[2:, 2:, 2:], VOXELS[:2, :2, :2])
    box = VOLUME.cutout((113, 211, 309), (4, 4, 4))  # the last voxel comes to (2, 2, 2)
    np.testing.assert_array_equal(box[:3, :3, :3], VOXELS[7:, 9:, 11:])
    assert (box[3] == AIR_HU).all()
    assert (box[:, 3] == AIR_HU).all()
    assert (box[:, :, 3] == AIR_HU).all()


def test_cutout_larger_than_the_volume_holds_all_of_it():
    box = VOLUME.cutout((107, 206, 305), (40, 40, 40))
    # index (5, 6, 7) comes to (20, 20, 20)
    np.testing.assert_array_equal(box[15:25, 14:26, 13:27], VOXELS)
    assert (box != AIR_HU).sum() == VOXELS.size


@given(*[st.floats(99.5, 113.49), st.floats(199.5, 211.49), st.floats(299.5, 309.49)])
def test_cutout_around_any_point_of_the_scan_equals_the_padded_slice(x, y, z):
    nearest = tuple(int(np.floor(i + 0.5)) for i in (z - 300, y - 200, x - 100))
    box = VOLUME.cutout((x, y, z))
    assert box.dtype == np.int16
    np.testing.assert_array_equal(box, raw_cutout(VOXELS, nearest))
    assert box[16, 24, 24] == VOXELS[nearest]


@pytest.mark.parametrize("point", [(99.4, 206, 305), (107, 211.6, 305), (107, 206, 309.6), (np.nan, 206, 305)])
def test_cutout_refuses_a_point_outside_the_scan(point):
    message = r"lies outside the scan \(x from 100 to 113 mm, y from 200 to 211 mm, z from 300 to 309 mm\)"
    with pytest.raises(ValueError, match=message):
        VOLUME.cutout(point)


def test_cutout_of_a_grid_that_ends_short_of_its_scan_reaches_to_the_scans_border():
    # the scan has one slice of 4 mm more than the grid, so that its last point is 2.5 grid slices beyond
    scan = Geometry.from_axes((14, 12, 4), (1, 1, 4), (100, 200, 300), np.eye(3))
    volume = Volume(VOXELS, GEOMETRY, scan)
    box = volume.cutout((107, 206, 313.9), (8, 4, 4))  # index 13.9: slices 10 to 17
    assert (box == AIR_HU).all()
    box = volume.cutout((107, 206, 313.4), (10, 4, 4))  # index 13: slices 8 to 17
    np.testing.assert_array_equal(box[:2], VOXELS[8:, 4:8, 5:9])
    assert (box[2:] == AIR_HU).all()


def test_cutout_is_a_copy():
    volume = Volume(VOXELS.copy(), GEOMETRY, GEOMETRY)
    volume.cutout((107, 206, 305), (2, 2, 2))[:] = 0
    np.testing.assert_array_equal(volume.voxels, VOXELS)


def test_shorter_than_names_the_axes_along_which_a_cutout_is_longer():
    assert VOLUME.shorter_than((10, 12, 14)) is None
    # 2 mm apart along z: 10 of 11 voxels
    thick = Geometry.from_axes((14, 12, 10), (1, 1, 2), (100, 200, 300), np.eye(3))
    told = Volume(VOXELS, thick, thick).shorter_than((11, 12, 16))
    assert told is not None and told.startswith("is shorter than a cutout (20 of 22 mm along z, 14 of 16 mm along x)")
