"""Read a CT in NRRD (.nrrd), as 3D Slicer writes it: header and voxels in one file, raw or gzip.

The format: https://teem.sourceforge.net/nrrd/format.html. As with MetaImage, the header is checked before anything is
allocated, and nothing that could move or change a voxel is skipped. ITK's own reader follows ``data file`` to any path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.ct.checks import DAMAGED, check_voxels, inflate, right_angles, voxel_bytes
from luna16_monai.geometry.grid import Geometry

MAX_HEADER_BYTES = 1 << 16
AGAIN = "save it anew with 3D Slicer or SimpleITK"
_MAGIC = re.compile(rb"NRRD000[1-5]\r?\n")
_NAMES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
TYPES = {name: code for code, names in _NAMES.items() for name in names}
SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
    "las": (1, -1, 1),
}
"""Frames, and the signs that make LPS of them."""
REQUIRED = ("type", "dimension", "sizes", "space", "space directions", "space origin", "encoding")
ENCODINGS = {"raw": False, "gzip": True, "gz": True}
REFUSED = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip", "space dimension")
"""Fields that would take the voxels from elsewhere."""
_VECTOR = re.compile(r"\(([^()]*)\)")


def open_nrrd(path: Path) -> tuple[Geometry, Callable[[], NDArray[Any]]]:
    """Check a header and the size of what follows it; read no voxel.

    Returns:
        Where the voxels lie, and what reads them, (z, y, x).

    Raises:
        ValueError: another kind of file, a header that can't be trusted, or a file that is too short or too long.
    """
    name = path.name
    fields, offset = _fields(path)
    for field in REFUSED:
        if field in fields and not (field.endswith("skip") and fields[field] == "0"):
            raise ValueError(f"{name}: {field} is not read: save it with the voxels in the file itself")
    for field in REQUIRED:
        if field not in fields:
            raise ValueError(f"{name}: {field} is missing, so its voxels or their place are unknown: {AGAIN}")
    if fields["dimension"] != "3":
        raise ValueError(f"{name} has {fields['dimension'][:20]} dimensions: a CT of three was expected")
    code, encoding = TYPES.get(fields["type"].lower()), fields["encoding"].lower()
    if code is None or encoding not in ENCODINGS:
        what = "type" if code is None else "encoding"
        raise ValueError(f"{name}: {what} {fields[what][:40]!r} is not read: {AGAIN}")
    endian = fields.get("endian", "little" if code in ("i1", "u1") else "").lower()
    if endian not in ("little", "big"):
        raise ValueError(f"{name}: endian {endian[:20]!r} is neither little nor big: {AGAIN}")
    dtype = np.dtype(code).newbyteorder("<" if endian == "little" else ">")
    sizes = fields["sizes"].split()
    if len(sizes) != 3 or not all(re.fullmatch(r"[1-9]\d{0,9}", size, re.ASCII) for size in sizes):
        raise ValueError(f"{name}: sizes {fields['sizes'][:60]!r} are not three whole numbers: {DAMAGED}")
    x, y, z = map(int, sizes)
    stored = path.stat().st_size - offset
    check_voxels((z, y, x), dtype, stored if ENCODINGS[encoding] else None, name)
    expected = voxel_bytes((z, y, x), dtype)
    if not ENCODINGS[encoding] and stored != expected:
        raise ValueError(
            f"{name} is too {'short' if stored < expected else 'long'}: {stored} bytes of voxels, its header says "
            f"{expected}: {DAMAGED}"
        )
    geometry = _geometry(fields, (x, y, z), name)
    return geometry, partial(_load, path, offset, ENCODINGS[encoding], dtype, (z, y, x))


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields in lower case, and where the voxels begin: behind the first empty line."""
    with path.open("rb") as file:
        raw = file.read(MAX_HEADER_BYTES)
    name = path.name
    if not _MAGIC.match(raw):
        raise ValueError(f"{name} is no NRRD file: fetch or save it anew")
    end = re.search(rb"\r?\n\r?\n", raw)
    if end is None:
        raise ValueError(f"{name}: no empty line ends the header within {MAX_HEADER_BYTES} bytes: {DAMAGED}")
    try:
        text = raw[: end.start()].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: byte {error.start} of the header is no text: {DAMAGED}") from error
    fields: dict[str, str] = {}
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n")[1:], start=2):
        if line.startswith("#"):
            continue
        key, colon, value = line.partition(": ")
        if ":=" in (key if colon else line):
            continue  # a note of the program that wrote it, whatever it is called
        if not colon or not line.isprintable():
            raise ValueError(f"{name} line {number} is not of the form 'field: value': {DAMAGED}")
        key = key.strip().lower()
        if key in fields:
            raise ValueError(f"{name} line {number}: {key[:40]} appears twice: {DAMAGED}")
        fields[key] = value.strip()
    return fields, end.end()


def _geometry(fields: dict[str, str], shape_xyz: tuple[int, int, int], name: str) -> Geometry:
    """Where the voxels lie; the directions are at right angles, but for rounding."""
    signs = SPACES.get(fields["space"].lower())
    if signs is None:
        raise ValueError(f"{name}: space {fields['space'][:40]!r} is not read: {AGAIN}, in LPS or RAS")
    units = set(fields.get("space units", "").replace('"', " ").split())
    if units - {"mm", "millimeter", "millimeters"}:
        raise ValueError(f"{name}: space units {fields['space units'][:40]!r} are not mm: {AGAIN}")
    axes = _vectors(fields, "space directions", 3, name) * signs
    origin = _vectors(fields, "space origin", 1, name)[0] * signs
    spacing = np.linalg.norm(axes, axis=1)
    if not np.all(spacing > 0):
        raise ValueError(f"{name}: a space direction has no length: {DAMAGED}")
    right = right_angles((axes / spacing[:, None]).T, shape_xyz)
    if right is None:
        raise ValueError(f"{name} is sheared: its space directions are not at right angles: resample it")
    try:
        return Geometry.from_axes(shape_xyz, spacing, origin, right)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _vectors(fields: dict[str, str], field: str, count: int, name: str) -> NDArray[np.float64]:
    """So many vectors of three numbers, (count, 3)."""
    found = [inside.split(",") for inside in _VECTOR.findall(fields[field])]
    try:
        vectors = np.array([[float(number) for number in one] for one in found])
    except ValueError:
        vectors = np.zeros(0)
    if vectors.shape != (count, 3) or not np.isfinite(vectors).all():
        raise ValueError(f"{name}: {field} {fields[field][:60]!r} are not {count} times three numbers: {DAMAGED}")
    return vectors


def _load(
    path: Path, offset: int, gzipped: bool, dtype: np.dtype[Any], shape_zyx: tuple[int, int, int]
) -> NDArray[Any]:
    """Read the voxels, (z, y, x); a function of the module, so that an opened CT can be pickled."""
    with path.open("rb") as file:
        file.seek(offset)
        if gzipped:
            flat = inflate(file, voxel_bytes(shape_zyx, dtype), path.name, gzip=True).view(dtype)
        else:
            flat = np.fromfile(file, dtype, math.prod(shape_zyx))
            if flat.size != math.prod(shape_zyx):
                raise ValueError(f"{path.name} shrank to {flat.size} of {math.prod(shape_zyx)} voxels: is it in use?")
    return flat.astype(dtype.newbyteorder("="), copy=False).reshape(shape_zyx)
