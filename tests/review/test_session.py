"""What a review shows and stores: slices through the scanned voxels, decisions in LPS."""

from __future__ import annotations

import io

import numpy as np
import pytest
from drawn_scans import FLIPPED, write_scan
from PIL import Image

from luna16_monai.review.decisions import Decisions
from luna16_monai.review.session import Review
from luna16_monai.tables.points import read_points, write_points

UID = "1.2.3"


@pytest.mark.parametrize("direction", [np.eye(3), FLIPPED])
def test_slice_shows_the_voxel_that_was_scanned(tmp_path, direction):
    voxels = np.full((40, 60, 70), -1000, np.int16)
    voxels[10, 20, 30] = 400
    origin = np.array([-100.0, -50.0, -300.0])
    point = origin + direction @ np.array([30 * 0.5, 20 * 0.75, 10 * 2.0])
    path = write_scan(tmp_path / "ct", UID, voxels, direction)
    write_points(tmp_path / "p.csv", [UID], point[None], [0.5], "probability")
    review = Review(tmp_path / "p.csv", [path], Decisions(tmp_path / "d.csv", "Anna"))
    for view in ("axial", "coronal", "sagittal"):
        content, scrolling = review.picture(0, view, 0, 50.0, "lung")
        picture = np.asarray(Image.open(io.BytesIO(content)))
        assert picture.shape == (201, 201)
        assert picture[100, 100] > 200
        assert np.asarray(Image.open(io.BytesIO(review.picture(0, view, 1, 50.0, "lung")[0])))[100, 100] < 20
        if view == "axial":
            assert scrolling == {"step_mm": 2.0, "low": -10, "high": 29}
    assert np.asarray(Image.open(io.BytesIO(review.picture(0, "axial", 0, 400.0, "lung")[0]))).shape == (403, 403)


def test_review_takes_ras_and_writes_lps(ct, tmp_path):
    write_points(tmp_path / "ras.csv", [UID], [(80.0, 30.0, -260.0)], [0.5], "probability")
    review = Review(tmp_path / "ras.csv", [ct], Decisions(tmp_path / "d.csv", "Anna"), ras=True)
    review.decide(0, 1)
    assert read_points(tmp_path / "d.csv", "class").points_xyz.tolist() == [[-80.0, -30.0, -260.0]]
