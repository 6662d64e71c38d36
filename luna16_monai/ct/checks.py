"""Checks of voxel data before they are trusted: file sizes, voxel types, and inflation of compressed data."""

from __future__ import annotations

import math
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from luna16_monai.geometry.grid import is_orthonormal

# 1024 x 1024 x 2048; LUNA16's largest scan has 512 x 512 x 764.
MAX_VOXELS = 2**31
# Deflate can't do better than 1032 to 1 (zlib's technical notes, "maximum compression factor").
MAX_INFLATION = 1032
# The largest entry of |DᵀD - 1| of directions that are put right; with three digits they have up to 0.002.
ROUNDED_COSINES = 5e-3
# By how many voxels the rounding of a direction may move the end of its axis.
ROUNDED_VOXELS = 0.5
_CHUNK = 1 << 20
DAMAGED = "the file is damaged, fetch or write it anew"


def check_file(path: Path, data_dir: Path, allow_symlinks: bool, what: str = "") -> None:
    """Check that a path is a regular file, not reached through a symbolic link that leaves the data folder.

    Args:
        path: the file.
        data_dir: the folder that links must not leave.
        allow_symlinks: whether they may leave it.
        what: the file in words, for the message; default: its name.

    Raises:
        FileNotFoundError: nothing is there (a dangling link counts as nothing).
        ValueError: a folder, a pipe or a device, or a link that leaves `data_dir` without `allow_symlinks`.
    """
    what = what or path.name
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FileNotFoundError(f"{what} is missing ({error.strerror}): check the path, or fetch it again") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{what} is no regular file: give the file of a CT")
    if not allow_symlinks and not path.resolve().is_relative_to(data_dir.resolve()):
        raise ValueError(
            f"{what} is reached through a symbolic link that leaves the data folder {data_dir.resolve().name!r}: "
            "pass --allow-symlinks (allow_symlinks=True) if you trust it"
        )


def right_angles(direction: NDArray[np.float64], shape_xyz: Sequence[int]) -> NDArray[np.float64] | None:
    """Return a direction matrix at right angles: itself, or the nearest one where it is off by rounding alone.

    Args:
        direction: (3, 3), the direction of an index axis in each column.
        shape_xyz: voxels along the axes: the rounding may move none of them by more than `ROUNDED_VOXELS`.

    Returns:
        None where it is off by more: the axes are sheared, or no directions.
    """
    if is_orthonormal(direction):
        return direction
    if not is_orthonormal(direction, ROUNDED_COSINES):
        return None
    u, _, v = np.linalg.svd(direction)
    right: NDArray[np.float64] = u @ v
    moved = np.linalg.norm(right - direction, axis=0) * np.array(shape_xyz)
    return right if moved.max() <= ROUNDED_VOXELS else None


def check_voxels(shape: tuple[int, ...], dtype: DTypeLike, compressed_bytes: int | None, name: str) -> None:
    """Check, before anything is allocated, that so many voxels can be meant.

    Args:
        shape: voxels along each axis.
        dtype: of one voxel.
        compressed_bytes: size of the compressed file they come from; None where they are not compressed.
        name: the file, for the message.

    Raises:
        ValueError: more than MAX_VOXELS, or more than a compressed file of this size can hold.
    """
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise ValueError(f"{name} asks for {voxels} voxels, the limit is {MAX_VOXELS}: {DAMAGED}")
    if compressed_bytes is not None and voxel_bytes(shape, dtype) > compressed_bytes * MAX_INFLATION:
        raise ValueError(
            f"{name} asks for {voxel_bytes(shape, dtype)} bytes, more than {compressed_bytes} compressed bytes can "
            f"hold: {DAMAGED}"
        )


def inflate(file: BinaryIO, size: int, name: str, gzip: bool = False) -> NDArray[np.uint8]:
    """Inflate the rest of a file into exactly `size` bytes, never more, and verify the stream's checksum.

    Args:
        file: where the compressed stream starts and, at its end, the file ends. A gzip file may consist of several
            members one after the other (as bgzip and pigz write it), and zero bytes may follow the last.
        size: bytes expected.
        name: the file, for the message.
        gzip: whether the stream must be gzip (CRC-32); else it may be zlib (Adler-32) too, as in ITK.

    Raises:
        ValueError: too few or too many bytes, a broken or unfinished stream, a wrong checksum, bytes after the end.
    """
    out = np.empty(size, np.uint8)
    filled, rest = 0, b""
    try:
        while True:
            # 16: gzip; 32: gzip or zlib
            stream = zlib.decompressobj(zlib.MAX_WBITS + (16 if gzip else 32))
            filled = _inflate_member(stream, file, rest, out, filled, name)
            rest = stream.unused_data
            if not stream.eof:
                break
            rest = after_zeros(rest, file)
            if not rest:
                break
            if len(rest) < 2:
                rest += file.read(1)
            if rest[:2] != b"\x1f\x8b":
                break
    except zlib.error as error:
        raise ValueError(f"{name} can't be inflated ({error}): {DAMAGED}") from error
    if not stream.eof or filled < size:
        raise ValueError(f"{name} is too short: it inflates to {filled} bytes, its header says {size}: {DAMAGED}")
    if rest or file.read(1):
        raise ValueError(f"{name} is too long: bytes follow the end of the compressed voxels: {DAMAGED}")
    return out


def _inflate_member(
    stream: zlib._Decompress, file: BinaryIO, start: bytes, out: NDArray[np.uint8], filled: int, name: str
) -> int:
    """Inflate one stream, whose first bytes are given, into `out` from `filled` on; return where it ends."""
    while not stream.eof:
        # What the cap on the output left unread comes before fresh bytes.
        pending = start or stream.unconsumed_tail or file.read(_CHUNK)
        start = b""
        # One byte more than is wanted, so that an overlong stream shows.
        part = stream.decompress(pending, min(_CHUNK, out.size - filled + 1))
        if filled + len(part) > out.size:
            raise ValueError(f"{name} is too long: it inflates to more than the {out.size} bytes its header says")
        out[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
        if not pending and not part:
            break
    return filled


def after_zeros(rest: bytes, file: BinaryIO) -> bytes:
    """Return what follows the zero bytes from here on; empty where only such are left in the file."""
    while not rest or not rest.strip(b"\0"):
        rest = file.read(_CHUNK)
        if not rest:
            return b""
    return rest if rest[:1] == b"\x1f" else rest.lstrip(b"\0")


def voxel_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Return how many bytes the voxels of a volume take."""
    return math.prod(shape) * np.dtype(dtype).itemsize
