"""Which CT a file of points is about, and whether its points lie in it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from ct_files import write_ct

from luna16_monai.interchange.points import Points
from luna16_monai.interchange.scans import Scans

# of write_ct: 6 x 5 x 4 voxels of 0.5 x 0.75 x 2 mm from (10, 20, 30) mm
INSIDE, OUTSIDE = (12.0, 22.0, 35.0), (12.0, 22.0, 39.0)


@pytest.fixture
def one(tmp_path) -> Scans:
    return Scans.open([write_ct(tmp_path / "a.mhd")])


@pytest.fixture
def two(tmp_path) -> Scans:
    return Scans.open([write_ct(tmp_path / "a.mhd"), write_ct(tmp_path / "b.mhd")])


def points(*rows: tuple[str, tuple[float, float, float]]) -> Points:
    return Points("p.csv", tuple(uid for uid, _ in rows), np.array([point for _, point in rows]), {})


def test_open_refuses_a_series_twice(tmp_path):
    paths = [write_ct(tmp_path / name / "a.mhd") for name in ("one", "two")]
    with pytest.raises(ValueError, match=r"are both series a: name one of them"):
        Scans.open(paths)
    with pytest.raises(FileNotFoundError):
        Scans.open([tmp_path / "none.mhd"])


def test_a_file_of_one_image_is_about_the_one_ct_or_the_one_of_its_name(one, two):
    assert one.series_of_file(Path("whatever.json"), "whatever") == "a"
    assert two.series_of_file(Path("b.json"), "b") == "b"
    assert Scans().series_of_file(Path("1.3.6.json"), "1.3.6") == "1.3.6"
    with pytest.raises(ValueError, match=re.escape("c.json: c is none of the CTs (a, b): name its CT with --ct")):
        two.series_of_file(Path("c.json"), "c")
    # the same for every CT, or no name of a series
    for name in ("nodule-locations", "a b/c"):
        with pytest.raises(ValueError, match="does not say which CT its points belong to: name that with --ct"):
            Scans().series_of_file(Path(f"{name}.json"), name)


def test_an_image_in_a_list_is_known_by_its_name_on_any_system(two):
    for image in ("images/a.nii.gz", "C:\\cts\\a.mhd", "/data/a/", "a"):
        assert two.series_of_image(image, "boxes.json, image 1") == "a"
    assert Scans().series_of_image("x/1.3.6.NII.GZ", "boxes.json") == "1.3.6"
    with pytest.raises(ValueError, match=r"boxes.json, image 1: image '/' names no file"):
        two.series_of_image("/", "boxes.json, image 1")
    with pytest.raises(ValueError, match=r"c is none of the CTs \(a, b\)"):
        two.series_of_image("c.mhd", "boxes.json")


def test_known_says_why_a_series_beside_others_cannot_be_read():
    damaged = Scans({}, {"a": ValueError("a.mhd is damaged")})
    with pytest.raises(ValueError, match=r"^a.mhd is damaged$"):
        damaged.known("a", "p.csv")


def test_require_wants_each_point_inside_its_own_ct(two):
    two.require(points(("a", INSIDE), ("b", INSIDE)))
    with pytest.raises(ValueError, match=r"\(12.0, 22.0, 39.0\) mm .* lies outside series b .*else --ras"):
        two.require(points(("a", INSIDE), ("b", OUTSIDE)))
    with pytest.raises(ValueError, match="c is none of the CTs"):
        two.require(points(("c", INSIDE)))
    # of nothing known there is nothing to check
    Scans().require(points(("c", OUTSIDE)))
