"""What a review shows and stores: slices through the scanned voxels, decisions in LPS."""

from __future__ import annotations

import io

import numpy as np
import pytest
from drawn_scans import FLIPPED, write_scan
from PIL import Image

from luna16_monai.review.decisions import Decisions
from luna16_monai.review.session import Review
from luna16_monai.tables.points import point_key, read_points, write_points

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


def test_whole_slice_has_square_pixels_and_the_voxel_in_its_place(tmp_path):
    voxels = np.full((40, 60, 70), -1000, np.int16)
    voxels[10, 20, 30] = 400
    path = write_scan(tmp_path / "ct", UID, voxels)
    write_points(tmp_path / "p.csv", [UID], [(-85.0, -35.0, -280.0)], [0.5], "probability")
    review = Review(tmp_path / "p.csv", [path], Decisions(tmp_path / "d.csv", "Anna"))
    picture = np.asarray(Image.open(io.BytesIO(review.whole(UID, "axial", 10, "lung"))))
    # 70 columns of 0.5 mm and 60 rows of 0.75 mm, in pixels of 0.5 mm
    assert picture.shape == (90, 70)
    assert np.unravel_index(picture.argmax(), picture.shape) == (30, 30)
    for series, view, window in (("x", "axial", "lung"), (UID, "x", "lung"), (UID, "axial", "x")):
        with pytest.raises(KeyError, match="x"):
            review.whole(series, view, 10, window)


def test_candidate_that_was_added_is_saved_and_taken_up_by_others(ct, tmp_path):
    write_points(tmp_path / "p.csv", [UID] * 2, [(-80.0, -30.0, -260.0), (-75.0, -30.0, -260.0)], [0.5, 0.1],
                 "probability", diameter_mm=[4.5, -1])  # fmt: skip
    first = Review(tmp_path / "p.csv", [ct], Decisions(tmp_path / "d.csv", "Anna"), least=0.2)
    second = Review(tmp_path / "p.csv", [ct], Decisions(tmp_path / "d.csv", "Ben"), least=0.2)
    assert [one["diameter_mm"] for one in first.candidates] == [4.5]
    state = first.add(UID, (-70.25, -20.5, -250.0), 7.5)
    assert (state["count"], state["decided"], state["decisions"][1]["label"]) == (2, 1, 1)
    assert second.decided()["count"] == 2
    added = second.candidates[1]
    assert (added["probability"], added["diameter_mm"], added["point_xyz"]) == (None, 7.5, [-70.25, -20.5, -250.0])
    # a decision keeps the diameter, of what was added and of what was predicted
    second.decide(1, 0)
    second.decide(0, 1)
    table = read_points(tmp_path / "d.csv", "diameter_mm")
    assert table.values.tolist() == [7.5, 4.5]
    # rejected since, so it is in no later list; nor is what --least leaves out
    Decisions(tmp_path / "d.csv", "Ben").decide(point_key(UID, (-75.0, -30.0, -260.0)), 1, 3.0)
    third = Review(tmp_path / "p.csv", [ct], Decisions(tmp_path / "d.csv", "Ben"), least=0.2)
    assert third.decided()["count"] == 1


def test_add_refuses_what_is_no_nodule_of_the_ct(ct, tmp_path):
    write_points(tmp_path / "p.csv", [UID], [(-80.0, -30.0, -260.0)], [0.5], "probability")
    review = Review(tmp_path / "p.csv", [ct], Decisions(tmp_path / "d.csv", "Anna"))
    with pytest.raises(ValueError, match="lies outside series"):
        review.add(UID, (0.0, 0.0, 0.0), 5)
    for diameter in (0.5, 201, float("nan")):
        with pytest.raises(ValueError, match="give one from 1 to 200 mm"):
            review.add(UID, (-80.0, -30.0, -260.0), diameter)
    with pytest.raises(KeyError, match="9"):
        review.add("9", (-80.0, -30.0, -260.0), 5)
    assert not (tmp_path / "d.csv").exists()


def test_review_of_a_ct_without_a_candidate_can_be_opened_to_add_one(ct, tmp_path):
    write_points(tmp_path / "p.csv", [], np.zeros((0, 3)), [], "probability")
    review = Review(tmp_path / "p.csv", [ct], Decisions(tmp_path / "d.csv", "Anna"), may_be_empty=True)
    assert review.decided() == {"decisions": {}, "decided": 0, "count": 0}
    assert review.add(UID, (-80.0, -30.0, -260.0), 5)["count"] == 1
