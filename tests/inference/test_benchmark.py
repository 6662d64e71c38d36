"""Cutouts in the place of CTs: where the candidate lies, what is interpolated, and CTs cut up."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.inference.benchmark import CutoutSource, resampled
from luna16_monai.tables.cutouts import Cutouts


def ramp(spacing: tuple[float, float, float], center: tuple[float, float, float]) -> Cutouts:
    """One cutout whose HU are 100 z + 10 y + x in mm from the candidate."""
    z, y, x = (np.arange(41) - c for c in center)
    mm = 10 * z[:, None, None] * spacing[0] + 3 * y[:, None] * spacing[1] + x * spacing[2]
    voxels = np.round(10 * mm).astype(np.int16)
    return Cutouts(
        "set.csv", [voxels], np.array([spacing]), np.array([center]), np.array([1]), ["A"], [""], np.array([7.0]), [""]
    )


def test_resampled_puts_the_candidate_on_a_voxel():
    voxels = (100 * np.arange(5, dtype=np.int16))[:, None, None] * np.ones((1, 5, 5), np.int16)
    out, center = resampled(voxels, (2.0, 1, 1), (1.75, 2, 2), (1.0, 1, 1))
    # 1 mm is half a voxel: from 1.75 down to -0.25, below which the box ends at -0.5, and up to 4.25
    assert center.tolist() == [4, 2, 2]
    assert out[:, 0, 0].tolist() == [0, 25, 75, 125, 175, 225, 275, 325, 375, 400]


def test_volume_keeps_values_where_they_were():
    cutouts = ramp((1.0, 0.7, 0.8), (20.25, 19.5, 20.0))
    volume = CutoutSource(cutouts, (1.25, 0.7, 0.7)).volume("00000000")
    box = volume.cutout((0, 0, 0), (3, 3, 3))
    expected = [
        [[10 * (10 * 1.25 * z + 3 * 0.7 * y + 0.7 * x) for x in (-1, 0, 1)] for y in (-1, 0, 1)] for z in (-1, 0, 1)
    ]
    np.testing.assert_allclose(box, expected, atol=1.01)


def test_matched_ends_values_at_400_hu_and_keeps_the_candidate():
    cutouts = ramp((2.5, 0.7, 0.7), (20, 20, 20))
    plain = CutoutSource(cutouts, (1.25, 0.7, 0.7)).volume("00000000").cutout((0, 0, 0), (9, 3, 3))
    matched = CutoutSource(cutouts, (1.25, 0.7, 0.7), matched=True).volume("00000000").cutout((0, 0, 0), (9, 3, 3))
    assert plain.max() == 528  # 500 of z, 21 of y, 7 of x
    assert matched.max() == 400
    np.testing.assert_allclose(matched[:7], np.minimum(plain, 400)[:7], atol=1.01)


def test_table_names_each_cutout_by_its_row():
    table = CutoutSource(ramp((1, 1, 1), (20, 20, 20)), None).table()
    assert table.series_uids == ("00000000",)
    assert table.points_xyz.tolist() == [[0, 0, 0]]
    assert table.place(0) == "set.csv, line 2"


def test_resampled_of_a_single_slice_repeats_it():
    out, center = resampled(np.full((1, 4, 4), 7, np.int16), (3.0, 1, 1), (0, 1, 1), (1.0, 1, 1))
    assert (out == 7).all()
    assert center[0] == pytest.approx(1)
