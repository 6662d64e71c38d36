"""NIfTI files: what is read, and what is refused."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ct_files import VOXELS, refused, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st

from luna16_monai.ct.opening import open_ct


def test_open_ct_reads_what_nibabel_writes(tmp_path):
    # RAS (0.5 i - 10, 0.75 j - 20, 2 k + 30) is LPS (10 - 0.5 i, 20 - 0.75 j, ...): a scan stored flipped.
    affine = [[0.5, 0, 0, -10], [0, 0.75, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    ct = open_ct(write_nifti(tmp_path / "scan.nii.gz", affine=affine))
    np.testing.assert_array_equal(ct.read(), VOXELS)
    np.testing.assert_array_equal(ct.geometry.world_from_voxel((1, 2, 3)), (8.5, 18.5, 32))


def test_open_ct_drops_trailing_axes_of_length_one(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", VOXELS.T[..., None, None])
    np.testing.assert_array_equal(open_ct(path).read(), VOXELS)


@pytest.mark.parametrize(
    ("data", "affine", "header", "message"),
    [
        (VOXELS.T[..., None].repeat(2, -1), None, {}, "scan.nii has the shape (6, 5, 4, 2): give one 3-D volume"),
        (VOXELS[0], None, {}, "scan.nii has the shape (5, 6): give one 3-D volume"),
        (VOXELS.T.astype(np.complex64), None, {}, "scan.nii holds voxels of type complex64: give HU as whole numbers"),
        (None, None, {"xyzt_units": 3}, "scan.nii is in units of micron: convert it to mm"),
        (None, None, {"sform_code": 0, "qform_code": 0}, "scan.nii does not say where it lies (sform_code and qform"),
        (None, [[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], {}, "scan.nii is sheared: the axes of its"),
        (None, None, {"srow_x": [np.nan, 0, 0, 0]}, "scan.nii: affine [[0.0, 0.0, nan"),
        (None, None, {"srow_x": 0}, "scan.nii: spacing [2.0, 0.75, 0.0] mm (z, y, x): it must be above 0"),
    ],
)
def test_open_ct_refuses_a_nifti_header_that_is_no_ct(tmp_path, data, affine, header, message):
    refused(write_nifti(tmp_path / "scan.nii", data, affine, **header), message)


def test_open_ct_refuses_negative_spacing_in_nifti_and_logs_nothing(tmp_path, capfd):
    path = write_nifti(tmp_path / "scan.nii", pixdim=[1, -0.5, 0.75, 2, 1, 1, 1, 1])
    refused(path, "scan.nii is no NIfTI file (HeaderDataError): fetch or convert it anew")
    assert capfd.readouterr() == ("", "")


def test_open_ct_refuses_a_nifti_file_of_another_length(tmp_path):
    path = write_nifti(tmp_path / "scan.nii")
    content = path.read_bytes()
    # 352 bytes of header, 120 voxels of 2 bytes.
    path.write_bytes(content[:-1])
    refused(path, "scan.nii is too short: 591 bytes, its header says 592")
    path.write_bytes(content + b"x")
    refused(path, "scan.nii is too long: 593 bytes, its header says 592")
    packed = tmp_path / "scan.nii.gz"
    packed.write_bytes(gzip.compress(content)[:-9])
    refused(packed, "scan.nii.gz is too short: it inflates to ")
    packed.write_bytes(gzip.compress(content + b"x"))
    refused(packed, "scan.nii.gz is too long: it inflates to more than the 592 bytes")
    packed.write_bytes(gzip.compress(content)[:100])
    refused(packed, "scan.nii.gz")
    packed.write_bytes(b"no gzip")
    refused(packed, "scan.nii.gz is no NIfTI file (BadGzipFile)")


def test_open_ct_refuses_a_nifti_header_that_asks_for_too_much(tmp_path):
    path = write_nifti(tmp_path / "scan.nii", dim=[3, 10000, 10000, 10000, 1, 1, 1, 1])
    header = path.read_bytes()[:352]
    refused(path, "scan.nii asks for 1000000000000 voxels, the limit is 2147483648")
    packed = tmp_path / "scan.nii.gz"
    packed.write_bytes(gzip.compress(header))
    refused(packed, "scan.nii.gz asks for 1000000000000 voxels")
    packed.write_bytes(gzip.compress(write_nifti(path, dim=[3, 1000, 1000, 1000, 1, 1, 1, 1]).read_bytes()[:352]))
    refused(packed, "scan.nii.gz asks for 2000000000 bytes, more than")


@given(st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), max_size=5), st.binary(max_size=100))
@settings(max_examples=300, deadline=None)
def test_open_ct_survives_any_nifti_header(changes: list, data: bytes):
    header = nib.Nifti1Image(VOXELS.T, np.eye(4)).header
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = bytearray(header.binaryblock)
    for place, value in changes:
        content[place] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scan.nii")
        path.write_bytes(bytes(content) + b"\0\0\0\0" + (data or VOXELS.tobytes()))
        message = ""
        try:
            open_ct(path).read()
        except ValueError as error:
            message = str(error)
        assert "\n" not in message


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
