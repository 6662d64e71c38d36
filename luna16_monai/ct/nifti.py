"""NIfTI (.nii, .nii.gz): check the header, then read the voxels with nibabel."""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from luna16_monai.ct.checks import check_voxels, inflate
from luna16_monai.geometry.grid import Geometry, is_orthonormal

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


def _open_nifti(path: Path) -> tuple[Geometry, Callable[[], NDArray[Any]]]:
    """Check a NIfTI header; the voxels are read without nibabel, so that their number and checksum are verified."""
    name = path.name
    gzipped = path.name.lower().endswith(".gz")
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

    return geometry, partial(_load, path, size, gzipped, offset, dtype, geometry.shape_zyx, slope, inter)


def _load(
    path: Path,
    size: int,
    gzipped: bool,
    offset: int,
    dtype: np.dtype[Any],
    shape_zyx: tuple[int, ...],
    slope: float | None,
    inter: float | None,
) -> NDArray[Any]:
    """Read the voxels, (z, y, x); a function of the module, so that an opened CT can be pickled."""
    with path.open("rb") as file:
        content = inflate(file, size, path.name, gzip=True) if gzipped else np.fromfile(file, np.uint8, size)
    # Aligned, because torch takes no other array and an offset may be odd.
    voxels = np.require(content[offset:].view(dtype), requirements="A").reshape(shape_zyx)
    if slope is None or inter is None or (slope, inter) == (1, 0):
        return voxels
    return voxels * np.float64(slope) + np.float64(inter)


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
