"""CTs of every format: good ones read as SimpleITK and nibabel read them, bad ones refused with a cure."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ct_files import CANARY, ROTATED, UID, VOXELS, place, refused, write_ct, write_dicom

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
    refused(tmp_path / "scan.png", "scan.png is no CT: give .mhd, .mha, .nii, .nii.gz or a folder of DICOM files")
    refused(tmp_path / "none.nii", "none.nii is missing (No such file or directory): check the path", FileNotFoundError)


def test_read_geometry_reads_no_voxel(tmp_path):
    path = write_ct(tmp_path / "scan.nii.gz")
    packed = bytearray(path.read_bytes())
    packed[-8] ^= 1  # the stream's checksum, which only a reader of the voxels meets
    path.write_bytes(packed)
    assert read_geometry(path).spacing_zyx == (2, 0.75, 0.5)
    refused(path, "scan.nii.gz can't be inflated (Error -3 while decompressing data: incorrect data check)")


# --- NIfTI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_open_ct_reads_both_versions_and_byte_orders_of_nifti(tmp_path, kind, order):
    image = kind(VOXELS.T, np.eye(4), kind.header_class(endianness=order))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_array_equal(open_ct(tmp_path / "scan.nii").read(), VOXELS)


@pytest.mark.parametrize("slope_inter", [(2, -1024), (1, -1024), (0.5, 0.25)])
def test_open_ct_applies_the_slope_and_intercept_of_nifti(tmp_path, slope_inter):
    # Three stored values, 0, 1 and 4, whose HU are slope * value + intercept.
    image = nib.Nifti1Image(np.array([0, 1, 4], np.uint8).reshape(3, 1, 1), np.eye(4))
    image.header.set_slope_inter(*slope_inter)
    path = tmp_path / "scan.nii.gz"
    raw = image.header.copy()
    raw["magic"], raw["vox_offset"] = b"n+1", 352
    path.write_bytes(gzip.compress(raw.binaryblock + b"\0\0\0\0" + bytes([0, 1, 4])))
    slope, inter = slope_inter
    np.testing.assert_array_equal(open_ct(path).read(), [[[inter, slope + inter, 4 * slope + inter]]])
    np.testing.assert_array_equal(nib.load(path).get_fdata().T, open_ct(path).read())


def test_open_ct_skips_extensions_of_nifti(tmp_path):
    image = nib.Nifti1Image(VOXELS.T, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1000))
    nib.save(image, tmp_path / "scan.nii")
    np.testing.assert_array_equal(open_ct(tmp_path / "scan.nii").read(), VOXELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "scan.nii is no NIfTI file (WrapStructError): fetch or convert it anew"),
        (b"x" * 1000, "scan.nii is no NIfTI file (HeaderDataError)"),
    ],
)
def test_open_ct_refuses_what_is_no_nifti(tmp_path, content, message):
    (tmp_path / "scan.nii").write_bytes(content)
    refused(tmp_path / "scan.nii", message)


# --- DICOM ----------------------------------------------------------------------------------------------------------


def test_open_ct_tolerates_positions_rounded_to_two_decimals(tmp_path):
    # 0.625 mm apart: 0.625 -> 0.62 or 0.63, so that gaps are 0.62 and 0.63.
    ct = open_ct(write_dicom(tmp_path / "series", place(30, 30.62, 31.25, 31.88)))
    # (31.88 - 30) / 3 gaps.
    np.testing.assert_allclose(ct.geometry.spacing_zyx, (0.626667, 0.75, 0.5), atol=1e-6)


# --- series_uid and find_cts ----------------------------------------------------------------------------------------


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
