"""A CT as a folder of DICOM files: one series, one regular volume, or a refusal that names the file.

`dicom_slice` reads a file; here the files of a folder are sorted by series, checked against each other and ordered.
Left out, and counted in one line of the log: files that are no DICOM (an XML file, a licence), objects of another
modality and series (a dose report, a segmentation), and scout images. Rejected: to guess a missing slice, to straighten
a tilted gantry, to split a folder of several series or stacks; each would move nodules in silence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.ct.checks import check_file, check_voxels, right_angles
from luna16_monai.ct.dicom_pixels import read_slice
from luna16_monai.ct.dicom_slice import DicomFile, Slice, as_slice, read_file
from luna16_monai.geometry.grid import Geometry

logger = logging.getLogger(__name__)


def series_uid(folder: Path, allow_symlinks: bool = False) -> str:
    """Return the SeriesInstanceUID of a folder's first CT slice.

    Raises:
        ValueError: no DICOM file is there, or the first is no DICOM image, has no valid UID, or is reached through a
            symbolic link that leaves the folder, without `allow_symlinks`.
    """
    _files(folder)
    uid = first_series(folder, folder, allow_symlinks)
    if uid is None:
        raise ValueError(f"folder {folder.name!r} holds no CT slice: give the folder of one CT series")
    return uid


def first_series(folder: Path, data_dir: Path, allow_symlinks: bool = False) -> str | None:
    """Return the SeriesInstanceUID of the first CT slice among a folder's files; None where there is none.

    Raises:
        ValueError: as `series_uid`.
    """
    for path in _files(folder, True):
        check_file(path, data_dir, allow_symlinks)
        file = read_file(path)
        if file is not None and not _is_scout(file) and file.text("Modality") in ("CT", ""):
            return _series_of(file, folder.name)
    return None


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM, whole or damaged."""
    try:
        return read_file(path) is not None
    except ValueError:
        return path.suffix.lower() == ".dcm"


def slice_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are CT slices, by name; see `open_series` for what is left out."""
    return [file.path for file in _ct_files(folder, folder, True)]


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
        ValueError: a file that is damaged or is reached through a link, slices of several series or volumes, a slice
            whose place or HU are unknown, a missing slice, unequal spacing, a tilted gantry; the message names the
            file.
    """
    files = _ct_files(folder, data_dir, allow_symlinks)
    first = files[0]
    for file in files:
        if _series_of(file, file.path.name) != _series_of(first, first.path.name):
            raise ValueError(_several_series(files))
    slices = [as_slice(file) for file in files]
    _check_alike(slices)
    rows, columns = slices[0].shape_yx
    shape_xyz = (columns, rows, len(slices))
    direction = _direction(slices[0], shape_xyz)
    origins = np.array([one.position_xyz for one in slices])
    order = np.argsort(origins @ direction[:, 2], kind="stable")
    slices, origins = [slices[i] for i in order], origins[order]
    spacing_yx = slices[0].spacing_yx
    _check_one_stack(slices)
    step = _slice_step(slices, origins, direction, min(spacing_yx))
    check_voxels(shape_xyz, np.int16, sum(one.file.path.stat().st_size for one in slices), folder.name)
    geometry = Geometry.from_axes(shape_xyz, (spacing_yx[1], spacing_yx[0], step), origins[0], direction)
    return geometry, partial(_load, slices, geometry.shape_zyx)


def _files(folder: Path, beside_folders: bool = False) -> list[Path]:
    """Return all files of a folder but DICOMDIR and those whose name starts with a dot, by name."""
    files = [p for p in sorted(folder.iterdir()) if p.name.upper() != "DICOMDIR" and not p.name.startswith(".")]
    if beside_folders:
        return [file for file in files if not file.is_dir()]
    if not files:
        raise ValueError(f"folder {folder.name!r} holds no DICOM file: give the folder of one CT series")
    odd = next((file for file in files if not file.is_file()), None)
    if odd is not None:
        raise ValueError(f"{odd.name} in folder {folder.name!r} is no file: give the folder of one CT series")
    return files


def _ct_files(folder: Path, data_dir: Path, allow_symlinks: bool) -> list[DicomFile]:
    """Return the files of a folder that belong to its CT; the others are counted in the log."""
    found, others = [], 0
    for path in _files(folder, any(path.is_dir() for path in folder.iterdir())):
        check_file(path, data_dir, allow_symlinks)
        file = read_file(path)
        if file is None or _is_scout(file):
            others += 1
        else:
            found.append(file)
    scans = {file.text("SeriesInstanceUID") for file in found if file.text("Modality") == "CT"}
    # a file of another modality in the very series of the CT is no companion, but wrong: it is kept, and refused later
    kept = [
        file
        for file in found
        if not scans or file.text("Modality") in ("CT", "") or file.text("SeriesInstanceUID") in scans
    ]
    others += len(found) - len(kept)
    if not kept:
        raise ValueError(f"folder {folder.name!r} holds no DICOM file: give the folder of one CT series")
    if others:
        logger.info("%s: %d files that are no CT slices are left out", folder.name, others)
    return kept


def _is_scout(file: DicomFile) -> bool:
    return "LOCALIZER" in file.text("ImageType").upper().split("\\")


def _series_of(file: DicomFile, name: str) -> str:
    uid = file.text("SeriesInstanceUID")
    if not re.fullmatch(r"[0-9.]{1,64}", uid, re.ASCII):
        raise ValueError(f"{name}: no valid SeriesInstanceUID: export the scan anew")
    return uid


def _several_series(files: Sequence[DicomFile]) -> str:
    by_series: dict[str, list[DicomFile]] = {}
    for file in files:
        by_series.setdefault(_series_of(file, file.path.name), []).append(file)
    (_, a), (_, b) = list(by_series.items())[:2]
    counts = ", ".join(f"{uid} ({len(group)} slices)" for uid, group in list(by_series.items())[:5])
    return f"{b[0].path.name} and {a[0].path.name} are of different series: keep one series a folder; here are {counts}"


def _check_alike(slices: Sequence[Slice]) -> None:
    """Check that all slices have the first one's orientation, size and pixel spacing."""
    first = slices[0]
    questions: tuple[tuple[str, Callable[[Slice], bool]], ...] = (
        ("orientation", lambda one: np.allclose(one.axes, first.axes, rtol=0, atol=2e-3)),
        ("size", lambda one: one.shape_yx == first.shape_yx),
        ("pixel spacing", lambda one: np.allclose(one.spacing_yx, first.spacing_yx, rtol=1e-4, atol=0)),
    )
    for what, alike in questions:
        other = [one for one in slices if not alike(one)]
        if other:
            raise ValueError(
                f"{other[0].name} and {first.name} differ in {what}, and {len(other)} of {len(slices)} files differ so "
                "from the latter: keep one volume a folder, and move the other files away"
            )


def _direction(first: Slice, shape_xyz: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return the directions of the index axes x, y, z in the columns; rounded ones are put at right angles."""
    x, y = first.axes
    direction = right_angles(np.column_stack([x, y, np.cross(x, y)]), shape_xyz)
    if direction is None:
        raise ValueError(
            f"{first.name}: ImageOrientationPatient makes no sense, so its place is unknown: export the scan anew"
        )
    return direction


def _check_one_stack(slices: Sequence[Slice]) -> None:
    """Check that the sorted slices are not two stacks that lie between each other.

    A step-and-shoot scan changes its AcquisitionNumber in blocks, and ContentTime grows from slice to slice: a value
    that comes again and again after others is of a stack of its own.
    """
    for keyword in ("AcquisitionNumber", "EchoNumbers", "ImageType"):
        values = [one.file.text(keyword) for one in slices]
        changes = [k for k in range(1, len(values)) if values[k] != values[k - 1]]
        if len(changes) > len(set(values)):
            raise ValueError(_two_stacks(keyword, slices[changes[0] - 1], slices[changes[0]]))
    times = [one.file.text("ContentTime") for one in slices]
    period = len(set(times))
    # reconstructed side by side, slices may bear two times in any order; only a strict turn means two stacks
    if 2 <= period <= len(times) // 2 and times == (times[:period] * len(times))[: len(times)]:
        raise ValueError(_two_stacks("ContentTime", slices[0], slices[1]))


def _two_stacks(keyword: str, a: Slice, b: Slice) -> str:
    return (
        f"{a.name} and {b.name} are of two stacks that lie between each other, their {keyword} differs in turn: keep "
        "the files of one volume in the folder"
    )


def _slice_step(
    slices: Sequence[Slice], origins: NDArray[np.float64], direction: NDArray[np.float64], pixel_mm: float
) -> float:
    """Return the distance of the sorted slices in mm, which must be the same everywhere but for rounding."""
    if len(slices) < 2:
        raise ValueError(f"{slices[0].name} is the only slice: a CT needs at least two")
    along = origins @ direction[:, 2]
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    # what the gap of two positions can be off by the decimals they are written with, one or two
    rounding = _last_decimal(slices) * float(np.abs(direction[:, 2]).sum())
    odd = np.abs(gaps - usual) > max(0.01 * usual, 1.01 * rounding)
    if odd.any() or usual < 1e-3:
        same = np.flatnonzero(gaps < 1e-3)
        if same.size:
            a, b = slices[same[0]].name, slices[same[0] + 1].name
            if same.size >= len(slices) // 2 > 1:
                raise ValueError(
                    f"{a} and {b} lie at the same place, and so do {same.size} pairs: the series is there twice, keep "
                    "one copy in the folder"
                )
            raise ValueError(f"{a} and {b} lie at the same place: keep one volume a folder")
        k = int(np.argmax(odd))
        a, b, gap = slices[k].name, slices[k + 1].name, float(gaps[k])
        missing = round(gap / usual) - 1
        what = f"{a} and {b} are {gap:.3f} mm apart, other slices {usual:.3f} mm"
        if missing > 0 and abs(gap / usual - missing - 1) < 0.05:
            raise ValueError(f"{missing} slice(s) missing: {what}: export the scan anew")
        raise ValueError(f"unequal spacing: {what}: resample the scan first")
    step = float(along[-1] - along[0]) / (len(slices) - 1)
    line = origins[0] + np.arange(len(slices))[:, None] * step * direction[:, 2]
    off = origins - line
    folder = slices[0].file.path.parent.name
    if (uneven := float(np.abs(off @ direction[:, 2]).max())) > step / 2:
        raise ValueError(
            f"unequal spacing: slices of {folder!r} are up to {uneven:.3f} mm off a regular grid: resample the scan "
            "first"
        )
    drift = float(np.linalg.norm(off, axis=1).max())
    if drift > pixel_mm / 2:
        raise ValueError(
            f"slices of {folder!r} are up to {drift:.2f} mm off the line at right angles to them (a "
            "tilted gantry): resample the scan first, for example with dcm2niix, which corrects the tilt"
        )
    return step


def _last_decimal(slices: Sequence[Slice]) -> float:
    """Return what one unit of the last decimal of the positions is worth, mm: a tenth or a hundredth."""
    words = [word.strip() for one in slices for word in one.file.text("ImagePositionPatient").split("\\")]
    return 0.1 if all(re.fullmatch(r"[+-]?\d+(\.\d?0*)?", word) for word in words) else 0.01


def _load(slices: Sequence[Slice], shape_zyx: tuple[int, int, int]) -> NDArray[Any]:
    """Read the slices one by one, so that an error names its file and no second copy of the volume is held."""
    first = read_slice(slices[0])
    voxels = np.empty(shape_zyx, first.dtype)
    voxels[0] = first
    for k, one in enumerate(slices[1:], start=1):
        hu = read_slice(one)
        if hu.dtype != voxels.dtype:
            # slices of other slopes: the type that holds both
            voxels = voxels.astype(np.result_type(voxels, hu))
        voxels[k] = hu
    return voxels
