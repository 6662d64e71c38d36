"""Open a CT: MetaImage, NIfTI, NRRD or a folder of DICOM files, to HU voxels and their geometry.

`open_ct` looks at headers only and refuses what can't be trusted; its result reads the voxels. Whatever the format:
HU stay int16 where that holds every value exactly; NaN, infinite and complex voxels, sheared axes and sizes that the
file can't hold are refused. MONAI's stock readers do none of this, and none of them reads .mhd without the itk package.
The same as a MONAI reader is ``luna16_monai.store.reader.CTReader``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.ct import dicom
from luna16_monai.ct.checks import check_file
from luna16_monai.ct.metaimage import open_metaimage
from luna16_monai.ct.nifti import open_nifti
from luna16_monai.ct.nrrd import open_nrrd
from luna16_monai.ct.units import check_hounsfield
from luna16_monai.geometry.grid import Geometry

SUFFIXES = (".mhd", ".mha", ".nii", ".nii.gz", ".nrrd")
# what 3D Slicer calls a segmentation is no CT
_NO_CT = (".seg.nrrd", "-label.nrrd")


@dataclass(frozen=True)
class CT:
    """A scan whose headers have passed, its voxels not read yet; it can be pickled.

    Args:
        path: its file or folder.
        geometry: where the voxels lie.
        load: reads the voxels as stored, (z, y, x).
        data_path: the file with its voxels, where the header is another one.
    """

    path: Path
    geometry: Geometry
    load: Callable[[], NDArray[Any]]
    data_path: Path | None = None

    @property
    def name(self) -> str:
        """The name of its file or folder, for messages."""
        return self.path.name

    @property
    def files(self) -> list[Path]:
        """The files that it consists of: header and voxels, or those of a DICOM series."""
        if self.path.is_dir():
            return dicom.slice_files(self.path)
        return [self.path] if self.data_path in (None, self.path) else [self.path, self.data_path]

    def read(self) -> NDArray[Any]:
        """Read the voxels: HU, (z, y, x), int16 where that is exact, else float32, else float64.

        Raises:
            FileNotFoundError: a file is gone since the CT was opened.
            ValueError: voxels that are NaN or infinite or can't be HU, or a file that is damaged.
        """
        try:
            stored = self.load()
        except FileNotFoundError as error:
            gone = Path(error.filename or self.path).name
            what = gone if gone == self.name else f"{gone}, the data file of {self.name},"
            raise FileNotFoundError(f"{what} is missing, though it was there before: put it back") from None
        voxels = _hounsfield(stored, self.name)
        check_hounsfield(voxels, self.name)
        return voxels


def open_ct(path: Path, data_dir: Path | None = None, allow_symlinks: bool = False) -> CT:
    """Check the headers of a CT without reading its voxels.

    Args:
        path: .mhd, .mha, .nii, .nii.gz, .nrrd, or a folder of DICOM files of one series.
        data_dir: the folder that symbolic links must not leave; default: the one that holds the files.
        allow_symlinks: whether they may leave it.

    Raises:
        FileNotFoundError: the path, or the data file that a .mhd names, does not exist.
        ValueError: another type of file, or a header that can't be trusted; the message names the file.
    """
    if path.is_dir():
        folder = _only_series(path, allow_symlinks)
        return CT(folder, *dicom.open_series(folder, data_dir or path, allow_symlinks))
    suffix = ct_suffix(path)
    if suffix in (".mhd", ".mha"):
        image = open_metaimage(path, data_dir, allow_symlinks)
        return CT(path, image.geometry, image.read, image.data_path)
    check_file(path, data_dir or path.parent, allow_symlinks)
    if suffix in (".nii", ".nii.gz"):
        return CT(path, *open_nifti(path))
    if suffix == ".nrrd":
        return CT(path, *open_nrrd(path))
    if dicom.is_dicom(path):
        raise ValueError(f"{path.name} is one DICOM file of a CT: give the folder of its series")
    raise ValueError(f"{path.name} is no CT: give {', '.join(SUFFIXES)} or a folder of DICOM files")


def read_geometry(path: Path, data_dir: Path | None = None, allow_symlinks: bool = False) -> Geometry:
    """Return where the voxels of a CT lie, without reading them; arguments and errors as `open_ct`."""
    return open_ct(path, data_dir, allow_symlinks).geometry


def series_uid(path: Path, allow_symlinks: bool = False) -> str:
    """Return a scan's series: DICOM's SeriesInstanceUID for a folder, else the file's stem.

    Raises:
        ValueError: a folder without DICOM files, or with a file that is no DICOM image or has no valid UID, or that is
            reached through a symbolic link that leaves the folder, without `allow_symlinks`.
    """
    if path.is_dir():
        return dicom.series_uid(_only_series(path, allow_symlinks), allow_symlinks)
    return path.name[: -len(ct_suffix(path))] if ct_suffix(path) else path.stem


def find_series(folder: Path, allow_symlinks: bool = False) -> dict[str, Path]:
    """Return the folder of each DICOM series of CT slices in a folder and below it, as an archive lays them out.

    Args:
        folder: of a series, a study, a patient or several.
        allow_symlinks: whether symbolic links may leave it.

    Raises:
        ValueError: there is no series, or one in two places.
    """
    found: dict[str, Path] = {}
    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and not path.name.startswith("."))]
    for place in folders:
        if not any(path.is_file() for path in place.iterdir()):
            continue
        uid = dicom.first_series(place, folder, allow_symlinks)
        if uid is None:
            continue
        if uid in found:
            a, b = (one.relative_to(folder).as_posix() for one in (found[uid], place))
            raise ValueError(f"series {uid} is there twice, in {a} and {b}: remove one of them")
        found[uid] = place
    if not found:
        raise ValueError(f"folder {folder.name!r} holds no CT slice: give the folder of one CT series")
    return found


def _only_series(folder: Path, allow_symlinks: bool) -> Path:
    """Return the folder itself where it has files and no folders; else the one folder of a series in and below it."""
    if not any(path.is_dir() for path in folder.iterdir()):
        return folder
    found = find_series(folder, allow_symlinks)
    if len(found) > 1:
        told = ", ".join(f"{uid} ({len(dicom.slice_files(place))} slices)" for uid, place in list(found.items())[:5])
        raise ValueError(f"{len(found)} series lie below {folder.name!r}: {told}: name the folder of one")
    return next(iter(found.values()))


def has_ct_suffix(path: Path) -> bool:
    """Return whether a file's name ends as a CT's does."""
    return bool(ct_suffix(path))


def ct_suffix(path: Path) -> str:
    """Return the ending that makes a file a CT, in lower case; empty where there is none."""
    name = path.name.lower()
    if name.endswith(_NO_CT):
        return ""
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def _hounsfield(voxels: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the same values in the smallest of int16, float32, float64 that holds each exactly."""
    if voxels.dtype == np.int16:
        return voxels
    if voxels.dtype.kind == "f":
        finite = np.isfinite(voxels)
        if not finite.all():
            first = np.unravel_index(int(np.argmin(finite)), finite.shape)
            raise ValueError(
                f"{name}: {int((~finite).sum())} voxels are NaN or infinite, the first at (z, y, x) = "
                f"{tuple(map(int, first))}: convert the scan anew"
            )
    elif voxels.dtype.itemsize == 8 and (voxels.max() > 2**53 or voxels.min() < -(2**53)):
        raise ValueError(f"{name}: voxels beyond 2^53, which are no HU: convert the scan anew")
    limits = np.iinfo(np.int16)
    if limits.min <= voxels.min() and voxels.max() <= limits.max:
        whole = voxels.astype(np.int16)
        if np.array_equal(whole, voxels):
            return whole
    with np.errstate(over="ignore"):
        single = voxels.astype(np.float32)
    # Compared in float64, which is exact up to 2**53.
    return single if np.array_equal(single.astype(np.float64), voxels) else voxels.astype(np.float64)
