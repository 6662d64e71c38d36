"""One slice of a CT as a DICOM file: the named tags that place it and give it HU.

pydicom walks over the file's elements; of their values only those listed here are looked at, as the bytes that stand
in the file: no other tag reaches a message, the metadata or a file (structured_report.py, on request, has a list of
its own). pydicom's own conversion of values is left out, since its warnings repeat them. `dicom_pixels` reads the
voxels.
"""

from __future__ import annotations

import logging
import math
import mmap
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.filereader import read_file_meta_info, read_partial
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    UncompressedTransferSyntaxes,
)

TAGS = {
    "ImageType": 0x00080008,
    "SOPInstanceUID": 0x00080018,
    "ContentTime": 0x00080033,
    "Modality": 0x00080060,
    "EchoNumbers": 0x00180086,
    "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
}
"""Every tag whose value is looked at, but for the transfer syntax."""
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
# No value that is looked at is longer: ImageOrientationPatient has six numbers of 16 characters.
_LONGEST_VALUE = 1024
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# -1.024 for -1024: a whole number of thousands written with a dot. No scanner's offset is so small.
_THOUSANDS_DOT = re.compile(r"[+-]?[1-9]\.\d{3}", re.ASCII)
_DAMAGED = "is damaged or no DICOM file: fetch the series again"
AGAIN = "export the scan anew"


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file's named values, as they stand in it, and where its pixel data are.

    Attributes:
        path: the file.
        syntax: its transfer syntax; empty where it says none.
        big_endian: the order of its bytes.
        values: the values of `TAGS` that it has, by keyword.
        pixels: where the pixel data start and how long they are by the file's own word; None where there are none.
    """

    path: Path
    syntax: str
    big_endian: bool
    values: dict[str, bytes]
    pixels: tuple[int, int] | None

    def text(self, keyword: str) -> str:
        """Return a value as text, without its padding; empty where the file has none."""
        return self.values.get(keyword, b"").decode("latin-1").strip(" \0")

    def number(self, keyword: str, default: int | None = None) -> int:
        """Return a value of one unsigned 16-bit number.

        Raises:
            ValueError: it is missing without a default, or is not of two bytes.
        """
        value = self.values.get(keyword, b"")
        if not value and default is not None:
            return default
        if len(value) != 2:
            raise ValueError(f"{self.path.name}: {keyword} is missing or makes no sense: {AGAIN}")
        return int(struct.unpack(">H" if self.big_endian else "<H", value)[0])

    def numbers(self, keyword: str, count: int) -> list[float]:
        """Return a value of so many decimal numbers.

        Raises:
            ValueError: it is missing, or is something else.
        """
        text = self.text(keyword)
        words = [word.strip(" \0") for word in text.split("\\")]
        if not text:
            raise ValueError(f"{self.path.name}: {keyword} is missing{_so(keyword)}: {AGAIN}")
        values = [float(word) if _NUMBER.fullmatch(word) else math.nan for word in words]
        if len(values) != count or not all(map(math.isfinite, values)):
            raise ValueError(f"{self.path.name}: {keyword} makes no sense{_so(keyword)}: {AGAIN}")
        return values


def _so(keyword: str) -> str:
    return ", so its HU are unknown" if keyword.startswith("Rescale") else ", so its place is unknown"


def read_file(path: Path) -> DicomFile | None:
    """Return a DICOM file's named values, or None for a file of another kind.

    Raises:
        ValueError: the file is empty, cut off or damaged, or its data set is deflated.
    """
    with path.open("rb") as stream:
        start = stream.read(136)
    # an empty file, zeros alone, or less than a preamble: a slice that was cut off or never filled
    cut = not start.strip(b"\0") or (len(start) < 136 and b"\0" in start)
    if not cut and start[128:132] != b"DICM" and not _is_bare(start):
        return None
    if cut:
        raise ValueError(f"{path.name} {_DAMAGED}")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            with _silent_pydicom():
                return _walked(path, cast(BinaryIO, content), len(content), start[128:132] == b"DICM")
        except _Refused as error:
            raise ValueError(f"{path.name} {error}") from None
        except Exception:  # whatever pydicom raises on a damaged file; its text may hold values
            raise ValueError(f"{path.name} {_DAMAGED}") from None


@contextmanager
def _silent_pydicom() -> Iterator[None]:
    """Keep pydicom from repeating a value in its warnings or its log, such as a character set that it does not know."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


class _Refused(ValueError):
    """A refusal of ours, whose words may be shown."""


def _is_bare(start: bytes) -> bool:
    """Return whether a file without preamble starts with an element of group 2 or 8, in either order of bytes."""
    if len(start) < 8 or start[:4] in (b"\x08\0\x08\0", b"\0\x08\0\x08"):
        return len(start) >= 8
    group, element, length = struct.unpack("<HHI", start[:8])
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return group in (2, 8) and element < 0x3000 and (explicit or length < _LONGEST_VALUE)


def _walked(path: Path, content: BinaryIO, size: int, has_meta: bool) -> DicomFile:
    # before pydicom would inflate it, to a thousand times its size
    if has_meta:
        deflated = read_file_meta_info(path).get("TransferSyntaxUID", "") == DeflatedExplicitVRLittleEndian
    else:
        deflated = DeflatedExplicitVRLittleEndian.encode() in content.read()
        content.seek(0)
    if deflated:
        raise _Refused("is deflated as a whole: export the scan anew, without deflating it")
    found: list[int] = []

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        if tag == _PIXEL_DATA:
            found.append(length)
        return bool(tag >= _PIXEL_DATA)

    header = read_partial(content, at_pixels, _LONGEST_VALUE, force=True, specific_tags=list(TAGS.values()))
    pixels = None
    if found:
        # pydicom went back to the element's tag
        at = content.tell()
        content.seek(at + 4)
        long_form = content.read(2) in (b"OB", b"OW", b"UN")
        pixels = at + (12 if long_form else 8), found[0]
    syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
    big = not header.original_encoding[1] if header.original_encoding[1] is not None else False
    values = {}
    for keyword, tag in TAGS.items():
        raw = header.get_item(tag) if tag in header else None
        if raw is not None and isinstance(raw.value, bytes):
            values[keyword] = raw.value
        elif raw is not None and keyword in ("RescaleSlope", "RescaleIntercept"):
            values[keyword] = b""
    return DicomFile(path, syntax, big, values, pixels)


@dataclass(frozen=True)
class Slice:
    """A CT slice that has passed its checks; its voxels are not read yet.

    Attributes:
        file: what the file says.
        shape_yx: rows and columns.
        spacing_yx: mm between rows, and between columns.
        position_xyz: world LPS mm of its first voxel.
        axes: (2, 3), the directions in which a row and a column run.
        rescale: slope and intercept.
    """

    file: DicomFile
    shape_yx: tuple[int, int]
    spacing_yx: tuple[float, float]
    position_xyz: tuple[float, float, float]
    axes: NDArray[np.float64]
    rescale: tuple[float, float]

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return self.file.path.name


def as_slice(file: DicomFile) -> Slice:
    """Return what a file says of its slice.

    Raises:
        ValueError: it is no single grey slice of a CT, or its place or its HU are unknown.
    """
    name = file.path.name
    frames = file.text("NumberOfFrames")
    if frames not in ("", "1"):
        raise ValueError(
            f"{name} is a multi-frame (Enhanced) CT, which is not read: convert it to one file a slice, for example "
            "with dcm4che's emf2sf, or to NIfTI with dcm2niix"
        )
    x, y, z = file.numbers("ImagePositionPatient", 3)
    axes = np.reshape(file.numbers("ImageOrientationPatient", 6), (2, 3))
    between_rows, between_columns = file.numbers("PixelSpacing", 2)
    if not (between_rows > 0 and between_columns > 0):
        raise ValueError(f"{name}: PixelSpacing makes no sense, so its place is unknown: {AGAIN}")
    if file.text("Modality") != "CT":
        raise ValueError(f"{name} is no CT slice (Modality is not CT): keep only the files of one CT in its folder")
    grey = file.text("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
    if not grey or file.number("SamplesPerPixel", 1) != 1:
        raise ValueError(f"{name} is no single grey slice: export the scan as one file a slice")
    shape = file.number("Rows"), file.number("Columns")
    if 0 in shape:
        raise ValueError(f"{name}: Rows or Columns is 0: {AGAIN}")
    rescale = _rescale(file)
    _check_pixels(file, shape)
    return Slice(file, shape, (between_rows, between_columns), (x, y, z), axes, rescale)


def _rescale(file: DicomFile) -> tuple[float, float]:
    """Return the slope and intercept, which a CT must have (DICOM PS3.3, CT Image Module, type 1)."""
    name = file.path.name
    (slope,), (intercept,) = file.numbers("RescaleSlope", 1), file.numbers("RescaleIntercept", 1)
    unit = file.text("RescaleType").upper()
    if unit and not unit.startswith(("HU", "HOUNSFIELD", "US")):
        raise ValueError(f"{name}: RescaleType is not HU: give the CT itself, not a map of another quantity")
    if slope <= 0:
        raise ValueError(f"{name}: RescaleSlope is not above 0, so its HU are unknown: {AGAIN}")
    if _THOUSANDS_DOT.fullmatch(file.text("RescaleIntercept")):
        raise ValueError(
            f"{name}: RescaleIntercept is a number below 10 with three decimals, as if a dot parted the thousands, so "
            f"its HU are unknown: {AGAIN}"
        )
    return slope, intercept


def _check_pixels(file: DicomFile, shape_yx: tuple[int, int]) -> None:
    """Check that the pixel data are as long as the header says, and of a kind that can be read."""
    name = file.path.name
    if file.pixels is None:
        raise ValueError(f"{name}: no pixel data are found in it: {AGAIN}")
    allocated, stored = file.number("BitsAllocated"), file.number("BitsStored")
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated or file.number("HighBit", stored - 1) != stored - 1:
        raise ValueError(f"{name}: BitsAllocated, BitsStored and HighBit make no sense together: {AGAIN}")
    if file.number("PixelRepresentation") > 1:
        raise ValueError(f"{name}: PixelRepresentation makes no sense: {AGAIN}")
    start, told = file.pixels
    length = min(told, file.path.stat().st_size - start)
    needed = shape_yx[0] * shape_yx[1] * allocated // 8
    if told == _UNDEFINED:
        if is_plain(file):
            raise ValueError(f"{name}: pixel data of no length, which its transfer syntax does not allow: {AGAIN}")
    elif length < needed:
        raise ValueError(
            f"{name} is too short: {length} bytes of pixel data, its header says {needed}: fetch the series again"
        )


def is_plain(file: DicomFile) -> bool:
    """Return whether a file's pixel data are not compressed."""
    return not file.syntax or file.syntax in UncompressedTransferSyntaxes
