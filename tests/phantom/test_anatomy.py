"""The drawn chest."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.phantom.anatomy import draw_chest, shrink_slices, smooth_field, upsample


def test_upsample_interpolates_between_cell_centres():
    # cells of two voxels each: their centres lie at 0.5 and 2.5, voxel 1 a quarter of the way between
    coarse = np.array([0.0, 4.0], np.float32).reshape(1, 1, 2)
    np.testing.assert_allclose(upsample(coarse, (1, 1, 4)).ravel(), [0, 1, 3, 4])


def test_upsample_repeats_beyond_the_outer_centres_and_keeps_one_cell_everywhere():
    coarse = np.array([[[1.0]], [[5.0]]], np.float32)
    # along z, cells of three voxels with centres at 1 and 4
    np.testing.assert_allclose(upsample(coarse, (6, 1, 2))[:, 0, 1], [1, 1, 7 / 3, 11 / 3, 5, 5], rtol=1e-6)


def test_shrink_slices_takes_means_in_the_plane_and_leaves_a_rest_out():
    image = np.arange(2 * 5 * 4).reshape(2, 5, 4)
    # the first block of the first slice holds 0, 1, 4 and 5; the fifth row is left out
    assert shrink_slices(image, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]], [[22.5, 24.5], [30.5, 32.5]]]


def test_smooth_field_varies_by_1_and_over_its_grain():
    field = smooth_field(np.random.default_rng(0), (32, 32, 32), np.full(3, 64.0), 16.0)
    assert field.shape == (32, 32, 32)
    assert field.std() == pytest.approx(1, abs=1e-5)
    # grains of 8 voxels: neighbours hardly differ, voxels a grain apart do
    assert np.abs(np.diff(field, axis=0)).mean() < 0.25
    assert np.abs(field[8:] - field[:-8]).mean() > 0.7


def test_lung_samples_and_slides_to_the_depth_that_is_asked_for():
    lung = draw_chest(np.random.default_rng(0), (48, 96, 96), np.array([2.0, 1.5, 1.5])).lung
    assert lung.size_mm.tolist() == [96, 144, 144]
    points = lung.sample(np.random.default_rng(1), 20, 5)
    assert points.shape == (20, 3)
    assert (lung.distance_at(points) < -5).all()
    for point in points[:5]:
        assert lung.distance_at(lung.slide_to_depth(point, 3.0))[0] == pytest.approx(-3, abs=0.5)
        assert np.linalg.norm(lung.outward(point)) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match=r"no point of the lung lies 500\.0 mm deep; use a larger volume"):
        lung.sample(np.random.default_rng(1), 1, 500)
