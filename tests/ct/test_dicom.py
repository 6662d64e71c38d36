"""DICOM series: slices in order, compressed or not, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from ct_files import UID, VOXELS, place, refused, write_dicom
from pydicom.dataset import FileDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)

from luna16_monai.ct.opening import open_ct

# 4 x 5 x 6 voxels (z, y, x), no two alike.
REAL_DICOM = Path(__file__).parents[2] / os.environ.get("LUNA16_SHARED", "../shared") / "data" / "ct_dicom"


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


@pytest.mark.parametrize("content", [b"", b"a licence", b"\0" * 128 + b"DICM"])
def test_open_ct_refuses_another_file_in_a_dicom_folder(tmp_path, content):
    folder = write_dicom(tmp_path / "series")
    (folder / "LICENSE").write_bytes(content)
    refused(folder, "LICENSE is not an image, or is damaged: keep only the DICOM files of one CT in its folder")


def test_open_ct_refuses_a_folder_without_dicom(tmp_path):
    (tmp_path / "series").mkdir()
    refused(tmp_path / "series", "folder 'series' holds no DICOM file: give the folder of one CT series")
    (tmp_path / "series" / "sub").mkdir()
    refused(tmp_path / "series", "sub in folder 'series' is no file: give the folder of one CT series")


def on_slice(k: int, **tags: Any) -> Callable[[int, FileDataset], object]:
    """Set tags of slice k; None removes one."""

    def change(i: int, slice_: FileDataset) -> None:
        if i == k:
            for key, value in tags.items():
                delattr(slice_, key) if value is None else setattr(slice_, key, value)

    return change


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
        (on_slice(0, PixelSpacing=[0.75, 0.6]), "c.dcm and a.dcm differ in size, type, pixel spacing or orientation"),
        (on_slice(0, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "c.dcm and a.dcm differ in size, type"),
        (on_slice(0, Rows=6, Columns=5), "c.dcm and a.dcm differ in size, type"),
        (on_slice(0, RescaleSlope=0.5), "c.dcm and a.dcm differ in size, type"),
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


def test_open_ct_tolerates_positions_rounded_to_two_decimals(tmp_path):
    # 0.625 mm apart: 0.625 -> 0.62 or 0.63, so that gaps are 0.62 and 0.63.
    ct = open_ct(write_dicom(tmp_path / "series", place(30, 30.62, 31.25, 31.88)))
    # (31.88 - 30) / 3 gaps.
    np.testing.assert_allclose(ct.geometry.spacing_zyx, (0.626667, 0.75, 0.5), atol=1e-6)
