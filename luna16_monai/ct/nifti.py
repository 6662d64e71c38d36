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

from luna16_monai.ct.checks import ROUNDED_COSINES, ROUNDED_VOXELS, check_voxels, inflate, right_angles
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


def open_nifti(path: Path) -> tuple[Geometry, Callable[[], NDArray[Any]]]:
    """Check a NIfTI header; the voxels are read without nibabel, so that their number and checksum are verified."""
    name = path.name
    gzipped = _is_gzipped(path)
    try:
        header = _nifti_header(path, gzipped)
        dtype, shape = header.get_data_dtype(), header.get_data_shape()
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
    if unit not in ("mm", "unknown"):
        raise ValueError(f"{name} is in units of {unit}: convert it to mm")
    geometry = _geometry(header, shape, name)
    stored = path.stat().st_size
    size = offset + math.prod(shape) * dtype.itemsize
    check_voxels(geometry.shape_zyx, dtype, stored if gzipped else None, name)
    if not gzipped and stored != size:
        raise ValueError(
            f"{name} is too {'short' if stored < size else 'long'}: {stored} bytes, its header says {size}: fetch it "
            "again"
        )
    return geometry, partial(_load, path, size, gzipped, offset, dtype, geometry.shape_zyx, slope, inter)


def _is_gzipped(path: Path) -> bool:
    """Return whether a file is gzip: by its first bytes, and by its name where they are of neither kind."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"\x1f\x8b":
        return True
    plain = start in (size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
    return path.name.lower().endswith(".gz") and not plain


def _geometry(header: Any, shape: tuple[int, ...], name: str) -> Geometry:
    """Return where a NIfTI lies: by its sform, or by its qform where there is no sform or the sform is off by rounding.

    Raises:
        ValueError: there is neither, the sform is sheared, or its spacing is another than pixdim's.
    """
    if header["sform_code"] <= 0:
        if header["qform_code"] <= 0:
            raise ValueError(f"{name} does not say where it lies (sform_code and qform_code 0): convert the scan anew")
        return _from_affine(header.get_qform(), shape, name)
    affine = header.get_sform()
    geometry = _from_affine(affine, shape, name)
    spacing, pixdim = np.array(geometry.spacing_zyx[::-1]), np.abs(header["pixdim"][1:4].astype(np.float64))
    if np.all(pixdim > 0) and not np.allclose(spacing, pixdim, rtol=2e-3, atol=0):
        raise ValueError(
            f"{name}: its sform has a spacing of {_told(spacing)} mm, its pixdim says {_told(pixdim)} mm: which is "
            "right is unknown, convert the scan anew"
        )
    if is_orthonormal(geometry.affine[:3, :3] / geometry.spacing_zyx):
        return geometry
    if header["qform_code"] > 0:
        exact = _from_affine(header.get_qform(), shape, name)
        last = np.array(exact.shape_zyx) - 1
        corners = np.array(np.meshgrid(*[(0, n) for n in last])).reshape(3, -1).T
        apart = np.linalg.norm(exact.world_from_voxel(corners) - geometry.world_from_voxel(corners), axis=1)
        if apart.max() <= max(ROUNDED_VOXELS, ROUNDED_COSINES * float(last.max())) * min(spacing):
            return exact
    directions = geometry.affine[:3, 2::-1] / spacing
    right = right_angles(directions, shape)
    if right is None:
        raise ValueError(
            f"{name} is sheared: the axes of its affine {affine[:3, :3].tolist()} are not at right angles: resample it"
        )
    return Geometry.from_axes(shape, spacing, geometry.affine[:3, 3], right)


def _from_affine(affine: NDArray[np.float64], shape: tuple[int, ...], name: str) -> Geometry:
    try:
        return Geometry.from_ras_affine(affine, shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _told(spacing: NDArray[np.float64]) -> str:
    return " x ".join(f"{side:.4g}" for side in spacing)


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
    """Return the fixed part of a NIfTI-1 or NIfTI-2 header; extensions are skipped, as their sizes are unchecked."""
    with gzip.open(path) if gzipped else path.open("rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if nib.Nifti2Header.may_contain_header(start) else nib.Nifti1Header
    header = kind(start[: kind.sizeof_hdr], check=False)
    if header["sform_code"] > 0:
        # nibabel and ITK take no notice of a sign where there is an sform
        header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    # At its own level of 40 nibabel would put a negative spacing (35) right, and log that.
    header.check_fix(logger=_SILENT, error_level=35)
    # 1 MiB leaves room for every extension that is in use.
    if not header.is_single or not kind.single_vox_offset <= header["vox_offset"] <= 1 << 20:
        raise ValueError("header and voxels are not in one file")
    return header
