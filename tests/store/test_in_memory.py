"""CTs named one by one, as a folder of files, and as an archive lays them out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ct_files import UID, write_ct, write_dicom
from point_tables import point_table

from luna16_monai.bundle.folders import bundle_dir
from luna16_monai.store.in_memory import InMemoryStore

RECIPE = bundle_dir() / "configs" / "prepare.yaml"
# in the middle of ct_files' scans: 6 x 5 x 4 voxels of 0.5 x 0.75 x 2 mm from (10, 20, 30) mm on
POINT = (11.0, 21.5, 33.0)


def test_prepared_in_memory_takes_a_folder_of_nifti_and_mha_files(tmp_path):
    write_ct(tmp_path / "one.nii.gz")
    write_ct(tmp_path / "two.mha")
    assert InMemoryStore(tmp_path, RECIPE).series_uids == ("one", "two")


def test_prepared_in_memory_takes_a_subset_one_folder_deeper(tmp_path):
    write_ct(tmp_path / "subset3" / "subset3" / "1.2.mhd")
    assert InMemoryStore(tmp_path, RECIPE).series_uids == ("1.2",)


def test_prepared_in_memory_takes_the_series_of_a_patient_and_refuses_a_wrong_one_when_it_is_asked_for(tmp_path):
    (tmp_path / "study").mkdir()
    write_dicom(tmp_path / "study" / "thin")
    write_dicom(tmp_path / "study" / "other", lambda k, slice_: setattr(slice_, "SeriesInstanceUID", f"{UID}.9"))
    (tmp_path / "study" / "other" / "a.dcm").unlink()
    volumes = InMemoryStore(tmp_path, RECIPE)
    assert volumes.series_uids == (UID,)
    volumes.require_inside(point_table([(UID, *POINT, 0.0)]))
    with pytest.raises(ValueError, match=r"unequal spacing|missing"):
        volumes.require_inside(point_table([(f"{UID}.9", *POINT, 0.0)]))
    shutil.copytree(tmp_path / "study" / "thin", tmp_path / "study" / "again")
    with pytest.raises(ValueError, match=f"series {UID} is there twice, in study/again and study/thin"):
        InMemoryStore(tmp_path, RECIPE)


def test_prepared_in_memory_says_by_which_name_a_ct_is_known(tmp_path):
    volumes = InMemoryStore(write_ct(tmp_path / "converted_12.nii.gz"), RECIPE)
    with pytest.raises(ValueError, match="not in the CTs that were named, which are known by the names converted_12:"):
        volumes.require_inside(point_table([("1.2", *POINT, 0.0)]))


def test_prepared_in_memory_follows_links_out_of_the_folder_only_when_allowed(tmp_path):
    write_ct(tmp_path / "disk" / "scan.mha")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "scan.mha").symlink_to(tmp_path / "disk" / "scan.mha")
    with pytest.raises(ValueError, match="pass --allow-symlinks"):
        InMemoryStore(tmp_path / "here" / "scan.mha", RECIPE)
    assert InMemoryStore(tmp_path / "here" / "scan.mha", RECIPE, allow_symlinks=True).series_uids == ("scan",)


def test_prepared_in_memory_keeps_one_volume(phantom_dir: Path) -> None:
    volumes = InMemoryStore(phantom_dir, bundle_dir() / "configs" / "prepare.yaml")
    one, other = volumes.series_uids[:2]
    first = volumes.volume(one)
    assert volumes.volume(one) is first
    volumes.volume(other)
    assert volumes.volume(one) is not first
