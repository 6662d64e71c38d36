"""Which format a file has, and points read from and written to any of them.

A format is known by what a file holds, or for a new file by its suffix: ``.csv`` is ours, ``.json`` grand-challenge's,
``.mrk.json`` Slicer's; what a user names wins. grand-challenge's and Slicer's files are of one CT each: several CTs
make a folder of files that bear the names of their series, and such a folder is read as one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.interchange.documents import read_json
from luna16_monai.interchange.grand_challenge import HOLDS as POINT_HOLDS
from luna16_monai.interchange.grand_challenge import as_multiple_points, is_multiple_points, read_multiple_points
from luna16_monai.interchange.luna16 import read_cells, read_table, write_table
from luna16_monai.interchange.luna25 import ANSWER, is_training_table, read_training_table
from luna16_monai.interchange.monai_boxes import HOLDS as BOX_HOLDS
from luna16_monai.interchange.monai_boxes import as_data_list, is_data_list, read_boxes
from luna16_monai.interchange.points import DIAMETER, PROBABILITY, Points, joined
from luna16_monai.interchange.scans import Scans
from luna16_monai.interchange.slicer import HOLDS as MARKUP_HOLDS
from luna16_monai.interchange.slicer import OLD_SUFFIX, as_markups, is_markups, read_markups, read_old_markups
from luna16_monai.interchange.slicer import SUFFIX as MARKUP_SUFFIX
from luna16_monai.machine.claims import require_empty
from luna16_monai.machine.files import write_json
from luna16_monai.tables.points import PointTable, from_ras, has_column, read_points
from luna16_monai.tables.text import open_table

LUNA16, GRAND_CHALLENGE, MONAI, SLICER, LUNA25, LIDC = FORMATS = (
    "luna16", "grand-challenge", "monai", "slicer", "luna25", "lidc",
)  # fmt: skip
ONE_CT_A_FILE = {GRAND_CHALLENGE: ".json", SLICER: MARKUP_SUFFIX, LUNA25: ".json"}
"""Formats whose files are about one CT, and how these end."""
HELD = {GRAND_CHALLENGE: POINT_HOLDS, MONAI: BOX_HOLDS, SLICER: MARKUP_HOLDS, LUNA25: POINT_HOLDS}
"""Which values a format can hold; ours holds all."""
VOXEL_ORDERS = ("zyx", "xyz")


@dataclass(frozen=True)
class Conventions:
    """What a file does not say of itself.

    Attributes:
        scans: the CTs that were named.
        ras: its points are RAS, not LPS.
        voxel: its points are voxels of the CT, their axes in this order: ``zyx`` or ``xyz``; None: millimetres.
    """

    scans: Scans = field(default_factory=Scans)
    ras: bool = False
    voxel: str | None = None


def format_of(path: Path) -> str:
    """Return the format of a file, or of the files in a folder, by what it holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of `FORMATS`.
    """
    if path.is_dir():
        return _format_of_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: name a table that is there")
    name = path.name.lower()
    if name.endswith(OLD_SUFFIX):
        return SLICER
    if name.endswith(".json"):
        document = read_json(path)
        told = {SLICER: is_markups, GRAND_CHALLENGE: is_multiple_points, MONAI: is_data_list}
        for format_, fits in told.items():
            if fits(document):
                return format_
    elif name.endswith(".csv") or _looks_like_a_table(path):
        return LUNA25 if is_training_table(path) else LUNA16
    raise ValueError(f"{path} is in no known format: name another file, or its format ({', '.join(FORMATS)})")


def format_for(path: Path) -> str:
    """Return the format that a new file's name asks for.

    Raises:
        ValueError: its suffix says none.
    """
    name = path.name.lower()
    if name == ANSWER:
        return LUNA25
    for suffix, format_ in ((".csv", LUNA16), (MARKUP_SUFFIX, SLICER), (".json", GRAND_CHALLENGE)):
        if name.endswith(suffix):
            return format_
    raise ValueError(
        f"{path.name!r} says no format to write in: end it in .csv, .json or {MARKUP_SUFFIX}, or name the format"
    )


def read(path: Path, format_: str | None = None, conventions: Conventions | None = None) -> Points:
    """Read points, in world LPS mm, from a file or a folder of files of any format.

    Args:
        path: the file or folder.
        format_: one of `FORMATS`; None recognises it by what the file holds.
        conventions: what the file does not say of itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is malformed, a point lies outside its CT, or the conventions do not fit the format.
    """
    conventions = conventions or Conventions()
    format_ = format_ or format_of(path)
    _check_conventions(path, format_, conventions)
    if path.is_dir() and format_ in ONE_CT_A_FILE:
        points = joined([_read_file(file, format_, conventions) for file in _files(path, format_)], str(path))
    elif path.is_file():
        points = _read_file(path, format_, conventions)
    else:
        raise FileNotFoundError(f"no file {path}: name a {format_} file that is there")
    if conventions.voxel is not None:
        points = _from_voxels(points, conventions.scans, conventions.voxel)
    conventions.scans.require(points)
    return points


def read_as_table(
    path: Path, value_column: str | None, conventions: Conventions | None = None
) -> tuple[PointTable, tuple[str, ...]]:
    """Read points of any format as a table with one value, and the notes on what was left out.

    Our own tables are read as they always were, so that their errors name line and column; their CTs are not checked
    here.

    Args:
        path: the file or folder.
        value_column: as `read_points`; None for bare points.
        conventions: as `read`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read`, or a point lacks the value.
    """
    conventions = conventions or Conventions()
    if conventions.voxel is None and format_of(path) == LUNA16:
        table = read_points(path, value_column)
        return (from_ras(table) if conventions.ras else table), ()
    points = read(path, None, conventions)
    return points.table(value_column), points.notes


def read_diameters(path: Path, conventions: Conventions | None = None) -> NDArray[np.float64] | None:
    """Return the diameter of each point in mm, (n,), NaN where it is not known; None where none is.

    Args:
        path, conventions: as `read_as_table`.
    """
    if format_of(path) != LUNA16:
        points = read(path, None, conventions)
        return points.value(DIAMETER) if points.knows(DIAMETER) else None
    if not has_column(path, DIAMETER):
        return None
    diameters = read_points(path, DIAMETER).values
    return np.where(diameters > 0, diameters, np.nan)


def read_candidates(path: Path) -> Points:
    """Read our own table of candidates: points, diameters where the table has them, and its other columns as text.

    Raises:
        ValueError: as `read_points`.
    """
    bare = read_points(path, None)
    values = {DIAMETER: read_points(path, DIAMETER).values} if has_column(path, DIAMETER) else {}
    uids, cells = tuple(bare.row_series()), read_cells(path)
    return Points(str(path), uids, bare.points_xyz, values, (), bare.lines, "line", (), cells)


def check_output(path: Path, format_: str, series_uids: Sequence[str]) -> None:
    """Refuse an output that could not be written, before the work is done.

    Raises:
        ValueError: the format is only read, or a folder stands where a file is to be written.
        FileExistsError: the folder for several CTs is not empty.
    """
    if format_ == LIDC:
        raise ValueError("format lidc is only read: name another one")
    if format_ not in ONE_CT_A_FILE or len(set(series_uids)) <= 1:
        if path.is_dir():
            raise ValueError(f"{path} is a folder, where a file is to be written: name a file in it as --output")
    else:
        require_empty(_folder_for(path, format_), f"{format_} has one file a CT: name another --output, or empty it")


def write(path: Path, points: Points, format_: str | None = None) -> tuple[list[Path], tuple[str, ...]]:
    """Write points in a format, each file whole or not at all.

    Args:
        path: the file; for several CTs in a format of one CT a file, its name without the suffix is a folder.
        points: what to write.
        format_: one of `FORMATS`; None goes by the suffix.

    Returns:
        The files, and notes on what the format could not hold.

    Raises:
        ValueError: the format is only read, or can hold none of the points.
        FileExistsError: the folder for several CTs is not empty.
    """
    format_ = format_ or format_for(path)
    check_output(path, format_, points.series)
    notes = _losses(points, format_)
    if format_ == LUNA16:
        write_table(path, points)
        return [path], notes
    if format_ == MONAI:
        document, more = as_data_list(points)
        write_json(path, document)
        return [path], (*notes, *more)
    if format_ == LUNA25 and not points.knows(PROBABILITY) and len(points):
        raise ValueError(f"{points.source}: no point has a probability, as LUNA25's answer needs: name predictions")
    uids = points.series_uids
    if len(uids) <= 1:
        write_json(path, _document(points, format_))
        return [path], notes
    documents = {uid: _document(points.of_series(uid), format_) for uid in uids}
    files = [_folder_for(path, format_) / f"{uid}{ONE_CT_A_FILE[format_]}" for uid in uids]
    for file, content in zip(files, documents.values(), strict=True):
        write_json(file, content)
    return files, notes


def _document(points: Points, format_: str) -> Any:
    return as_markups(points) if format_ == SLICER else as_multiple_points(points)


def _folder_for(path: Path, format_: str) -> Path:
    """Return the folder of several CTs' files: the name of the one file, without its suffix."""
    suffix = ONE_CT_A_FILE[format_]
    return path.with_name(path.name[: -len(suffix)]) if path.name.lower().endswith(suffix) else path


def _losses(points: Points, format_: str) -> tuple[str, ...]:
    """Return what a format cannot hold, a line each."""
    if format_ not in HELD:
        return ()
    lost = [name for name in points.values if name not in HELD[format_] and points.knows(name)]
    notes = [f"{name} left out: {format_} cannot hold it" for name in lost]
    if format_ == MONAI and any(points.names):
        notes.append(f"names left out: {format_} cannot hold them")
    return tuple(notes)


def _check_conventions(path: Path, format_: str, conventions: Conventions) -> None:
    """Refuse options that a format has no use for."""
    if format_ not in FORMATS:
        raise ValueError(f"{format_!r} is no format: name one of {', '.join(FORMATS)}")
    if format_ == LIDC:
        raise ValueError(f"{path}: LIDC-IDRI's readings become a data folder: name a folder as --output")
    if conventions.ras and (format_ not in (LUNA16, MONAI) or conventions.voxel):
        frame = "voxels have no frame" if conventions.voxel else f"{format_} says or fixes its frame itself"
        raise ValueError(f"{path} with --ras: {frame}: leave --ras out")
    if conventions.voxel is not None:
        if conventions.voxel not in VOXEL_ORDERS:
            raise ValueError(f"--voxel {conventions.voxel}: name the axes' order, {' or '.join(VOXEL_ORDERS)}")
        if format_ != LUNA16:
            raise ValueError(f"{path} with --voxel: {format_} is in millimetres: leave --voxel out")
        if not conventions.scans.cts:
            raise ValueError(f"{path} with --voxel: voxels need their CT: name it with --ct")


def _read_file(path: Path, format_: str, conventions: Conventions) -> Points:
    """Read one file, in the frame that it is in."""
    scans = conventions.scans
    if format_ == LUNA16:
        points = read_table(path)
        if conventions.ras:
            flipped = from_ras(points.table(None)).points_xyz + 0.0
            points = replace(points, points_xyz=flipped)
        return points
    if format_ == MONAI:
        return read_boxes(path, scans, conventions.ras)
    if format_ == SLICER:
        old = path.name.lower().endswith(OLD_SUFFIX)
        return read_old_markups(path, scans) if old else read_markups(path, scans)
    if format_ == LUNA25 and not path.name.lower().endswith(".json"):
        return read_training_table(path).points
    return read_multiple_points(path, scans)


def _from_voxels(points: Points, scans: Scans, order: str) -> Points:
    """Return points that were read as voxels, in millimetres."""
    indices = points.points_xyz if order == "zyx" else points.points_xyz[:, ::-1]
    xyz = np.empty_like(indices)
    series = np.array(points.series, object)
    for uid in points.series_uids:
        rows = np.flatnonzero(series == uid)
        scans.known(uid, points.place(int(rows[0])))
        xyz[rows] = scans.cts[uid].geometry.world_from_voxel(indices[rows])
    return replace(points, points_xyz=xyz)


def _format_of_folder(folder: Path) -> str:
    """Return what the files in a folder are."""
    names = sorted(path.name.lower() for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if any(name.endswith((MARKUP_SUFFIX, OLD_SUFFIX)) for name in names):
        return SLICER
    if any(name.endswith(".json") for name in names):
        return GRAND_CHALLENGE
    if next(folder.rglob("*.xml"), None) is not None:
        return LIDC
    raise ValueError(f"folder {folder} holds no points: name one with .json, {MARKUP_SUFFIX} or .xml files")


def _files(folder: Path, format_: str) -> list[Path]:
    """Return the files of a folder that are in a format of one CT a file, by name."""
    ends: Iterable[str] = (MARKUP_SUFFIX, OLD_SUFFIX) if format_ == SLICER else (".json",)
    found = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(tuple(ends))]
    found = [path for path in found if path.is_file() and not path.name.startswith(".")]
    if not found:
        raise ValueError(f"folder {folder} holds no {format_} file ({', '.join(ends)}): name another one")
    return found


def _looks_like_a_table(path: Path) -> bool:
    """Return whether a file without a known suffix begins with the header of a table of points."""
    try:
        with open_table(path) as lines:
            header = [name.strip() for name in next(csv.reader(lines), [])]
    except ValueError:
        return False
    return "seriesuid" in header or "SeriesInstanceUID" in header
