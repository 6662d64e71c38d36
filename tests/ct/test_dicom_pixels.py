"""The voxels of DICOM slices: signs, padding, rescale and codestreams become HU."""

from __future__ import annotations

import numpy as np
import pydicom
from ct_files import VOXELS
from dicom_changes import refused, write
from pydicom.dataset import FileDataset
from pydicom.uid import JPEG2000Lossless

from luna16_monai.ct.opening import open_ct


def test_open_ct_rescales_each_slice_by_its_own_slope(tmp_path):
    # the stored value of slice 1 is twice as large, its slope half: the same HU
    def change(k: int, slice_: FileDataset) -> None:
        if k == 1:
            slice_.RescaleSlope = "0.5"
            slice_.PixelData = ((VOXELS[k].astype(int) + 1024) * 2).astype("<u2").tobytes()

    hu = open_ct(write(tmp_path / "series", change)).read()
    assert hu.dtype == np.int16
    np.testing.assert_array_equal(hu, VOXELS)


def test_open_ct_extends_the_sign_of_twelve_bits(tmp_path):
    # -1024 in 12 bits is 0xC00, in 16 it is 0xFC00: scanners write either
    for mask in (0x0FFF, 0xFFFF):

        def change(k: int, slice_: FileDataset, mask: int = mask) -> None:
            slice_.PixelRepresentation, slice_.RescaleIntercept = 1, "0"
            slice_.PixelData = (VOXELS[k].astype(np.int64) & mask).astype("<u2").tobytes()

        folder = write(tmp_path / f"series{mask}", change)
        np.testing.assert_array_equal(open_ct(folder).read(), VOXELS)


def test_open_ct_reads_unsigned_padding_as_air(tmp_path):
    # -2000 written into unsigned voxels is 63536, which would be bone of 62512 HU
    def change(k: int, slice_: FileDataset) -> None:
        stored = (VOXELS[k] + 1024).astype("<u2")
        stored[0, 0] = 63536
        slice_.BitsStored, slice_.HighBit = 16, 15
        slice_.add_new(0x00280120, "US", 63536)
        slice_.PixelData = stored.tobytes()

    expected = VOXELS.copy()
    expected[:, 0, 0] = -1024
    np.testing.assert_array_equal(open_ct(write(tmp_path / "series", change)).read(), expected)


def test_open_ct_keeps_signed_padding(tmp_path):
    # as in LIDC-IDRI: -2000 in signed voxels, its PixelPaddingValue written as 63536
    def change(k: int, slice_: FileDataset) -> None:
        stored = (VOXELS[k].astype(np.int64) + 1024).astype("<i2")
        stored[0, 0] = -2000
        slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 15, 1
        slice_.add_new(0x00280120, "US", 63536)
        slice_.PixelData = stored.tobytes()

    assert open_ct(write(tmp_path / "series", change)).read()[0, 0, 0] == -3024


def test_open_ct_refuses_a_jpeg_2000_slice_of_another_sign(tmp_path):
    folder = write(tmp_path / "series", lambda k, slice_: None)
    # the start of a codestream: two markers, the second of 41 bytes; 6 x 5, one component of 12 bits, signed (0x8B)
    size = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + b"".join(n.to_bytes(4, "big") for n in (6, 5, 0, 0, 6, 5, 0, 0))
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        slice_.file_meta.TransferSyntaxUID = JPEG2000Lossless
        slice_.PixelData = pydicom.encaps.encapsulate([size + b"\x00\x01\x8b\x01\x01" + b"\0" * 40])
        slice_["PixelData"].VR, slice_["PixelData"].is_undefined_length = "OB", True
        slice_.save_as(file)
    refused(folder, "c.dcm: its JPEG 2000 codestream is signed, its PixelRepresentation says otherwise")
