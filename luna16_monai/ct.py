"""Reading a CT: MetaImage, NIfTI or a folder of DICOM files, to HU voxels and their geometry.

`open_ct` looks at headers only and refuses what can't be trusted; its result reads the voxels. `CTReader` is the same
as a MONAI reader. `find_cts` lists the scans of a LUNA16 data folder.

Whatever the format: HU stay int16 where that holds every value exactly; NaN, infinite and complex voxels, sheared axes
and sizes that the file can't hold are refused. MONAI's stock readers do none of this, and none of them reads .mhd
without the itk package.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from luna16_monai import dicom
from luna16_monai.geometry import Geometry, is_orthonormal
from luna16_monai.metaimage import check_file, check_voxels, inflate, open_metaimage

SUFFIXES = (".mhd", ".mha", ".nii", ".nii.gz")
# LUNA16's lung masks bear the names of the CTs.
_MASKS = "seg-lungs"
# What nibabel, gzip and the file system raise on damaged headers.
_NIFTI_ERRORS = (
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    ValueError,
    zlib.error,
    HeaderDataError,
    WrapStructError,
)
# The refusal is the one line to be seen, not what nibabel logs beside it.
_SILENT = logging.Logger("nifti", level=logging.CRITICAL + 1)


@dataclass(frozen=True)
class CTFile:
    """A scan found on the disk: its series, its file, and LUNA16's subset (None outside subset0 to subset9)."""

    series_uid: str
    path: Path
    subset: int | None


@dataclass(frozen=True)
class CT:
    """A scan whose headers have passed, its voxels not read yet.

    Args:
        name: file or folder, for messages.
        geometry: where the voxels lie.
        load: reads the voxels as stored, (z, y, x).
    """

    name: str
    geometry: Geometry
    load: Callable[[], NDArray[Any]]

    def read(self) -> NDArray[Any]:
        """Read the voxels: HU, (z, y, x), int16 where that is exact, else float32, else float64.

        Raises:
            ValueError: voxels that are NaN or infinite, or a file that is damaged.
        """
        return _hounsfield(self.load(), self.name)


def open_ct(path: Path, data_dir: Path | None = None, allow_symlinks: bool = False) -> CT:
    """Check the headers of a CT without reading its voxels.

    Args:
        path: .mhd, .mha, .nii, .nii.gz, or a folder of DICOM files of one series.
        data_dir: the folder that symbolic links must not leave; default: the one that holds the files.
        allow_symlinks: whether they may leave it.

    Raises:
        FileNotFoundError: the path, or the data file that a .mhd names, does not exist.
        ValueError: another type of file, or a header that can't be trusted; the message names the file.
    """
    if path.is_dir():
        return CT(path.name, *dicom.open_series(path, data_dir or path, allow_symlinks))
    suffix = _suffix(path)
    if suffix in (".mhd", ".mha"):
        image = open_metaimage(path, data_dir, allow_symlinks)
        return CT(path.name, image.geometry, image.read)
    check_file(path, data_dir or path.parent, allow_symlinks)
    if suffix in (".nii", ".nii.gz"):
        return _open_nifti(path)
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
        return dicom.series_uid(path, allow_symlinks)
    return path.name[: -len(_suffix(path))] if _suffix(path) else path.stem


def find_cts(data_dir: Path, allow_symlinks: bool = False) -> list[CTFile]:
    """List the CTs of a data folder, sorted by series, each with its header and file sizes checked.

    They lie in LUNA16's subset0 to subset9, or in the folder itself. LUNA16's lung masks (seg-lungs-LUNA16), which
    bear the names of the CTs, are never taken; nor are files whose name starts with a dot.

    Args:
        data_dir: the data folder.
        allow_symlinks: whether symbolic links may leave it.

    Raises:
        FileNotFoundError: no such folder, no CT in it, or a .mhd whose data file is missing.
        ValueError: a series found twice, a link that leaves the folder, or a header that can't be trusted.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"data folder {str(data_dir)!r} does not exist: give the folder that holds the CTs")
    if data_dir.resolve().name.lower().startswith(_MASKS):
        raise ValueError(f"{data_dir.name} holds LUNA16's lung masks, not CTs: give the folder above it")
    folders: list[tuple[Path, int | None]] = [(data_dir, None)]
    folders += [(data_dir / f"subset{k}", k) for k in range(10) if (data_dir / f"subset{k}").is_dir()]
    found: dict[str, CTFile] = {}
    for folder, subset in folders:
        for path in sorted(folder.iterdir()):
            if not _suffix(path) or path.name.startswith("."):
                continue
            ct = CTFile(series_uid(path, allow_symlinks), path, subset)
            twin = found.setdefault(ct.series_uid, ct)
            if twin is not ct:
                a, b = (p.relative_to(data_dir).as_posix() for p in (twin.path, path))
                raise ValueError(f"series {ct.series_uid} is there twice, as {a} and {b}: remove one of them")
            open_ct(path, data_dir, allow_symlinks)
    if not found:
        raise FileNotFoundError(_nothing_found(data_dir))
    return [found[uid] for uid in sorted(found)]


class CTReader(ImageReader):
    """MONAI reader of one CT: `LoadImaged(keys="image", reader=CTReader)`.

    As MONAI's ITKReader, it gives the array in (x, y, z) with an affine to RAS; other than ITKReader, it refuses what
    can't be trusted (see `open_ct`), and puts nothing of the file's header into the metadata but its geometry.

    Args:
        data_dir: the folder that symbolic links must not leave; default: the one that holds the files.
        allow_symlinks: whether they may leave it.
    """

    def __init__(self, data_dir: str | Path | None = None, allow_symlinks: bool = False) -> None:
        super().__init__()
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.allow_symlinks = allow_symlinks

    def verify_suffix(self, filename: Any) -> bool:
        """Tell whether every path is a folder or ends as a CT does."""
        return all(Path(name).is_dir() or bool(_suffix(Path(name))) for name in ensure_tuple(filename))

    def read(self, data: Any, **kwargs: Any) -> list[Path]:
        """Return the paths; all that can fail happens in `get_data`.

        LoadImage tries its next reader when `read` raises, so MONAI's NibabelReader would load the very NIfTI file
        that was refused here.
        """
        return [Path(name) for name in ensure_tuple(data)]

    def get_data(self, img: Sequence[Path]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Read the one CT: its HU in (x, y, z), and the metadata of MONAI's readers.

        Raises:
            FileNotFoundError, ValueError: as `open_ct` and `CT.read`, or more than one path.
        """
        if len(img) != 1:
            raise ValueError(f"{len(img)} paths for one CT: give one file, or one folder of DICOM files")
        ct = open_ct(img[0], self.data_dir, self.allow_symlinks)
        voxels = _transposed(ct.read())
        affine = ct.geometry.ras_affine_xyz()
        return voxels, {
            "spacing": np.array(ct.geometry.spacing_zyx[::-1]),
            MetaKeys.ORIGINAL_AFFINE: affine,
            MetaKeys.AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(voxels.shape),
            # MONAI's code for "no_channel".
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),
        }


def _suffix(path: Path) -> str:
    """The ending that makes a file a CT, in lower case; empty where there is none."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def _transposed(voxels_zyx: NDArray[Any]) -> NDArray[Any]:
    """The voxels in (x, y, z), contiguous as MONAI would make them, but plane by plane: three times as fast."""
    voxels = np.empty(voxels_zyx.shape[::-1], voxels_zyx.dtype)
    for y in range(voxels.shape[1]):
        voxels[:, y] = voxels_zyx[:, y].T
    return voxels


def _nothing_found(data_dir: Path) -> str:
    if any(data_dir.glob("subset[0-9].zip")):
        return f"no CT in {data_dir.name!r}, but zip files: unzip subset0.zip to subset9.zip there"
    return (
        f"no CT in {data_dir.name!r}: expected subset0 to subset9 with <series_uid>.mhd and its .raw or .zraw, or CTs "
        f"({', '.join(SUFFIXES)}) in the folder itself"
    )


def _hounsfield(voxels: NDArray[Any], name: str) -> NDArray[Any]:
    """The same values in the smallest of int16, float32, float64 that holds each exactly."""
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
    limits = np.iinfo(np.int16)
    if limits.min <= voxels.min() and voxels.max() <= limits.max:
        whole = voxels.astype(np.int16)
        if np.array_equal(whole, voxels):
            return whole
    with np.errstate(over="ignore"):
        single = voxels.astype(np.float32)
    # Compared in float64, which is exact up to 2**53.
    return single if np.array_equal(single.astype(np.float64), voxels) else voxels.astype(np.float64)


def _open_nifti(path: Path) -> CT:
    """Check a NIfTI header; the voxels are read without nibabel, so that their number and checksum are verified."""
    name = path.name
    gzipped = _suffix(path) == ".nii.gz"
    try:
        header = _nifti_header(path, gzipped)
        affine, dtype, shape = header.get_best_affine(), header.get_data_dtype(), header.get_data_shape()
        offset, (slope, inter) = int(header["vox_offset"]), header.get_slope_inter()
        unit = header.get_xyzt_units()[0]
    except _NIFTI_ERRORS as error:
        raise ValueError(f"{name} is no NIfTI file ({type(error).__name__}): fetch or convert it anew") from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{name} has the shape {shape}: give one 3-D volume")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"{name} holds voxels of type {dtype}: give HU as whole numbers or floats")
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        raise ValueError(f"{name} does not say where it lies (sform_code and qform_code 0): convert the scan anew")
    if unit not in ("mm", "unknown"):
        raise ValueError(f"{name} is in units of {unit}: convert it to mm")
    try:
        geometry = Geometry.from_ras_affine(affine, shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not is_orthonormal(geometry.affine[:3, :3] / geometry.spacing_zyx):
        raise ValueError(
            f"{name} is sheared: the axes of its affine {affine[:3, :3].tolist()} are not at right angles: resample it"
        )
    stored = path.stat().st_size
    size = offset + math.prod(shape) * dtype.itemsize
    check_voxels(geometry.shape_zyx, dtype, stored if gzipped else None, name)
    if not gzipped and stored != size:
        raise ValueError(
            f"{name} is too {'short' if stored < size else 'long'}: {stored} bytes, its header says {size}: fetch it "
            "again"
        )

    def load() -> NDArray[Any]:
        with path.open("rb") as file:
            content = inflate(file, size, name, gzip=True) if gzipped else np.fromfile(file, np.uint8, size)
        # Aligned, because torch takes no other array and an offset may be odd.
        voxels = np.require(content[offset:].view(dtype), requirements="A").reshape(geometry.shape_zyx)
        if slope is None or (slope, inter) == (1, 0):
            return voxels
        return voxels * np.float64(slope) + np.float64(inter)

    return CT(name, geometry, load)


def _nifti_header(path: Path, gzipped: bool) -> Any:
    """The fixed part of a NIfTI-1 or NIfTI-2 header. Extensions are skipped: their sizes are the file's claim."""
    with gzip.open(path) if gzipped else path.open("rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if nib.Nifti2Header.may_contain_header(start) else nib.Nifti1Header
    header = kind(start[: kind.sizeof_hdr], check=False)
    # At its own level of 40 nibabel would put a negative spacing (35) right, and log that.
    header.check_fix(logger=_SILENT, error_level=35)
    # 1 MiB leaves room for every extension that is in use.
    if not header.is_single or not kind.single_vox_offset <= header["vox_offset"] <= 1 << 20:
        raise ValueError("header and voxels are not in one file")
    return header
