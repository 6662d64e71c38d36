"""World to voxel and back: coordinates worked out by hand, then the round trip, then SimpleITK as the referee."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from luna16_monai.geometry.grid import Geometry, is_orthonormal, lps_from_ras, require_inside

SHAPE_ZYX = (4, 5, 6)
# A LUNA16-like scan: spacing (0.5, 0.5, 2) mm in (x, y, z), first voxel at (-100, -50, -300).
PLAIN = Geometry.from_axes((6, 5, 4), (0.5, 0.5, 2), (-100, -50, -300), np.eye(3))
# The same box, stored flipped: x and y run the other way from (100, 50, -300).
FLIPPED = Geometry.from_axes((6, 5, 4), (0.5, 0.5, 2), (100, 50, -300), np.diag([-1, -1, 1]))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any rotation, flip, spacing and place that a scan can have."""
    # Tenths of a degree, because ITK's inverse gives NaN where an angle of 1e-300 leaves such entries in a matrix.
    angles = np.array(draw(st.tuples(*[st.integers(-1800, 1800)] * 3))) / 10
    flips = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.1, 10)] * 3))
    origin = draw(st.tuples(*[st.floats(-2000, 2000)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 1000)] * 3))
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * flips
    return Geometry.from_axes(shape, spacing, origin, direction)


points = st.lists(st.tuples(*[st.floats(-2000, 2000)] * 3), min_size=1, max_size=5)


def test_voxel_from_world_of_an_unrotated_scan_subtracts_the_origin_and_divides():
    # x: (-99 + 100) / 0.5 = 2, y: (-49.75 + 50) / 0.5 = 0.5, z: (-294 + 300) / 2 = 3.
    np.testing.assert_array_equal(PLAIN.voxel_from_world((-99, -49.75, -294)), (3, 0.5, 2))


def test_voxel_from_world_of_a_flipped_scan_counts_from_the_other_side():
    # x: (100 - 99) / 0.5 = 2, y: (50 - 49.75) / 0.5 = 0.5, z: (-294 + 300) / 2 = 3.
    np.testing.assert_array_equal(FLIPPED.voxel_from_world((99, 49.75, -294)), (3, 0.5, 2))


def test_world_from_voxel_of_a_scan_turned_by_90_degrees():
    # Turned about z: the x axis of the array points to world +y, the y axis to world -x.
    turned = Geometry.from_axes((6, 5, 4), (0.5, 0.75, 2), (10, 20, 30), [[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    # Index (z, y, x) = (1, 2, 4): x = 10 - 2 * 0.75, y = 20 + 4 * 0.5, z = 30 + 1 * 2.
    np.testing.assert_array_equal(turned.world_from_voxel((1, 2, 4)), (8.5, 22, 32))
    assert turned.spacing_zyx == (2, 0.75, 0.5)


def test_world_from_voxel_keeps_the_leading_shape():
    assert PLAIN.world_from_voxel(np.zeros((7, 3))).shape == (7, 3)
    assert PLAIN.world_from_voxel(np.zeros((0, 3))).shape == (0, 3)
    np.testing.assert_array_equal(PLAIN.world_from_voxel([0, 0, 0]), [-100, -50, -300])


@given(geometries(), points)
def test_voxel_from_world_is_undone_by_world_from_voxel(geometry: Geometry, points_xyz: list):
    back = geometry.world_from_voxel(geometry.voxel_from_world(points_xyz))
    np.testing.assert_allclose(back, points_xyz, rtol=0, atol=1e-8)


@given(geometries(), points)
@settings(max_examples=50)
def test_voxel_from_world_agrees_with_simpleitk(geometry: Geometry, points_xyz: list):
    spacing_xyz = geometry.spacing_zyx[::-1]
    image = sitk.Image([1, 1, 1], sitk.sitkUInt8)  # the size plays no part, so no large image is made
    image.SetSpacing(spacing_xyz)
    image.SetOrigin(geometry.affine[:3, 3])
    image.SetDirection((geometry.affine[:3, 2::-1] / spacing_xyz).ravel())
    expected = [image.TransformPhysicalPointToContinuousIndex(p)[::-1] for p in points_xyz]
    np.testing.assert_allclose(geometry.voxel_from_world(points_xyz), expected, rtol=0, atol=1e-6)


def test_from_ras_affine_negates_x_and_y_and_reverses_the_axes():
    # MONAI's affine of PLAIN: index (x, y, z) to RAS, whose x and y point the other way than LPS.
    ras = [[-0.5, 0, 0, 100], [0, -0.5, 0, 50], [0, 0, 2, -300], [0, 0, 0, 1]]
    assert Geometry.from_ras_affine(ras, (6, 5, 4)) == PLAIN
    np.testing.assert_array_equal(PLAIN.ras_affine_xyz(), ras)


def test_from_ras_affine_of_a_flipped_scan_is_positive():
    ras = [[0.5, 0, 0, -100], [0, 0.5, 0, -50], [0, 0, 2, -300], [0, 0, 0, 1]]
    assert Geometry.from_ras_affine(ras, (6, 5, 4)) == FLIPPED
    np.testing.assert_array_equal(FLIPPED.ras_affine_xyz(), ras)


@given(geometries())
def test_ras_affine_xyz_goes_back_exactly(geometry: Geometry):
    assert Geometry.from_ras_affine(geometry.ras_affine_xyz(), geometry.shape_zyx[::-1]) == geometry


@pytest.mark.parametrize(
    ("point_xyz", "inside"),
    [
        ((-100, -50, -300), True),
        # The last centres are x = -100 + 5 * 0.5 = -97.5, y = -50 + 4 * 0.5 = -48, z = -300 + 3 * 2 = -294.
        ((-97.5, -48, -294), True),
        # Half a voxel beyond: floor(-0.5 + 0.5) = 0 is in, floor(5.5 + 0.5) = 6 is out.
        ((-100.25, -50, -300), True),
        ((-100.26, -50, -300), False),
        ((-97.25, -50, -300), False),
        ((-97.26, -50, -300), True),
        ((-100, -50, -293), False),
        ((-100, -50, -293.01), True),
        ((float("nan"), -50, -300), False),
        ((float("inf"), -50, -300), False),
        ((1e300, -50, -300), False),
    ],
)
def test_contains_asks_for_the_nearest_voxel(point_xyz: tuple, inside: bool):
    mask = PLAIN.contains(point_xyz)
    assert mask.shape == ()
    assert mask.dtype == np.bool_
    assert bool(mask) is inside


def test_contains_of_several_points_is_a_mask():
    assert FLIPPED.contains([(100, 50, -300), (-100, -50, -300)]).tolist() == [True, False]
    assert FLIPPED.contains(np.zeros((0, 3))).shape == (0,)


@given(geometries())
def test_from_dict_gives_back_what_to_dict_wrote_as_json(geometry: Geometry):
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


def test_from_dict_names_a_missing_key():
    with pytest.raises(ValueError, match=r"geometry without affine: give what Geometry\.to_dict wrote"):
        Geometry.from_dict({"shape_zyx": [1, 2, 3]})


def test_geometry_is_equal_hashed_and_pickled_by_value():
    twin = Geometry.from_axes((6, 5, 4), (0.5, 0.5, 2), (-100, -50, -300), np.eye(3))
    assert twin == PLAIN
    assert hash(twin) == hash(PLAIN)
    assert pickle.loads(pickle.dumps(PLAIN)) == PLAIN
    assert FLIPPED != PLAIN
    assert PLAIN != "a geometry"


def test_geometry_hash_is_the_same_for_both_zeros():
    affine = PLAIN.affine.copy()
    affine[0, 0] = -0.0
    twin = Geometry(SHAPE_ZYX, affine)
    assert twin == PLAIN
    assert hash(twin) == hash(PLAIN)


def test_geometry_keeps_its_own_affine():
    affine = np.eye(4)
    geometry = Geometry(SHAPE_ZYX, affine)
    affine[0, 0] = 5
    assert geometry.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 5


@pytest.mark.parametrize("shape", [(0, 5, 6), (4, -5, 6), (4, 5), (4.0, 5, 6), ("4", "5", "6")])
def test_geometry_refuses_a_shape_that_is_not_three_positive_whole_numbers(shape: tuple):
    with pytest.raises(ValueError, match=re.escape(f"shape {shape}: give three positive whole numbers")):
        Geometry(shape, np.eye(4))


def changed(row: int, column: int, value: float) -> np.ndarray:
    affine = np.eye(4)
    affine[row, column] = value
    return affine


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), "affine of shape (3, 3): give a 4 x 4 matrix"),
        (changed(1, 2, np.nan), "not finite: the header is damaged"),
        (changed(0, 3, np.inf), "not finite: the header is damaged"),
        (changed(3, 0, 1), "last row is [1.0, 0.0, 0.0, 1.0]: it must be [0, 0, 0, 1]"),
        (changed(1, 1, 0), "spacing [1.0, 0.0, 1.0] mm (z, y, x): it must be above 0 on every axis"),
        (changed(1, 1, 1e300), "spacing [1.0, inf, 1.0] mm"),
        # The y axis lies in the plane of the others: (1, 1e-9, 0), seven orders too flat.
        (np.array([[1, 1, 0, 0], [0, 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "is singular: its three axes must"),
    ],
)
def test_geometry_refuses_an_affine_that_maps_nothing(affine: np.ndarray, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        Geometry(SHAPE_ZYX, affine)


def test_from_ras_affine_refuses_another_shape():
    with pytest.raises(ValueError, match=re.escape("affine of shape (3, 3): give a 4 x 4 matrix")):
        Geometry.from_ras_affine(np.eye(3), (6, 5, 4))


@pytest.mark.parametrize("bad", [(1, 2), np.zeros((2, 4)), np.zeros((1, 2, 3)), 5])
def test_voxel_from_world_refuses_what_are_no_points(bad: Any):
    with pytest.raises(ValueError, match=re.escape(f"points_xyz of shape {np.shape(bad)}: give (n, 3) or (3,)")):
        PLAIN.voxel_from_world(bad)
    with pytest.raises(ValueError, match="indices_zyx of shape"):
        PLAIN.world_from_voxel(bad)


def test_is_orthonormal_accepts_rotations_and_flips():
    assert is_orthonormal(np.eye(3))
    assert is_orthonormal(np.diag([-1, -1, 1]))
    # Six digits of a rotation by 30 degrees, as headers carry them.
    assert is_orthonormal([[0.866025, -0.5, 0], [0.5, 0.866025, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "direction",
    [
        np.diag([1, 1, 1.01]),
        [[1, 0.01, 0], [0, 1, 0], [0, 0, 1]],
        np.zeros((3, 3)),
        np.full((3, 3), np.nan),
        np.full((3, 3), 1e300),
    ],
)
def test_is_orthonormal_refuses_scaled_and_sheared_axes(direction: Any):
    assert not is_orthonormal(direction)


def test_lps_from_ras_changes_the_signs_of_x_and_y():
    assert lps_from_ras([[1, -2, 3], [0.5, 4, -6]]).tolist() == [[-1, 2, 3], [-0.5, -4, -6]]
    assert lps_from_ras(lps_from_ras([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]


def test_require_inside_names_the_first_point_outside_and_how_far_its_scan_reaches():
    scan = Geometry.from_axes((10, 20, 5), (1, 1, 2), (0, 0, -8), np.eye(3))  # x 0 to 9, y 0 to 19, z -8 to 0
    require_inside([[0, 0, -8], [9.4, 19.4, 0.9]], scan, "1.2")
    message = (
        r"^candidate \(9\.6, 0\.0, 0\.0\) mm \(line 3\) lies outside series 1\.2 "
        r"\(x from 0 to 9 mm, y from 0 to 19 mm, z from -8 to 0 mm\): does this table belong to this CT\?$"
    )
    with pytest.raises(ValueError, match=message):
        require_inside([[0, 0, 0], [9.6, 0, 0], [99, 0, 0]], scan, "1.2", lambda number: f"line {number + 2}")
