"""CTs of every format: good ones read as SimpleITK and nibabel read them, bad ones refused with a cure."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from ct_files import CANARY, ROTATED, UID, VOXELS, refused, write_ct, write_dicom

from luna16_monai.ct.opening import open_ct, read_geometry, series_uid

# --- every format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1, -1, 1]), ROTATED])
@pytest.mark.parametrize("name", ["scan.mhd", "scan.mha", "scan.nii", "scan.nii.gz", "ä scan #1.nii.gz"])
def test_open_ct_reads_what_simpleitk_writes(tmp_path, name, direction):
    ct = open_ct(write_ct(tmp_path / name, direction=direction))
    np.testing.assert_array_equal(ct.read(), VOXELS)
    assert ct.read().dtype == np.int16
    # Index (z, y, x) = (1, 2, 3) lies (1.5, 1.5, 2) mm along the axes of the scan.
    expected = np.array([10, 20, 30]) + direction @ [1.5, 1.5, 2]
    np.testing.assert_allclose(ct.geometry.world_from_voxel((1, 2, 3)), expected, atol=1e-4)


def test_open_ct_refuses_another_file(tmp_path):
    (tmp_path / "scan.png").write_bytes(b"x")
    refused(
        tmp_path / "scan.png", "scan.png is no CT: give .mhd, .mha, .nii, .nii.gz, .nrrd or a folder of DICOM files"
    )
    refused(tmp_path / "none.nii", "none.nii is missing (No such file or directory): check the path", FileNotFoundError)


def test_read_geometry_reads_no_voxel(tmp_path):
    path = write_ct(tmp_path / "scan.nii.gz")
    packed = bytearray(path.read_bytes())
    packed[-8] ^= 1  # the stream's checksum, which only a reader of the voxels meets
    path.write_bytes(packed)
    assert read_geometry(path).spacing_zyx == (2, 0.75, 0.5)
    refused(path, "scan.nii.gz can't be inflated (Error -3 while decompressing data: incorrect data check)")


# --- series_uid -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nii", ".nii.gz", ".NII.GZ"])
def test_series_uid_of_a_file_is_its_stem(suffix):
    assert series_uid(Path("subset0", f"1.3.6.1{suffix}")) == "1.3.6.1"


def test_series_uid_of_a_folder_is_dicoms(tmp_path):
    assert series_uid(write_dicom(tmp_path / "series")) == UID


def test_series_uid_does_not_repeat_an_invalid_one(tmp_path):
    with pytest.warns(UserWarning, match="Invalid value for VR UI"):
        folder = write_dicom(tmp_path / "series", lambda k, s: setattr(s, "SeriesInstanceUID", CANARY))
    with pytest.raises(ValueError, match=r"no valid SeriesInstanceUID: export the scan anew") as caught:
        series_uid(folder)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("value", [2**60, -(2**60)])
def test_read_refuses_whole_numbers_that_no_type_of_ours_holds(tmp_path, value):
    path = write_ct(tmp_path / "scan.mhd", np.array([0, value], np.int64).reshape(1, 1, 2))
    refused(path, "scan.mhd: voxels beyond 2^53, which are no HU")


def test_an_opened_dicom_series_can_be_pickled(tmp_path):
    ct = pickle.loads(pickle.dumps(open_ct(write_dicom(tmp_path / "series"))))
    np.testing.assert_array_equal(ct.read(), VOXELS)
