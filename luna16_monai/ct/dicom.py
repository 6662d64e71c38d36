"""A CT as a folder of DICOM files: one series, one regular volume, or a refusal that names the file.

GDCM parses the files, by way of SimpleITK. Of the tags only those listed here are looked at, which say where a slice
lies and to which series it belongs: no other one reaches a message, the metadata or a file (structured_report.py, on
request, has a list of its own). Where a tag makes no sense
GDCM takes a default instead, and where pixel data are too short it leaves what the memory held before: so what it says
is compared with the file. Rejected: to guess a
missing slice, to straighten a tilted gantry, to split a folder of several series; each would move nodules in silence.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from luna16_monai.ct.checks import check_file, check_voxels
from luna16_monai.geometry.grid import Geometry, is_orthonormal

_SERIES_UID, _MODALITY = "0020|000e", "0008|0060"
_POSITION, _ORIENTATION, _SPACING = "0020|0032", "0020|0037", "0028|0030"
_PLACE_TAGS = {_POSITION: "ImagePositionPatient", _ORIENTATION: "ImageOrientationPatient", _SPACING: "PixelSpacing"}
_BITS_ALLOCATED = "0028|0100"
_TRANSFER_SYNTAX, _PIXEL_DATA, _END_OF_SEQUENCE, _DELIMITERS = (2, 0x10), (0x7FE0, 0x10), (0xFFFE, 0xE0DD), 0xFFFE
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99"
_LONG_VRS = {*(b"OB", b"OD", b"OF", b"OL", b"OV", b"OW"), *(b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")}
_UNDEFINED = 0xFFFFFFFF


def series_uid(folder: Path, allow_symlinks: bool = False) -> str:
    """Return the SeriesInstanceUID of a folder's first file.

    Raises:
        ValueError: no DICOM file is there, or the first is no DICOM image, has no valid UID, or is reached through a
            symbolic link that leaves the folder, without `allow_symlinks`.
    """
    first = slice_files(folder)[0]
    check_file(first, folder, allow_symlinks)
    return _series_of(_header(first), folder.name)


def open_series(
    folder: Path, data_dir: Path, allow_symlinks: bool = False
) -> tuple[Geometry, Callable[[], NDArray[Any]]]:
    """Check the files of one series and put them in order along the scan; read no voxel.

    Args:
        folder: holds the files of one series, one a slice.
        data_dir: the folder that symbolic links must not leave.
        allow_symlinks: whether they may leave it.

    Returns:
        Where the voxels lie, and what reads them, in HU (z, y, x).

    Raises:
        ValueError: a file that is no CT slice or is reached through a link, slices of several series or volumes, a
            missing slice, unequal spacing, a tilted gantry; the message names the file.
    """
    files = slice_files(folder)
    for file in files:
        check_file(file, data_dir, allow_symlinks)
    headers = [_header(file) for file in files]
    first = headers[0]
    for file, header in zip(files, headers, strict=True):
        _check_slice(file.name, header, files[0].name, first)
        _check_pixels(file, header)
    direction = np.reshape(first.GetDirection(), (3, 3))
    if not is_orthonormal(direction):
        raise ValueError(f"{files[0].name}: ImageOrientationPatient is no pair of unit axes at right angles")
    origins = np.array([header.GetOrigin() for header in headers])
    order = np.argsort(origins @ direction[:, 2], kind="stable")
    files, origins = [files[i] for i in order], origins[order]
    columns, rows = first.GetSize()[:2]
    spacing_xy = first.GetSpacing()[:2]
    step = _slice_step(files, origins, direction, min(spacing_xy))
    shape_xyz = (columns, rows, len(files))
    check_voxels(shape_xyz, np.int16, sum(file.stat().st_size for file in files), folder.name)
    geometry = Geometry.from_axes(shape_xyz, (*spacing_xy, step), origins[0], direction)
    return geometry, partial(_load, files, geometry.shape_zyx)


def slice_files(folder: Path) -> list[Path]:
    """All files of a folder but DICOMDIR and those whose name starts with a dot, by name."""
    files = [p for p in sorted(folder.iterdir()) if p.name.upper() != "DICOMDIR" and not p.name.startswith(".")]
    if not files:
        raise ValueError(f"folder {folder.name!r} holds no DICOM file: give the folder of one CT series")
    odd = next((file for file in files if not file.is_file()), None)
    if odd is not None:
        raise ValueError(f"{odd.name} in folder {folder.name!r} is no file: give the folder of one CT series")
    return files


def _header(path: Path) -> sitk.ImageFileReader:
    """The header of a DICOM image, without its voxels."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(
            f"{path.name} is not an image, or is damaged: keep only the DICOM files of one CT in its folder"
        ) from error
    return reader


def _series_of(header: sitk.ImageFileReader, name: str) -> str:
    uid = header.GetMetaData(_SERIES_UID).strip(" \0") if header.HasMetaDataKey(_SERIES_UID) else ""
    if not re.fullmatch(r"[0-9.]{1,64}", uid, re.ASCII):
        raise ValueError(f"{name}: no valid SeriesInstanceUID: export the scan anew")
    return uid


def _check_slice(name: str, header: sitk.ImageFileReader, first_name: str, first: sitk.ImageFileReader) -> None:
    """Check that one slice belongs to a CT, and to the series of the first."""
    missing = [word for tag, word in _PLACE_TAGS.items() if not header.HasMetaDataKey(tag)]
    if missing:
        raise ValueError(f"{name}: {missing[0]} is missing, so its place is unknown: export the scan anew")
    for tag, understood in _understood(header).items():
        if not _is_near(header.GetMetaData(tag), understood):
            raise ValueError(
                f"{name}: {_PLACE_TAGS[tag]} makes no sense, so its place is unknown: export the scan anew"
            )
    if not header.HasMetaDataKey(_MODALITY) or header.GetMetaData(_MODALITY).strip(" \0") != "CT":
        raise ValueError(f"{name} is no CT slice (Modality is not CT): keep only the files of one CT in its folder")
    if header.GetDimension() > 3 or header.GetSize()[2:] not in ((), (1,)) or header.GetNumberOfComponents() != 1:
        raise ValueError(f"{name} is no single grey slice: export the scan as one file a slice")
    if _series_of(header, name) != _series_of(first, first_name):
        raise ValueError(f"{name} and {first_name} are of different series: keep one series a folder")
    same = (
        header.GetSize() == first.GetSize()
        and header.GetPixelID() == first.GetPixelID()
        and np.allclose(header.GetSpacing()[:2], first.GetSpacing()[:2], rtol=1e-4, atol=0)
        and np.allclose(header.GetDirection(), first.GetDirection(), rtol=0, atol=1e-4)
    )
    if not same:
        raise ValueError(
            f"{name} and {first_name} differ in size, type, pixel spacing or orientation: keep one volume a folder"
        )


def _understood(header: sitk.ImageFileReader) -> dict[str, list[float]]:
    """What GDCM took from the tags that say where a slice lies, as a file writes it."""
    direction = np.reshape(header.GetDirection(), (header.GetDimension(), -1))[:, :2]
    return {
        _POSITION: list(header.GetOrigin()),
        _ORIENTATION: direction.T.ravel().tolist(),
        # between rows first
        _SPACING: list(header.GetSpacing()[1::-1]),
    }


def _is_near(text: str, numbers: list[float]) -> bool:
    try:
        told = [float(word) for word in text.strip(" \0").split("\\")]
    except ValueError:
        return False
    return len(told) == len(numbers) and np.allclose(told, numbers, rtol=1e-4, atol=1e-4)


def _check_pixels(path: Path, header: sitk.ImageFileReader) -> None:
    """Check that pixel data which are not compressed are as long as the header says; a codec checks its own."""
    length = _pixel_bytes(path)
    needed = header.GetSize()[0] * header.GetSize()[1] * int(header.GetMetaData(_BITS_ALLOCATED)) // 8
    if length is not None and length < needed:
        raise ValueError(
            f"{path.name} is too short: {length} bytes of pixel data, its header says {needed}: fetch the series again"
        )


def _pixel_bytes(path: Path) -> int | None:
    """The length of the pixel data by the file's own word, None where they are compressed.

    Walks over the elements of a file (DICOM PS3.5, chapter 7), flat: what a sequence of undefined length holds is
    walked over too, until its end.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place, depth, syntax = 132, 0, b""
        while place + 12 <= len(content):
            in_meta = content[place : place + 2] == b"\2\0"
            order = ">" if syntax == _BIG_ENDIAN and not in_meta else "<"
            tag = struct.unpack_from(order + "HH", content, place)
            if tag[0] == _DELIMITERS or (syntax == _IMPLICIT and not in_meta):
                (length,) = struct.unpack_from(order + "I", content, place + 4)
                place += 8
            elif content[place + 4 : place + 6] in _LONG_VRS:
                (length,) = struct.unpack_from(order + "I", content, place + 8)
                place += 12
            else:
                (length,) = struct.unpack_from(order + "H", content, place + 6)
                place += 8
            if tag == _TRANSFER_SYNTAX:
                syntax = content[place : place + length].strip(b" \0")
                if syntax == _DEFLATED:
                    break
            if tag == _PIXEL_DATA and depth == 0:
                return None if length == _UNDEFINED else min(length, len(content) - place)
            if tag[0] == _DELIMITERS:
                depth -= tag == _END_OF_SEQUENCE
            elif length == _UNDEFINED:
                depth += 1
            else:
                place += length
    raise ValueError(f"{path.name}: no pixel data are found in it: export the scan anew, without deflating it")


def _slice_step(
    files: list[Path], origins: NDArray[np.float64], direction: NDArray[np.float64], pixel_mm: float
) -> float:
    """The distance of the sorted slices in mm, which must be the same everywhere."""
    if len(files) < 2:
        raise ValueError(f"{files[0].name} is the only slice: a CT needs at least two")
    along = origins @ direction[:, 2]
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    # A hundredth of a millimetre is what the gap of two positions written with two decimals can be off.
    odd = np.abs(gaps - usual) > max(0.01 * usual, 0.0101)
    if odd.any() or usual < 1e-3:
        k = int(np.argmax(odd))
        a, b, gap = files[k].name, files[k + 1].name, float(gaps[k])
        if gap < 1e-3:
            raise ValueError(f"{a} and {b} lie at the same place: keep one volume a folder")
        missing = round(gap / usual) - 1
        what = f"{a} and {b} are {gap:.3f} mm apart, other slices {usual:.3f} mm"
        if missing > 0 and abs(gap / usual - missing - 1) < 0.05:
            raise ValueError(f"{missing} slice(s) missing: {what}: export the scan anew")
        raise ValueError(f"unequal spacing: {what}: resample the scan first")
    step = float(along[-1] - along[0]) / (len(files) - 1)
    line = origins[0] + np.arange(len(files))[:, None] * step * direction[:, 2]
    drift = float(np.linalg.norm(origins - line, axis=1).max())
    if drift > pixel_mm / 2:
        raise ValueError(
            f"slices of {files[0].parent.name!r} are up to {drift:.2f} mm off the line at right angles to them (a "
            "tilted gantry): resample the scan first"
        )
    return step


def _load(files: list[Path], shape_zyx: tuple[int, int, int]) -> NDArray[Any]:
    """Read the slices one by one, so that an error names its file and no second copy of the volume is held."""
    first = _slice(files[0])
    voxels = np.empty(shape_zyx, first.dtype)
    voxels[0] = first
    for k, file in enumerate(files[1:], start=1):
        voxels[k] = _slice(file)
    return voxels


def _slice(path: Path) -> NDArray[Any]:
    """One slice in HU, (y, x)."""
    reader = _header(path)
    try:
        return sitk.GetArrayFromImage(reader.Execute())[0]
    except RuntimeError as error:
        raise ValueError(f"{path.name} can't be decoded: fetch the series again, or decompress it") from error
