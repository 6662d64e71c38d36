"""CTs of every format: good ones read as SimpleITK and nibabel read them, bad ones refused with a cure."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from ct_files import CANARY, ROTATED, UID, VOXELS, write_ct, write_dicom, write_nifti
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged, Spacingd
from pydicom.dataset import FileDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from luna16_monai.ct.folders import CTFile, find_cts
from luna16_monai.ct.opening import open_ct, read_geometry, series_uid
from luna16_monai.store.reader import CTReader

# 4 x 5 x 6 voxels (z, y, x), no two alike.
REAL_DICOM = Path(__file__).parents[2] / os.environ.get("LUNA16_SHARED", "../shared") / "data" / "ct_dicom"


def refused(path: Path, message: str, error: type[Exception] = ValueError) -> None:
    """The CT is refused with one line, which holds the message, no absolute path and no patient's name."""
    with pytest.raises(error, match=re.escape(message)) as caught:
        open_ct(path).read()
    text = str(caught.value)
    assert "\n" not in text
    assert str(path.parent) not in text
    assert CANARY not in text


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


def test_open_ct_reads_what_nibabel_writes(tmp_path):
    # RAS (0.5 i - 10, 0.75 j - 20, 2 k + 30) is LPS (10 - 0.5 i, 20 - 0.75 j, ...): a scan stored flipped.
    affine = [[0.5, 0, 0, -10], [0, 0.75, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    ct = open_ct(write_nifti(tmp_path / "scan.nii.gz", affine=affine))
    np.testing.assert_array_equal(ct.read(), VOXELS)
    np.testing.assert_array_equal(ct.geometry.world_from_voxel((1, 2, 3)), (8.5, 18.5, 32))


def test_open_ct_refuses_another_file(tmp_path):
    (tmp_path / "scan.png").write_bytes(b"x")
    refused(tmp_path / "scan.png", "scan.png is no CT: give .mhd, .mha, .nii, .nii.gz or a folder of DICOM files")
    refused(tmp_path / "none.nii", "none.nii is missing (No such file or directory): check the path", FileNotFoundError)


@pytest.mark.parametrize("name", ["scan.mhd", "scan.mha", "scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_read_refuses_voxels_that_are_not_finite(tmp_path, name, value):
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = voxels[3, 0, 0] = value
    path = write_ct(tmp_path / name, voxels)
    refused(path, f"{name}: 2 voxels are NaN or infinite, the first at (z, y, x) = (1, 2, 3): convert the scan anew")


@pytest.mark.parametrize(
    ("stored", "values", "expected"),
    [
        ("int16", [-32768, 32767], "int16"),
        ("uint8", [0, 255], "int16"),
        ("int8", [-128, 127], "int16"),
        ("uint16", [0, 32767], "int16"),
        ("uint16", [0, 32768], "float32"),
        ("int32", [-32768, 32767], "int16"),
        ("int32", [-32769, 0], "float32"),
        # 2^24 + 1 is the first whole number that float32 lacks.
        ("int32", [0, 2**24 + 1], "float64"),
        ("float32", [-1024, 3071], "int16"),
        ("float32", [-1024, 0.5], "float32"),
        ("float32", [-1024, 1e10], "float32"),
        ("float64", [-1024, 3071], "int16"),
        ("float64", [-1024, 0.5], "float32"),
        ("float64", [-1024, 0.1], "float64"),
        ("float64", [-1024, 1e300], "float64"),
    ],
)
def test_read_keeps_every_value_in_the_smallest_type(tmp_path, stored, values, expected):
    voxels = np.array(values, stored).reshape(1, 1, 2)
    hu = open_ct(write_ct(tmp_path / "scan.mhd", voxels)).read()
    assert hu.dtype == expected
    np.testing.assert_array_equal(hu, voxels)


@pytest.mark.parametrize("value", [2**60, -(2**60)])
def test_read_refuses_whole_numbers_that_no_type_of_ours_holds(tmp_path, value):
    path = write_ct(tmp_path / "scan.mhd", np.array([0, value], np.int64).reshape(1, 1, 2))
    refused(path, "scan.mhd: voxels beyond 2^53, which are no HU")


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


def test_open_ct_reads_a_negative_pixdim_of_nifti_beside_a_right_sform_and_logs_nothing(tmp_path, capfd):
    path = write_nifti(tmp_path / "scan.nii", pixdim=[1, -0.5, 0.75, 2, 1, 1, 1, 1])
    assert open_ct(path).geometry.spacing_zyx == (2, 0.75, 0.5)
    path = write_nifti(tmp_path / "scan.nii", pixdim=[1, -0.5, 0.75, 2, 1, 1, 1, 1], sform_code=0, qform_code=1)
    refused(path, "scan.nii is no NIfTI file (HeaderDataError): fetch or convert it anew")
    assert capfd.readouterr() == ("", "")


def test_open_ct_refuses_a_nifti_whose_sform_and_pixdim_differ(tmp_path):
    # ITK and nibabel would read 1 mm where the voxels are 0.5 x 0.75 x 2 mm
    path = write_nifti(tmp_path / "scan.nii", srow_x=[1, 0, 0, 0], srow_y=[0, 1, 0, 0], srow_z=[0, 0, 1, 0])
    refused(path, "scan.nii: its sform has a spacing of 1 x 1 x 1 mm, its pixdim says 0.5 x 0.75 x 2 mm")


def test_open_ct_takes_an_exact_qform_where_the_sform_is_off_by_rounding(tmp_path):
    # y leans by 3e-4 of its length towards x; the qform is exact
    affine = np.diag([0.5, 0.75, 2, 1.0])
    image = nib.Nifti1Image(VOXELS.T, affine)
    image.set_qform(affine, 1)
    leaning = affine.copy()
    leaning[0, 1] = 0.75 * 3e-4
    image.set_sform(leaning, 1)
    nib.save(image, tmp_path / "scan.nii")
    # RAS (0.5 i, 0.75 j, 2 k) is LPS (-0.5 i, -0.75 j, 2 k)
    np.testing.assert_array_equal(open_ct(tmp_path / "scan.nii").geometry.world_from_voxel((1, 2, 3)), (-1.5, -1.5, 2))
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "scan.nii")
    axes = open_ct(tmp_path / "scan.nii").geometry.affine[:3, :3] / (2, 0.75, 0.5)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)


def test_open_ct_reads_several_gzip_members_and_zeros_behind_them(tmp_path):
    content = write_nifti(tmp_path / "scan.nii").read_bytes()
    packed = tmp_path / "scan.nii.gz"
    members = b"".join(gzip.compress(content[start : start + 100]) for start in range(0, len(content), 100))
    for end in (b"", gzip.compress(b""), b"\0" * 512, b"\0" * (1 << 21)):
        packed.write_bytes(members + end)
        np.testing.assert_array_equal(open_ct(packed).read(), VOXELS)
    for end in (b"x", b"\0" * 512 + b"x", gzip.compress(b"y"), b"\x1f"):
        packed.write_bytes(members + end)
        refused(packed, "scan.nii.gz is too long")
    packed.write_bytes(members[:-9])
    refused(packed, "scan.nii.gz is too short")


def test_open_ct_tells_gzip_by_its_bytes_and_not_by_its_name(tmp_path):
    content = write_nifti(tmp_path / "scan.nii").read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(content)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(content))
    for name in ("plain.nii.gz", "packed.nii"):
        np.testing.assert_array_equal(open_ct(tmp_path / name).read(), VOXELS)


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


# --- DICOM ----------------------------------------------------------------------------------------------------------


def test_open_ct_puts_dicom_slices_in_order(tmp_path):
    ct = open_ct(write_dicom(tmp_path / "series"))
    voxels = ct.read()
    np.testing.assert_array_equal(voxels, VOXELS)
    # GDCM may give a wider type; HU stay int16.
    assert voxels.dtype == np.int16
    assert ct.geometry.shape_zyx == (4, 5, 6)
    assert ct.geometry.spacing_zyx == (2, 0.75, 0.5)
    np.testing.assert_array_equal(ct.geometry.world_from_voxel((1, 2, 3)), (11.5, 21.5, 32))


def test_open_ct_orders_dicom_slices_along_their_normal(tmp_path):
    # Rows point to +y, columns to +z: the normal, their cross product, is +x.
    def sagittal(k: int, slice_: FileDataset) -> None:
        slice_.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
        slice_.ImagePositionPatient = [10 + 2 * k, 20, 30]

    ct = open_ct(write_dicom(tmp_path / "series", sagittal))
    np.testing.assert_array_equal(ct.read(), VOXELS)
    # x = 10 + 1 * 2, y = 20 + 3 * 0.5, z = 30 + 2 * 0.75.
    np.testing.assert_allclose(ct.geometry.world_from_voxel((1, 2, 3)), (12, 21.5, 31.5), atol=1e-12)


def enlarge(k: int, slice_: FileDataset) -> None:
    """Tile a slice to 60 x 60, as the codecs of GDCM fail on tiny images."""
    slice_.Rows = slice_.Columns = 60
    slice_.PixelData = np.tile(VOXELS[k] + 1024, (12, 10)).astype(np.uint16).tobytes()


@pytest.mark.parametrize(("compressor", "syntax"), [("JPEG2000", JPEG2000Lossless), ("JPEG", JPEGLosslessSV1)])
def test_open_ct_reads_jpeg_transfer_syntaxes(tmp_path, compressor, syntax):
    folder = write_dicom(tmp_path / "series", enlarge)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    for file in folder.iterdir():
        image = sitk.ReadImage(str(file))
        writer.SetFileName(str(file))
        writer.Execute(image)
    assert pydicom.dcmread(folder / "a.dcm").file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(open_ct(folder).read(), np.tile(VOXELS, (1, 12, 10)))


def test_open_ct_reads_the_run_length_transfer_syntax(tmp_path):
    folder = write_dicom(tmp_path / "series", lambda k, slice_: (enlarge(k, slice_), slice_.compress(RLELossless)))
    np.testing.assert_array_equal(open_ct(folder).read(), np.tile(VOXELS, (1, 12, 10)))


def test_open_ct_refuses_a_transfer_syntax_that_nobody_can_decode(tmp_path):
    # Named JPEG 2000, filled with something else.
    def pretend(k: int, slice_: FileDataset) -> None:
        slice_.file_meta.TransferSyntaxUID = JPEG2000Lossless
        slice_.PixelData = pydicom.encaps.encapsulate([b"no codestream" * 10])
        slice_["PixelData"].is_undefined_length = True

    refused(write_dicom(tmp_path / "series", pretend), "c.dcm can't be decoded: fetch the series again")


def test_open_ct_ignores_dicomdir_and_dotfiles(tmp_path):
    folder = write_dicom(tmp_path / "series")
    for name in ("DICOMDIR", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    np.testing.assert_array_equal(open_ct(folder).read(), VOXELS)


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM", b"\0" * 500])
def test_open_ct_refuses_a_damaged_file_in_a_dicom_folder(tmp_path, content):
    folder = write_dicom(tmp_path / "series")
    (folder / "IM5").write_bytes(content)
    refused(folder, "IM5")


def test_open_ct_refuses_a_folder_without_dicom(tmp_path):
    (tmp_path / "series").mkdir()
    refused(tmp_path / "series", "folder 'series' holds no DICOM file: give the folder of one CT series")
    (tmp_path / "series" / "sub").mkdir()
    refused(tmp_path / "series", "folder 'series' holds no CT slice: give the folder of one CT series")


def on_slice(k: int, **tags: Any) -> Callable[[int, FileDataset], object]:
    """Set tags of slice k; None removes one."""

    def change(i: int, slice_: FileDataset) -> None:
        if i == k:
            for key, value in tags.items():
                delattr(slice_, key) if value is None else setattr(slice_, key, value)

    return change


def place(*z_mm: float) -> Callable[[int, FileDataset], object]:
    return lambda k, slice_: setattr(slice_, "ImagePositionPatient", [10, 20, z_mm[k]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Slices 0 to 3 are c, a, d and b.
        (
            on_slice(1, SeriesInstanceUID=UID + ".9"),
            "b.dcm and a.dcm are of different series: keep one series a folder",
        ),
        (on_slice(0, SeriesInstanceUID=None), "c.dcm: no valid SeriesInstanceUID: export the scan anew"),
        (on_slice(0, ImagePositionPatient=None), "c.dcm: ImagePositionPatient is missing, so its place is unknown"),
        (on_slice(0, ImageOrientationPatient=None), "c.dcm: ImageOrientationPatient is missing"),
        (on_slice(0, PixelSpacing=None), "c.dcm: PixelSpacing is missing"),
        (on_slice(0, Modality="MR"), "c.dcm is no CT slice (Modality is not CT)"),
        (on_slice(0, Modality=None), "c.dcm is no CT slice (Modality is not CT)"),
        (on_slice(0, PixelSpacing=[0.75, 0.6]), "c.dcm and a.dcm differ in pixel spacing, and 1 of 4 files differ"),
        (on_slice(0, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "c.dcm and a.dcm differ in orientation"),
        (on_slice(0, Rows=6, Columns=5), "c.dcm and a.dcm differ in size"),
        (place(30, 32, 36, 38), "1 slice(s) missing: a.dcm and d.dcm are 4.000 mm apart, other slices 2.000 mm"),
        (place(30, 36, 38, 40), "2 slice(s) missing: c.dcm and a.dcm are 6.000 mm apart, other slices 2.000 mm"),
        (place(30, 32, 34, 37), "unequal spacing: d.dcm and b.dcm are 3.000 mm apart, other slices 2.000 mm: resample"),
        (place(30, 32, 34, 36.05), "unequal spacing: d.dcm and b.dcm are 2.050 mm apart"),
        (place(30, 32, 32, 34), "a.dcm and d.dcm lie at the same place: keep one volume a folder"),
        (place(30, 30, 30, 30), "a.dcm and b.dcm lie at the same place"),
        # A gantry tilted by 14 degrees moves each slice by 0.5 mm along y.
        (
            lambda k, slice_: setattr(slice_, "ImagePositionPatient", [10, 20 + 0.5 * k, 30 + 2 * k]),
            "slices of 'series' are up to 1.50 mm off the line at right angles to them (a tilted gantry)",
        ),
    ],
)
def test_open_ct_refuses_a_dicom_series_that_is_no_regular_volume(tmp_path, change, message):
    refused(write_dicom(tmp_path / "series", change), message)


def test_open_ct_tolerates_positions_rounded_to_two_decimals(tmp_path):
    # 0.625 mm apart: 0.625 -> 0.62 or 0.63, so that gaps are 0.62 and 0.63.
    ct = open_ct(write_dicom(tmp_path / "series", place(30, 30.62, 31.25, 31.88)))
    # (31.88 - 30) / 3 gaps.
    np.testing.assert_allclose(ct.geometry.spacing_zyx, (0.626667, 0.75, 0.5), atol=1e-6)


def test_open_ct_refuses_a_single_dicom_slice(tmp_path):
    folder = write_dicom(tmp_path / "series")
    for name in ("b.dcm", "c.dcm", "d.dcm"):
        (folder / name).unlink()
    refused(folder, "a.dcm is the only slice: a CT needs at least two")


def test_open_ct_refuses_every_truncated_dicom_slice(tmp_path):
    folder = write_dicom(tmp_path / "series")
    content = (folder / "d.dcm").read_bytes()
    for cut in range(0, len(content), 5):
        (folder / "d.dcm").write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"d\.dcm"):
            open_ct(folder).read()


def test_open_ct_refuses_dicom_sizes_that_the_files_cannot_hold(tmp_path):
    folder = write_dicom(tmp_path / "series", lambda k, s: setattr(s, "Rows", 60000) or setattr(s, "Columns", 8000))
    refused(folder, "a.dcm is too short: 60 bytes of pixel data, its header says 960000000")
    # What is compressed says no length: 480 million voxels a slice are below the limit, but not in files so small.
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        slice_.file_meta.TransferSyntaxUID = JPEG2000Lossless
        slice_.PixelData = pydicom.encaps.encapsulate([b"x"])
        slice_["PixelData"].is_undefined_length = True
        slice_.save_as(file)
    refused(folder, "series asks for 3840000000 bytes, more than")


@pytest.mark.parametrize("length", [2, 4, 30, 58])
def test_open_ct_refuses_dicom_pixel_data_that_are_too_short(tmp_path, length):
    # GDCM would fill the slice up with what the memory held before.
    folder = write_dicom(tmp_path / "series", lambda k, s: k == 2 and setattr(s, "PixelData", s.PixelData[:length]))
    refused(folder, f"d.dcm is too short: {length} bytes of pixel data, its header says 60: fetch the series again")


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_open_ct_finds_dicom_pixel_data_behind_sequences(tmp_path, syntax, undefined):
    folder = write_dicom(tmp_path / "series")
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        icon, item = pydicom.Dataset(), pydicom.Dataset()
        icon.Rows, icon.Columns, icon.BitsAllocated, icon.PixelData = 1, 1, 8, b"xx"
        icon["PixelData"].VR = "OB"
        item.IconImageSequence = [icon]
        slice_.ReferencedImageSequence = [item, pydicom.Dataset()]
        slice_["ReferencedImageSequence"].is_undefined_length = undefined
        item.is_undefined_length_sequence_item = undefined
        slice_.file_meta.TransferSyntaxUID = syntax
        values = np.frombuffer(slice_.PixelData, "<u2")
        slice_.PixelData = values.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
        slice_["PixelData"].VR = "OW"
        form = {"implicit_vr": syntax.is_implicit_VR, "little_endian": syntax.is_little_endian}
        pydicom.dcmwrite(file, slice_, force_encoding=True, **form)
    np.testing.assert_array_equal(open_ct(folder).read(), VOXELS)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("ImageOrientationPatient", [2, 0, 0, 0, 1, 0]),
        ("ImageOrientationPatient", [1, 0, 0, 0.3, 1, 0]),
        ("ImageOrientationPatient", [1, 0, 0]),
        ("PixelSpacing", [0, 0]),
        ("PixelSpacing", [0.5]),
        ("ImagePositionPatient", [10, 20]),
    ],
)
def test_open_ct_refuses_a_dicom_place_that_makes_no_sense(tmp_path, tag, value):
    # GDCM would take a default in its place, for all slices alike.
    folder = write_dicom(tmp_path / "series", lambda k, s: setattr(s, tag, value))
    with pytest.raises(ValueError, match=rf"[a-d]\.dcm: {tag} makes no sense, so its place is unknown"):
        open_ct(folder)


def test_open_ct_refuses_a_dicom_link_out_of_the_folder(tmp_path):
    folder = write_dicom(tmp_path / "series")
    (folder / "a.dcm").rename(tmp_path / "a.dcm")
    (folder / "a.dcm").symlink_to(tmp_path / "a.dcm")
    refused(folder, "a.dcm is reached through a symbolic link that leaves the data folder 'series'")
    np.testing.assert_array_equal(open_ct(folder, allow_symlinks=True).read(), VOXELS)


def test_ct_reader_passes_on_no_dicom_tag(tmp_path):
    image = LoadImage(CTReader)(write_dicom(tmp_path / "series"))
    assert CANARY not in repr(image.meta)
    assert CANARY.encode() not in pickle.dumps(image.meta)


@pytest.mark.skipif(not REAL_DICOM.is_dir(), reason="no real CT: set LUNA16_SHARED to the folder with data/ct_dicom")
def test_open_ct_reads_a_real_dicom_ct():
    ct = open_ct(REAL_DICOM)
    voxels = ct.read()
    assert voxels.shape == ct.geometry.shape_zyx == (99, 512, 512)
    assert voxels.dtype == np.int16
    assert (voxels.min(), voxels.max()) == (-1024, 3071)
    np.testing.assert_allclose(ct.geometry.spacing_zyx, (3, 0.564453125, 0.564453125), rtol=1e-12)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(REAL_DICOM)))
    image = reader.Execute()
    np.testing.assert_array_equal(voxels, sitk.GetArrayViewFromImage(image))
    last = image.TransformIndexToPhysicalPoint((511, 511, 98))
    np.testing.assert_allclose(ct.geometry.world_from_voxel((98, 511, 511)), last, atol=1e-9)


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


# --- MONAI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [CTReader, CTReader(), "luna16_monai.store.reader.CTReader"])
@pytest.mark.parametrize("name", ["scan.mhd", "scan.nii.gz", "series"])
def test_ct_reader_gives_monai_axes_and_a_ras_affine(tmp_path, reader, name):
    path = write_dicom(tmp_path / name) if name == "series" else write_ct(tmp_path / name)
    image = LoadImaged("image", reader=reader)({"image": path})["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), VOXELS.T)
    # LPS (10 + 0.5 i, 20 + 0.75 j, 30 + 2 k) is RAS (-10 - 0.5 i, -20 - 0.75 j, 30 + 2 k).
    expected = [[-0.5, 0, 0, -10], [0, -0.75, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(image.meta["original_affine"], expected, atol=1e-6)
    assert image.meta["space"] == "RAS"
    assert tuple(image.meta["spatial_shape"]) == (6, 5, 4)
    assert np.isnan(image.meta["original_channel_dim"])
    assert image.meta["filename_or_obj"] == str(path)


def test_ct_reader_keeps_int16_where_asked(tmp_path):
    image = LoadImage(CTReader, dtype=None)(write_ct(tmp_path / "scan.mhd"))
    assert image.dtype == torch.int16


def test_ct_reader_agrees_with_monais_reader_of_nifti(tmp_path):
    path = write_ct(tmp_path / "scan.nii.gz", direction=ROTATED)
    ours, theirs = LoadImage(CTReader)(path), LoadImage("NibabelReader")(path)
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor())
    torch.testing.assert_close(ours.affine, theirs.affine, rtol=0, atol=1e-6)
    assert tuple(ours.meta["spatial_shape"]) == tuple(theirs.meta["spatial_shape"])
    assert np.isnan(theirs.meta["original_channel_dim"])


def test_ct_reader_feeds_a_pipeline(tmp_path):
    # A ramp along x, 1 HU a voxel of 0.5 mm, which runs backwards in the world.
    voxels = np.broadcast_to(np.arange(6, dtype=np.int16), (4, 5, 6)).copy()
    path = write_ct(tmp_path / "scan.mhd", voxels, np.diag([-1, -1, 1]))
    pipeline = Compose(
        [LoadImaged("image", reader=CTReader), EnsureChannelFirstd("image"), Spacingd("image", (0.25, 0.75, 2.0))]
    )
    image = pipeline({"image": path})["image"]
    # 6 voxels of 0.5 mm span 2.5 mm from centre to centre: 11 of 0.25 mm, half a HU apart.
    assert image.shape == (1, 11, 5, 4)
    np.testing.assert_allclose(image[0, :, 2, 2].numpy(), np.arange(11) / 2, atol=1e-3)
    np.testing.assert_allclose(
        image.affine.numpy(), [[0.25, 0, 0, -10], [0, 0.75, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]]
    )


def test_ct_reader_leaves_no_refused_file_to_the_next_reader(tmp_path):
    shear = [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    path = write_nifti(tmp_path / "scan.nii", affine=shear)
    assert LoadImage("NibabelReader")(path).shape == (6, 5, 4)  # which would have taken it
    with pytest.raises(ValueError, match=r"scan\.nii is sheared"):
        LoadImaged("image", reader=CTReader)({"image": path})


def test_ct_reader_refuses_several_files(tmp_path):
    path = write_ct(tmp_path / "scan.mhd")
    with pytest.raises(ValueError, match="2 paths for one CT: give one file, or one folder of DICOM files"):
        LoadImage(CTReader)([path, path])


def test_ct_reader_passes_on_the_rule_for_links(tmp_path):
    write_ct(tmp_path / "disk" / "scan.mha")
    link = tmp_path / "data" / "scan.mha"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "disk" / "scan.mha")
    with pytest.raises(ValueError, match="leaves the data folder 'data'"):
        LoadImage(CTReader)(link)
    assert LoadImage(CTReader(allow_symlinks=True))(link).shape == (6, 5, 4)
    assert LoadImage(CTReader(data_dir=tmp_path))(link).shape == (6, 5, 4)


def test_ct_reader_knows_its_suffixes(tmp_path):
    reader = CTReader()
    assert reader.verify_suffix("a/scan.mhd")
    assert reader.verify_suffix([tmp_path, "scan.NII.gz"])
    assert not reader.verify_suffix(["scan.mhd", "scan.png"])
