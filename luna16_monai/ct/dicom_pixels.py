"""The voxels of a CT slice in a DICOM file, in HU.

Pixel data that are not compressed are read by numpy. A codestream goes to GDCM, by way of SimpleITK, in a file that
holds nothing else, so that GDCM's own view of the header (a default where a tag makes no sense, MONOCHROME1 inverted,
no rescale for an unknown SOP class) can't change a value.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom import encaps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import get_j2k_parameters
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, JPEG2000TransferSyntaxes, generate_uid

from luna16_monai.ct.dicom_slice import AGAIN, DicomFile, Slice, is_plain

AIR_HU = -1024
"""What padding counts as that can't be an HU value."""


def read_slice(one: Slice) -> NDArray[Any]:
    """Return a slice's voxels in HU, (y, x): as whole numbers where slope and intercept are, else float64.

    Raises:
        ValueError: the pixel data can't be decoded, contradict the header, or have changed since.
    """
    file = one.file
    padding = file.values.get("PixelPaddingValue", b"")
    raw = _plain_pixels(one) if is_plain(file) else _decoded(one)
    stored, signed = file.number("BitsStored"), file.number("PixelRepresentation") == 1
    padded = None
    if not signed and raw.dtype.itemsize == 2 and len(padding) == 2:
        value = file.number("PixelPaddingValue")
        # a negative number written into unsigned voxels; smaller padding is an HU of its own, as in LIDC-IDRI
        padded = raw == value if value >= 1 << 15 else None
    values = _whole(raw, stored, signed, padded, one.name)
    slope, intercept = one.rescale
    hu: NDArray[Any]
    if slope.is_integer() and intercept.is_integer() and slope < 1 << 15 and abs(intercept) < 1 << 30:
        hu = values * int(slope) + int(intercept)
        if np.int16(-32768) <= hu.min() and hu.max() <= 32767:
            hu = hu.astype(np.int16)
    else:
        hu = values * slope + intercept
    if padded is not None:
        hu[padded] = AIR_HU
    return hu


def _whole(raw: NDArray[Any], stored: int, signed: bool, padded: NDArray[Any] | None, name: str) -> NDArray[np.int64]:
    """Return the values of the stored bits; a value that does not fit them is refused, unless it is padding."""
    values = raw.astype(np.int64)
    if padded is not None:
        values[padded] = 0
    sign = 1 << (stored - 1)
    low, high = (-sign, sign - 1) if signed else (0, 2 * sign - 1)
    if signed and (values.max() > high or values.min() < low) and values.min() >= 0 and values.max() < 2 * sign:
        # the bits above the sign are left 0
        values = (values ^ sign) - sign
    if values.min() < low or values.max() > high:
        raise ValueError(f"{name}: its voxels take more bits than BitsStored {stored}: {AGAIN}")
    return values


def _dtype(file: DicomFile) -> np.dtype[Any]:
    kind = "i" if file.number("PixelRepresentation") else "u"
    order = ">" if file.syntax == ExplicitVRBigEndian else "<"
    return np.dtype(f"{order}{kind}{file.number('BitsAllocated') // 8}")


def _plain_pixels(one: Slice) -> NDArray[Any]:
    count = one.shape_yx[0] * one.shape_yx[1]
    raw = np.fromfile(one.file.path, _dtype(one.file), count, offset=(one.file.pixels or (0, 0))[0])
    if raw.size != count:
        raise ValueError(f"{one.name} shrank to {raw.size} of {count} voxels: is it in use?")
    return raw.reshape(one.shape_yx)


def _decoded(one: Slice) -> NDArray[Any]:
    """Return the voxels of a codestream, as stored, by GDCM."""
    cure = "fetch the series again, or decompress it"
    try:
        with one.file.path.open("rb") as stream:
            stream.seek((one.file.pixels or (0, 0))[0])
            frame = encaps.get_frame(stream, 0, number_of_frames=1)
    except Exception:  # what pydicom raises on damaged fragments
        raise ValueError(f"{one.name} can't be decoded: {cure}") from None
    if one.file.syntax in JPEG2000TransferSyntaxes:
        is_signed = get_j2k_parameters(frame).get("is_signed")
        if is_signed is not None and bool(is_signed) != bool(one.file.number("PixelRepresentation")):
            raise ValueError(
                f"{one.name}: its JPEG 2000 codestream is {'signed' if is_signed else 'unsigned'}, its "
                f"PixelRepresentation says otherwise, so its HU are unknown: {AGAIN}"
            )
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder, "pixels.dcm")
        _write_bare(bare, one, frame)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(bare))
        try:
            raw = sitk.GetArrayFromImage(reader.Execute())[0]
        except RuntimeError:
            raise ValueError(f"{one.name} can't be decoded: {cure}") from None
    if raw.shape != one.shape_yx:
        raise ValueError(f"{one.name}: its pixel data are of another size than Rows and Columns say: {cure}")
    # GDCM may choose another type of the same width
    return raw if raw.dtype.itemsize != _dtype(one.file).itemsize else raw.view(_dtype(one.file).newbyteorder("="))


def _write_bare(path: Path, one: Slice, frame: bytes) -> None:
    """Write a DICOM file that holds nothing but pixel data and how they are coded."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(one.file.syntax)
    bare = Dataset()
    bare.file_meta = meta
    bare.SOPClassUID = meta.MediaStorageSOPClassUID = CTImageStorage
    bare.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    bare.Modality, bare.SamplesPerPixel, bare.PhotometricInterpretation = "CT", 1, "MONOCHROME2"
    bare.Rows, bare.Columns = one.shape_yx
    for keyword in ("BitsAllocated", "BitsStored", "PixelRepresentation"):
        setattr(bare, keyword, one.file.number(keyword))
    bare.HighBit, bare.RescaleSlope, bare.RescaleIntercept = bare.BitsStored - 1, 1, 0
    bare.PixelData = encaps.encapsulate([frame])
    bare["PixelData"].VR, bare["PixelData"].is_undefined_length = "OB", True
    bare.save_as(path, enforce_file_format=True)
