"""Slices: each direction of the patient lands where a radiologist expects it, however the volume lies."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.geometry.grid import Geometry
from luna16_monai.geometry.slices import (
    LUNG_WINDOW_HU,
    MOST_PIXELS,
    NORMALS,
    Plane,
    cut_slices,
    planes_of,
    slices_through,
    steps_across,
    whole_slice,
)
from luna16_monai.geometry.volume import Volume

SIDE = 21


def volume(marked_xyz: tuple[int, int, int], direction: np.ndarray | None = None) -> Volume:
    """A cube of 21 mm at 1 mm around the world's origin, -300 HU, with one voxel of 400 HU."""
    axes = np.eye(3) if direction is None else direction
    geometry = Geometry.from_axes((SIDE,) * 3, (1, 1, 1), -axes @ np.full(3, SIDE // 2), axes)
    voxels = np.full((SIDE,) * 3, -300, np.int16)
    voxels[tuple(np.rint(geometry.voxel_from_world(marked_xyz)).astype(int))] = 400
    return Volume(voxels, geometry, geometry)


# (row, column) from the middle pixel; the patient's left is at x > 0, the back at y > 0, the head at z > 0
SEEN = {
    "axial": {(4, 0, 0): (0, 4), (0, 4, 0): (4, 0)},
    "coronal": {(4, 0, 0): (0, 4), (0, 0, 4): (-4, 0)},
    "sagittal": {(0, 4, 0): (0, 4), (0, 0, 4): (-4, 0)},
}


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.eye(3)[[1, 2, 0]]])
@pytest.mark.parametrize("view", SEEN)
def test_slices_through_shows_each_direction_in_its_place(view: str, direction: np.ndarray) -> None:
    for marked, (row, column) in SEEN[view].items():
        picture = slices_through(volume(marked, direction), (0, 0, 0), side_mm=SIDE, pixels=SIDE)[view]
        assert np.argwhere(picture == 255).tolist() == [[SIDE // 2 + row, SIDE // 2 + column]]


def test_slices_through_window_and_air_outside() -> None:
    pictures = slices_through(volume((0, 0, 0)), (10, 0, 0), side_mm=SIDE, pixels=SIDE)
    # -300 HU is half of the window from -1000 to 400; x > 10.5 mm is outside the scan, black
    axial = pictures["axial"]
    assert LUNG_WINDOW_HU == (-1000, 400)
    assert (axial[10, 10], axial[10, 9], axial[10, 11], axial[10, 0]) == (128, 128, 0, 255)


def test_slices_through_interpolates_between_voxels() -> None:
    # pixels of half a millimetre: the neighbour of the marked voxel is halfway between 400 and -300 HU
    axial = slices_through(volume((0, 0, 0)), (0, 0, 0), side_mm=10.5, pixels=21)["axial"]
    assert [int(axial[10, column]) for column in (10, 11, 12)] == [255, round(255 * 1050 / 1400), 128]


def test_slices_through_refuses_a_point_outside_and_an_even_number_of_pixels() -> None:
    with pytest.raises(ValueError, match=r"point \[40, 0, 0\] mm lies outside the scan"):
        slices_through(volume((0, 0, 0)), (40, 0, 0))
    with pytest.raises(ValueError, match="20 pixels have no middle one"):
        slices_through(volume((0, 0, 0)), (0, 0, 0), pixels=20)


def test_slices_through_takes_only_the_views_that_are_wanted() -> None:
    marked = volume((0, 4, 0))
    every = slices_through(marked, (0, 0, 0), SIDE, SIDE)
    some = slices_through(marked, (0, 0, 0), SIDE, SIDE, views=["sagittal"])
    assert list(some) == ["sagittal"]
    assert np.array_equal(some["sagittal"], every["sagittal"])


def test_cut_slices_gives_values_and_its_own_outside() -> None:
    axial = cut_slices(volume((0, 0, 0)), (10, 0, 0), SIDE, SIDE, outside=7)["axial"]
    assert (axial[10, 10], axial[10, 0], axial[10, 11]) == (-300, 400, 7)


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.eye(3)[[1, 2, 0]]])
def test_steps_across_reach_the_outermost_slices(direction: np.ndarray) -> None:
    # centres from -10 to 10 mm on every axis; the point at (3, 0, -10)
    scan = volume((0, 0, 0), direction).scan
    found = {view: steps_across(scan, (3, 0, -10), view) for view in NORMALS}
    assert {view: (low, high) for view, (_, low, high) in found.items()} == {
        "axial": (0, 20),
        "coronal": (-10, 10),
        "sagittal": (-13, 7),
    }
    assert [step for step, _, _ in found.values()] == pytest.approx([1, 1, 1])


def test_steps_across_are_slices_of_the_scan() -> None:
    # 5 slices 2.5 mm apart, 3 x 4 pixels of 0.5 x 0.75 mm; from the second slice
    scan = Geometry.from_axes((3, 4, 5), (0.5, 0.75, 2.5), (0, 0, 0), np.eye(3))
    assert steps_across(scan, (0, 0, 2.5), "axial") == (2.5, -1, 3)
    assert steps_across(scan, (0.25, 0, 2.5), "sagittal") == (0.5, 0, 1)
    # half a voxel outside the outermost centres is still in the scan, and one can scroll inwards
    assert steps_across(scan, (0, -0.3, 0), "coronal") == (0.75, 0, 3)


# 40 slices of 2 mm, 60 rows of 0.75 mm, 70 columns of 0.5 mm: x from -100.25 to -65.25 mm, y from -50.375 to -5.375, z
# from -301 to -221
OBLONG = Geometry.from_axes((70, 60, 40), (0.5, 0.75, 2.0), (-100, -50, -300), np.eye(3))
FLIPPED = Geometry.from_axes((70, 60, 40), (0.5, 0.75, 2.0), (-65.5, -5.75, -300), np.diag([-1, -1, 1]))


@pytest.mark.parametrize("scan", [OBLONG, FLIPPED])
def test_planes_of_a_scan_reach_from_end_to_end_in_square_pixels(scan: Geometry) -> None:
    assert planes_of(scan) == {
        "axial": Plane("axial", (-100.0, -50.125, -300.0), 0.5, 90, 70, 2.0, 40),
        "coronal": Plane("coronal", (-100.0, -50.0, -221.25), 0.5, 160, 70, 0.75, 60),
        "sagittal": Plane("sagittal", (-100.0, -50.0, -221.375), 0.75, 107, 60, 0.5, 70),
    }


def test_planes_of_a_large_scan_have_no_more_pixels_than_a_screen() -> None:
    plane = planes_of(Geometry.from_axes((1024, 512, 10), (0.3, 0.3, 2.0), (0, 0, 0), np.eye(3)))["axial"]
    assert (plane.columns, plane.rows, plane.pixel_mm) == (MOST_PIXELS, 384, pytest.approx(0.4))


@pytest.mark.parametrize("scan", [OBLONG, FLIPPED])
def test_whole_slice_shows_a_voxel_where_it_lies(scan: Geometry) -> None:
    hu = np.full(scan.shape_zyx, -1000, np.int16)
    z, y, x = np.rint(scan.voxel_from_world((-85.0, -35.0, -280.0))).astype(int)
    hu[z, y, x] = 400
    volume, planes = Volume(hu, scan, scan), planes_of(scan)
    # the voxel is 15 mm from the first column and 15.125 mm from the first row: between rows 30 and 31 of 0.5 mm
    picture = whole_slice(volume, planes["axial"], 10)
    assert picture.shape == (90, 70)
    # rows 29 to 32 lie 0.625, 0.125, 0.375 and 0.875 mm off it, of 0.75 mm: 1/6, 5/6, 1/2 and 0 of 255
    assert picture[29:33, 30].tolist() == pytest.approx([42.5, 212.5, 127.5, 0], abs=0.6)
    assert np.unravel_index(picture.argmax(), picture.shape) == (30, 30)
    assert not whole_slice(volume, planes["axial"], 11).any()
    # 58.75 mm below the first row of the coronal one, 15 mm from the first column; slice 20 lies at y = -35
    picture = whole_slice(volume, planes["coronal"], 20)
    assert np.unravel_index(picture.argmax(), picture.shape)[1] == 30
    assert abs(np.unravel_index(picture.argmax(), picture.shape)[0] - 117.5) < 1
    assert whole_slice(volume, planes["sagittal"], 30).any()


@pytest.mark.parametrize("corner", [(-100, -50, -300), (-171.3, -163.7, -298.1), (0.1, 77.7, 1234.5)])
@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, -1, 1]), np.eye(3)[[1, 0, 2]]])
def test_whole_slice_shows_the_outermost_voxels_too(corner: tuple[float, float, float], direction: np.ndarray) -> None:
    scan = Geometry.from_axes((70, 60, 40), (0.7, 0.7, 0.7), corner, direction)
    volume, planes = Volume(np.full(scan.shape_zyx, 400, np.int16), scan, scan), planes_of(scan)
    for plane in planes.values():
        for number in (0, plane.slices - 1):
            assert (whole_slice(volume, plane, number) == 255).all()


def test_whole_slice_refuses_a_slice_that_is_none() -> None:
    volume = Volume(np.zeros(OBLONG.shape_zyx, np.int16), OBLONG, OBLONG)
    for number in (-1, 40):
        with pytest.raises(ValueError, match=f"slice {number}: choose one from 0 to 39"):
            whole_slice(volume, planes_of(OBLONG)["axial"], number)
