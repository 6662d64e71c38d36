"""The CTs of a data folder."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from ct_files import VOXELS, write_ct, write_dicom

from luna16_monai.ct.folders import SUBSETS, CTFile, find_cts, subset_folder
from luna16_monai.ct.opening import open_ct, read_geometry


def places(cts: list[CTFile]) -> list[tuple[str, Path, int | None]]:
    return [(ct.series_uid, ct.path, ct.subset) for ct in cts]


def test_find_cts_sorts_by_series_and_leaves_the_lung_masks(tmp_path):
    for place_ in ("subset9/1.2.mhd", "subset0/1.3.mhd", "1.1.nii.gz", "seg-lungs-LUNA16/1.2.mhd", "subset10/1.4.mhd"):
        write_ct(tmp_path / place_)
    (tmp_path / "annotations.csv").write_text("seriesuid\n")
    (tmp_path / "subset0" / "._1.3.mhd").write_bytes(b"what a Mac leaves on a foreign disk")
    assert places(find_cts(tmp_path)) == [
        ("1.1", tmp_path / "1.1.nii.gz", None),
        ("1.2", tmp_path / "subset9" / "1.2.mhd", 9),
        ("1.3", tmp_path / "subset0" / "1.3.mhd", 0),
    ]


@pytest.mark.parametrize("name", ["1.2.mhd", "1.2.mha", "1.2.nii", "1.2.nii.gz"])
def test_find_cts_gives_the_opened_ct_which_can_be_pickled(tmp_path, name):
    path = write_ct(tmp_path / name)
    (found,) = find_cts(tmp_path)
    assert (found.ct.path, found.ct.name, found.ct.geometry) == (path, name, read_geometry(path))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).ct.read(), VOXELS)


def test_an_opened_dicom_series_can_be_pickled(tmp_path):
    ct = pickle.loads(pickle.dumps(open_ct(write_dicom(tmp_path / "series"))))
    np.testing.assert_array_equal(ct.read(), VOXELS)


def test_find_cts_refuses_the_lung_masks(tmp_path):
    write_ct(tmp_path / "seg-lungs-LUNA16" / "1.2.mhd")
    with pytest.raises(ValueError, match="seg-lungs-LUNA16 holds LUNA16's lung masks, not CTs: give the folder above"):
        find_cts(tmp_path / "seg-lungs-LUNA16")


@pytest.mark.parametrize("second", ["subset1/1.2.mhd", "1.2.mhd", "subset0/1.2.nii.gz"])
def test_find_cts_refuses_a_series_in_two_places(tmp_path, second):
    write_ct(tmp_path / "subset0" / "1.2.mhd")
    write_ct(tmp_path / second)
    a, b = sorted(("subset0/1.2.mhd", second))
    with pytest.raises(ValueError, match=re.escape(f"series 1.2 is there twice, as {a} and {b}: remove one of them")):
        find_cts(tmp_path)


def test_find_cts_says_what_it_expected(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match=r"data' does not exist: give the folder that holds the CTs"):
        find_cts(folder)
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no CT in 'data': expected subset0 to subset9 with <series_uid>\.mhd"):
        find_cts(folder)


def test_find_cts_says_to_unzip(tmp_path):
    (tmp_path / "subset0.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"but zip files: unzip subset0\.zip to subset9\.zip there"):
        find_cts(tmp_path)


def test_find_cts_names_a_missing_raw_file(tmp_path):
    write_ct(tmp_path / "subset0" / "1.2.mhd")
    (tmp_path / "subset0" / "1.2.raw").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.2\.raw, the data file of 1\.2\.mhd, is missing"):
        find_cts(tmp_path)


def test_find_cts_follows_links_out_of_the_folder_only_when_allowed(tmp_path):
    write_ct(tmp_path / "disk" / "1.2.mhd")
    subset = tmp_path / "data" / "subset3"
    subset.mkdir(parents=True)
    for name in ("1.2.mhd", "1.2.raw"):
        (subset / name).symlink_to(tmp_path / "disk" / name)
    with pytest.raises(ValueError, match=r"1\.2\.mhd is reached through a symbolic link.*pass --allow-symlinks"):
        find_cts(tmp_path / "data")
    assert places(find_cts(tmp_path / "data", allow_symlinks=True)) == [("1.2", subset / "1.2.mhd", 3)]


def test_find_cts_follows_links_that_stay_in_the_folder(tmp_path):
    write_ct(tmp_path / "cache" / "1.2.mhd")
    (tmp_path / "subset3").symlink_to(tmp_path / "cache")
    assert [ct.subset for ct in find_cts(tmp_path)] == [3]
    # The data folder itself may be reached through a link: the user named it.
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    assert [ct.subset for ct in find_cts(link)] == [3]


def test_subset_folders_are_luna16s_ten():
    assert [subset_folder(number) for number in SUBSETS] == [f"subset{digit}" for digit in "0123456789"]
