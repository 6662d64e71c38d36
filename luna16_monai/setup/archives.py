"""Unpacking LUNA16's archives: member by member, under names of our own, into the layout that all else reads.

Nothing in an archive is believed: not its names, which can lead out of a folder, not its sizes, not that a member is a
plain file. Rejected: the zip files' own names as they are; unpacking all and looking afterwards.
"""

from __future__ import annotations

import io
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from luna16_monai.machine.files import atomic_write, remove_abandoned

TABLES = {
    "annotations.csv": ("annotations.csv",),
    "candidates_V2.zip": ("candidates_V2.csv",),
    "evaluationScript.zip": ("annotations_excluded.csv", "seriesuids.csv"),
}
"""The tables that each archive is fetched for."""
MOST_EXPANSION, MOST_BYTES, MOST_MEMBERS, LONGEST_LIST = 20, 40 * 10**9, 10_000, 1 << 24
"""What an archive may hold: times its own size, bytes, members, bytes of their list. A subset: 12 GB in 178."""
DATA_SUFFIXES = (".raw", ".zraw")
_BLOCK = 1 << 18


def in_gb(size: float) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e9:.1f} GB"


class _Bounded(io.FileIO):
    """A file of which nobody reads much at once, as zipfile does with the whole list of members."""

    def read(self, size: int | None = -1) -> Any:
        if size is not None and size > LONGEST_LIST:
            raise zipfile.BadZipFile(f"its list of members takes {size} bytes")
        return super().read(-1 if size is None else size)


def unpack(path: Path, key: str, output: Path) -> dict[str, int]:
    """Unpack one of LUNA16's archives; of its members only CTs or the wanted tables, under names of our own.

    Each file takes its name when it is whole, and a CT's header after its voxels.

    Args:
        path: the archive.
        key: its published name.
        output: the data folder.

    Returns:
        The files, named below the data folder, and their sizes in bytes.

    Raises:
        ValueError: the archive is damaged or incomplete, or holds what a true one does not: paths out of its folder,
            links, the same name twice, more than its size justifies.
        RuntimeError: the disk has too little room.
    """
    with _Bounded(path) as file, _zip_errors(key), zipfile.ZipFile(file) as archive:
        members = _targets(archive.infolist(), key)
        total = sum(member.file_size for member in members.values())
        if total > min(MOST_BYTES, MOST_EXPANSION * path.stat().st_size):
            raise ValueError(
                f"{key} would unpack to {in_gb(total)} from {in_gb(path.stat().st_size)}, more than CTs and tables do: "
                "name another mirror with --base-url"
            )
        if (free := shutil.disk_usage(output).free) < total:
            raise RuntimeError(f"{output} has {in_gb(free)} free, but {key} unpacks to {in_gb(total)}: free some space")
        for folder in {(output / name).parent for name in members}:
            if folder.is_dir():
                remove_abandoned(folder)
        for name, member in sorted(members.items(), key=lambda item: item[0].endswith(".mhd")):
            with archive.open(member) as source, atomic_write(output / name) as stream:
                shutil.copyfileobj(source, stream, _BLOCK)
    return {name: member.file_size for name, member in members.items()}


def _targets(members: Sequence[zipfile.ZipInfo], key: str) -> dict[str, zipfile.ZipInfo]:
    """Return the members to unpack by the names that they get below the data folder."""
    elsewhere = "name another mirror with --base-url"
    if len(members) > MOST_MEMBERS:
        raise ValueError(f"{key} has {len(members)} members, more than any of LUNA16's: {elsewhere}")
    stem, targets = key.removesuffix(".zip"), dict[str, zipfile.ZipInfo]()
    for member in members:
        place = _place(member, key)
        if key in TABLES:
            # the evaluation script has examples of the same names in other folders
            wanted = place.name in TABLES[key] and place.parent.name in ("", stem, "annotations")
        else:
            wanted = place.suffix in (".mhd", *DATA_SUFFIXES) and not place.name.startswith(".")
        if member.is_dir() or not wanted:
            continue
        name = place.name if key in TABLES else f"{stem}/{place.name}"
        if name in targets:
            raise ValueError(f"{key} holds {place.name} twice: {elsewhere}")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{key} holds {place.name} in a form that Python cannot unpack (method {member.compress_type}): fetch "
                "it with --keep-archives and unpack it with 7z"
            )
        targets[name] = member
    for name in TABLES.get(key, ()) or [name for name in targets if name.endswith(".mhd")] or [f"{stem}/*.mhd"]:
        data = [name.removesuffix(".mhd") + suffix for suffix in DATA_SUFFIXES]
        if name not in targets or (name.endswith(".mhd") and not set(data) & set(targets)):
            raise ValueError(f"{key} is incomplete, {name if name not in targets else data[0]} is missing: {elsewhere}")
    return targets


def _place(member: zipfile.ZipInfo, key: str) -> PurePosixPath:
    """Return a member's path, refused where it could lead out of a folder or is no plain file's."""
    # as it stands in the archive: zipfile cuts it at a NUL
    name = member.orig_filename.replace("\\", "/")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if (
        not name.isprintable()
        or ":" in name
        or {"", ".", ".."} & set(name.removesuffix("/").split("/"))
        or kind not in (0, stat.S_IFREG, stat.S_IFDIR)
    ):
        what = "no plain path" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or another special file"
        raise ValueError(
            f"{key} holds {member.orig_filename[:80]!r}, {what}; nothing of it is unpacked: name another mirror with "
            "--base-url"
        )
    return PurePosixPath(name)


@contextmanager
def _zip_errors(key: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{key} cannot be unpacked ({error}): name another mirror with --base-url") from error
