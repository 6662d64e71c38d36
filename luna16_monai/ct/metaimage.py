"""MetaImage (.mhd, .mha): check the header and its data file first, then read the voxels.

A file from the internet may lie: a header of 100 bytes can ask for 10^12 voxels, name `../../secret` as its data, or
sit beside a raw file that was cut short. ITK's own parser follows such paths, fills up what is missing, and reads a
damaged .zraw without a word. So no library opens these files here: the header is parsed against a list of keys, sizes
are compared before anything is allocated, and numpy reads the bytes. Keys that are unknown are skipped, since
SimpleITK copies metadata of any name into a header; the format's own keys that would change the voxels or their place
and are not read are refused.

What remains unfound is a flipped bit in an uncompressed raw file: only the checksum of the volume store can tell.
Rejected: the split and the ASCII forms of the format and its synonyms (Position, Orientation, ...), none of which
LUNA16 or SimpleITK writes.
"""

from __future__ import annotations

import codecs
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.ct.checks import DAMAGED, after_zeros, check_file, check_voxels, inflate, right_angles, voxel_bytes
from luna16_monai.geometry.grid import Geometry
from luna16_monai.machine.files import atomic_write

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 * 1024
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COUNT = re.compile(r"[1-9]\d{0,18}", re.ASCII)
_LINE = re.compile(r"([^=\s][^=]*?)\s*=\s*(.*)", re.ASCII)
# Keys of the format that would change the voxels or their place.
_REFUSED = ("Position", "Origin", "Orientation", "Rotation", "ElementToIntensityFunctionSlope",
            "ElementToIntensityFunctionOffset", "ElementNBits")  # fmt: skip
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@dataclass(frozen=True)
class MetaImage:
    """A MetaImage whose header and file sizes have passed; the voxels are not read yet.

    Args:
        path: the header's file.
        data_path: the file with the voxels, the same as `path` for .mha.
        offset: bytes before the first voxel.
        stored_bytes: bytes of the (compressed) voxels in that file.
        compressed: whether they are a zlib stream.
        dtype: as stored, with its byte order.
        geometry: where the voxels lie.
    """

    path: Path
    data_path: Path
    offset: int
    stored_bytes: int
    compressed: bool
    dtype: np.dtype[Any]
    geometry: Geometry

    def read(self) -> NDArray[Any]:
        """Read the voxels: an array (z, y, x) in the file's type, native byte order.

        Raises:
            ValueError: a compressed file that does not hold exactly the voxels promised, or fails its checksum; a
                file that changed since it was checked.
        """
        with self.data_path.open("rb") as file:
            file.seek(self.offset)
            if self.compressed:
                bytes_ = inflate(file, voxel_bytes(self.geometry.shape_zyx, self.dtype), self.data_path.name)
                flat = bytes_.view(self.dtype)
            else:
                count = math.prod(self.geometry.shape_zyx)
                flat = np.fromfile(file, self.dtype, count)
                if flat.size != count:
                    raise ValueError(f"{self.data_path.name} shrank to {flat.size} of {count} voxels: is it in use?")
        return flat.astype(self.dtype.newbyteorder("="), copy=False).reshape(self.geometry.shape_zyx)


def open_metaimage(path: Path, data_dir: Path | None = None, allow_symlinks: bool = False) -> MetaImage:
    """Check a header and the size of its data file; read no voxel.

    The format: https://itk.org/Wiki/ITK/MetaIO/Documentation. `TransformMatrix` lists the world direction of x, then
    y, then z, and is the identity where it is absent, as in ITK.

    Args:
        path: a .mhd (voxels in a file beside it) or a .mha (voxels after the header).
        data_dir: the folder that symbolic links must not leave; default: the header's own.
        allow_symlinks: whether they may leave it.

    Raises:
        FileNotFoundError: the header or its data file is missing.
        ValueError: anything else that keeps the file from being read; the message names file and line.
    """
    name = path.name
    check_file(path, data_dir or path.parent, allow_symlinks)
    text, offset = _header_text(path)
    header = _parse(text, name)

    data_name = header["ElementDataFile"]
    local = data_name.upper() == "LOCAL"
    if path.suffix.lower() == ".mha" and not local:
        raise ValueError(
            f"{name}: ElementDataFile {data_name!r}: a .mha holds its voxels itself (LOCAL), a .mhd names one file "
            "beside it; write it anew with SimpleITK"
        )
    if local and not offset:
        raise ValueError(f"{name} ends with its header, without voxels: {DAMAGED}")
    data_path = path if local else path.with_name(_plain_name(data_name, name))
    if not local:
        check_file(data_path, data_dir or path.parent, allow_symlinks, f"{data_path.name}, the data file of {name},")

    compressed = header.get("CompressedData", False)
    msb = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", False))
    dtype = np.dtype(_DTYPES[header["ElementType"]]).newbyteorder(">" if msb else "<")
    x, y, z = header["DimSize"]
    stored = data_path.stat().st_size - offset
    expected = header.get("CompressedDataSize", stored) if compressed else voxel_bytes((z, y, x), dtype)
    check_voxels((z, y, x), dtype, stored if compressed else None, name)
    if header.get("HeaderSize") == "-1" and not compressed and stored > expected:
        # ITK: what is too much lies at the start
        offset, stored = offset + stored - expected, expected
    # zero bytes may follow a compressed stream, as tapes and some disks leave them
    if stored != expected and not (compressed and stored > expected and _zeros_from(data_path, offset + expected)):
        raise ValueError(
            f"{data_path.name} is too {'short' if stored < expected else 'long'}: {stored} bytes, its header says "
            f"{expected} (DimSize {x} {y} {z}, {header['ElementType']}): {DAMAGED}"
        )
    return MetaImage(path, data_path, offset, stored, compressed, dtype, _geometry(header, name))


def _zeros_from(path: Path, offset: int) -> bool:
    with path.open("rb") as file:
        file.seek(offset)
        return not after_zeros(b"", file)


def _header_text(path: Path) -> tuple[str, int]:
    """Return the header's text, and where the voxels begin: behind it if it holds them, else 0."""
    with path.open("rb") as file:
        raw = file.read(MAX_HEADER_BYTES + 1)
    end = 0
    # ElementDataFile ends a header; what follows it in a .mhd that names another file is reported by the parser
    found = re.search(rb"^ElementDataFile[ \t]*=([^\r\n]*)\r?\n", raw, re.MULTILINE)
    is_mha = path.suffix.lower() == ".mha"
    if found is not None and found.end() <= MAX_HEADER_BYTES and (is_mha or found[1].strip().upper() == b"LOCAL"):
        end = found.end()
        raw = raw[:end]
    elif is_mha:
        raise ValueError(
            f"{path.name}: no ElementDataFile in the first {MAX_HEADER_BYTES} bytes: this is no MetaImage file"
        )
    elif len(raw) > MAX_HEADER_BYTES:
        raise ValueError(f"{path.name}: a header of more than {MAX_HEADER_BYTES} bytes: this is no MetaImage header")
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: byte {error.start} is no text: this is no MetaImage header") from error
    return text, end


def _parse(text: str, name: str) -> dict[str, Any]:
    """Return the header's values by key, each checked and converted."""
    header: dict[str, Any] = {}
    skipped = 0
    # Not splitlines: it would also cut at form feeds and Unicode's own line ends.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        where = f"{name} line {number}"
        line = line.strip(" \t")
        if not line:
            continue
        found = _LINE.fullmatch(line)
        if found is None or not line.replace("\t", " ").isprintable():
            raise ValueError(f"{where} is not of the form 'Key = Value': this is no MetaImage header")
        key, value = found.groups()
        if "ElementDataFile" in header:
            what = key if key in _KEYS else "a line"
            raise ValueError(f"{where}: {what} after ElementDataFile, which ends a header: {DAMAGED}")
        check = _KEYS.get(key)
        if check is None:
            # ITK also takes a colon for the equals sign
            if key.partition(":")[0].rstrip().lower() in _MEANT:
                raise ValueError(
                    f"{where}: key {key[:60]!r} is not read, and would change the voxels or their place: write the CT "
                    "anew with SimpleITK"
                )
            skipped += 1
            continue
        if key in header:
            raise ValueError(f"{where}: {key} appears twice: {DAMAGED}")
        try:
            header[key] = check(value)
        except ValueError as error:
            raise ValueError(f"{where}: {key} {value[:60]!r} {error}") from error
    missing = [key for key in _REQUIRED if key not in header]
    if missing:
        raise ValueError(f"{name}: {missing[0]} is missing: this is no complete MetaImage header")
    if skipped:
        logger.debug("%s: %d keys that say nothing about the voxels are skipped", name, skipped)
    return header


def _geometry(header: dict[str, Any], name: str) -> Geometry:
    spacing = np.array(header["ElementSpacing"])
    if np.any(spacing == 0):
        raise ValueError(f"{name}: ElementSpacing {spacing.tolist()} mm must not be 0: {DAMAGED}")
    # The file lists the axes one after the other; in a direction matrix they are columns.
    direction = np.reshape(header.get("TransformMatrix", np.eye(3)), (3, 3)).T
    right = right_angles(direction, header["DimSize"])
    if right is None:
        raise ValueError(
            f"{name}: TransformMatrix {direction.T.ravel().tolist()} is no rotation or flip: its axes must be of "
            "length 1 and at right angles; resample a sheared scan first"
        )
    try:
        # as ITK: an axis of negative spacing is flipped
        return Geometry.from_axes(header["DimSize"], np.abs(spacing), header["Offset"], right * np.sign(spacing))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _plain_name(data_name: str, name: str) -> str:
    bare = data_name.removeprefix("./")
    plain = bare not in ("", ".", "..") and all(
        flavour(bare).name == bare for flavour in (PurePosixPath, PureWindowsPath)
    )
    if not plain or bare == "LIST":
        raise ValueError(
            f"{name}: ElementDataFile {data_name[:60]!r} must be the plain name of one file beside the header: "
            "write the CT anew with SimpleITK"
        )
    return bare


def _text(value: str) -> str:
    return value


def _one_of(*allowed: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"is not supported: expected {' or '.join(allowed)}")
        return value

    return check


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise ValueError("is neither True nor False")
    return value.lower() == "true"


def _true(value: str) -> bool:
    if not _flag(value):
        raise ValueError("is not supported: expected True")
    return True


def _numbers(count: int) -> Callable[[str], list[float]]:
    def check(value: str) -> list[float]:
        numbers = [float(word) if _NUMBER.fullmatch(word) else math.nan for word in value.split()]
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise ValueError(f"is not {count} finite numbers: {DAMAGED}")
        return numbers

    return check


def _counts(count: int) -> Callable[[str], list[int]]:
    def check(value: str) -> list[int]:
        words = value.split()
        if len(words) != count or not all(map(_COUNT.fullmatch, words)):
            raise ValueError(f"is not {count} positive whole numbers: {DAMAGED}")
        return [int(word) for word in words]

    return check


_REQUIRED = ("NDims", "DimSize", "ElementSpacing", "Offset", "ElementType", "ElementDataFile")
# Every key that is read, and the check of its value. Keys that don't touch the voxels are checked and then ignored.
_KEYS: dict[str, Callable[[str], Any]] = {
    "ObjectType": _one_of("Image"),
    "NDims": _one_of("3"),
    "BinaryData": _true,
    "BinaryDataByteOrderMSB": _flag,
    "ElementByteOrderMSB": _flag,
    "CompressedData": _flag,
    "CompressedDataSize": lambda value: _counts(1)(value)[0],
    "TransformMatrix": _numbers(9),
    "Offset": _numbers(3),
    "CenterOfRotation": _numbers(3),
    "AnatomicalOrientation": _text,
    "ElementSpacing": _numbers(3),
    "ElementSize": _numbers(3),
    "ElementMin": _numbers(1),
    "ElementMax": _numbers(1),
    "ElementNumberOfChannels": _one_of("1"),
    "HeaderSize": _one_of("0", "-1"),
    "DimSize": _counts(3),
    "DistanceUnits": _one_of("mm"),
    "Modality": _text,
    "Name": _text,
    "Comment": _text,
    "ElementType": _one_of(*_DTYPES),
    "ElementDataFile": _text,
}
# What is no key to be skipped, whatever its case.
_MEANT = {key.lower() for key in (*_KEYS, *_REFUSED)} - {"name", "comment", "modality"}


def write_mhd(path: Path, hu: NDArray[np.int16], geometry: Geometry) -> None:
    """Write a volume as LUNA16 has it: ``path``, a MetaImage header, and a raw file beside it.

    Args:
        path: ends in ``.mhd``.
        hu: int16 (z, y, x).
        geometry: where it lies; its axes must be at right angles.
    """
    raw = path.with_suffix(".raw")
    spacing = np.array(geometry.spacing_zyx[::-1])
    direction = geometry.affine[:3, 2::-1] / spacing
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": _written(direction.T.ravel()),
        "Offset": _written(geometry.affine[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": _orientation(direction),
        "ElementSpacing": _written(spacing),
        "DimSize": " ".join(str(n) for n in geometry.shape_zyx[::-1]),
        "ElementType": "MET_SHORT",
        "ElementDataFile": raw.name,
    }
    with atomic_write(raw) as stream:
        stream.write(np.ascontiguousarray(hu, "<i2").data)
    with atomic_write(path) as stream:
        stream.write("".join(f"{name} = {value}\n" for name, value in fields.items()).encode())


def _written(values: NDArray[np.floating]) -> str:
    """Return numbers of a header with ten digits, which keep a point within 0.0001 mm, and no minus before a zero."""
    return " ".join(f"{value + 0.0:.10g}" for value in values.round(10).tolist())


def _orientation(direction: NDArray[np.floating]) -> str:
    """Return MetaImage's letters: the side of the patient from which each index axis starts."""
    axes = np.abs(direction).argmax(0)
    return "".join(("RL", "AP", "IS")[axis][int(direction[axis, i] < 0)] for i, axis in enumerate(axes.tolist()))
