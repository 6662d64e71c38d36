"""Which format a file has, and points read from and written to any of them.

A format is known by what a file holds, or for a new file by its suffix: ``.csv`` is ours, ``.json`` grand-challenge's,
``.mrk.json`` Slicer's; what a user names wins. grand-challenge's and Slicer's files are of one CT each: several CTs
make a folder of files that bear the names of their series, and such a folder is read as one.

To add a format, write a module with its `Format`, and name that in `_ALL`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.interchange import grand_challenge, lidc_xml, luna16, luna25, monai_boxes, slicer
from luna16_monai.interchange.files import Format, read_json
from luna16_monai.interchange.luna16 import read_cells
from luna16_monai.interchange.points import DIAMETER, Points, joined
from luna16_monai.interchange.scans import Scans
from luna16_monai.machine.claims import require_empty
from luna16_monai.tables.points import PointTable, from_ras, has_column, read_points

_ALL = (luna16.FORMAT, grand_challenge.FORMAT, monai_boxes.FORMAT, slicer.FORMAT, luna25.FORMAT, lidc_xml.FORMAT)
FORMATS = {format_.name: format_ for format_ in _ALL}
"""All formats by name; a file is of the last one that recognises it, so that any other table is ours."""
LUNA16, GRAND_CHALLENGE, MONAI, SLICER, LUNA25, LIDC = FORMATS
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
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: name a table that is there")
    is_document = path.is_file() and path.name.lower().endswith(".json")
    content = read_json(path) if is_document else None
    found = next((name for name, format_ in reversed(FORMATS.items()) if format_.recognises(path, content)), None)
    if found is not None:
        return found
    if path.is_dir():
        raise ValueError(f"folder {path} holds no points: name one with .json, {slicer.SUFFIX} or .xml files")
    raise ValueError(f"{path} is in no known format: name another file, or its format ({', '.join(FORMATS)})")


def format_for(path: Path) -> str:
    """Return the format that a new file's name asks for.

    Raises:
        ValueError: its suffix says none.
    """
    name = path.name.lower()
    endings = {ending: format_.name for format_ in _ALL for ending in format_.new_names}
    for ending in sorted(endings, key=len, reverse=True):
        if name == ending or (ending.startswith(".") and name.endswith(ending)):
            return endings[ending]
    *some, last = [ending for ending in endings if ending.startswith(".")]
    raise ValueError(
        f"{path.name!r} says no format to write in: end it in {', '.join(some)} or {last}, or name the format"
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
    chosen = _named(format_)
    if chosen.read is None:
        raise ValueError(f"{path}: what {format_} holds becomes a data folder: name a folder as --output")
    _check_conventions(path, chosen, conventions)
    scans, ras = conventions.scans, conventions.ras
    if path.is_dir() and chosen.one_ct_a_file:
        files = chosen.files_in(path)
        if not files:
            ends = ", ".join(chosen.suffixes)
            raise ValueError(f"folder {path} holds no {format_} file ({ends}): name another one")
        points = joined([chosen.read(file, scans, ras) for file in files], str(path))
    elif path.is_file():
        points = chosen.read(path, scans, ras)
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
    chosen = _named(format_)
    _document_of(chosen)
    if not chosen.one_ct_a_file or len(set(series_uids)) <= 1:
        if path.is_dir():
            raise ValueError(f"{path} is a folder, where a file is to be written: name a file in it as --output")
    else:
        require_empty(_folder_for(path, chosen), f"{format_} has one file a CT: name another --output, or empty it")


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
    chosen = FORMATS[format_]
    document_of = _document_of(chosen)
    uids = points.series_uids
    if chosen.one_ct_a_file and len(uids) > 1:
        parts = {_folder_for(path, chosen) / f"{uid}{chosen.suffixes[0]}": points.of_series(uid) for uid in uids}
    else:
        parts = {path: points}
    documents = {file: document_of(part) for file, part in parts.items()}
    for file, (document, _) in documents.items():
        chosen.save(file, document)
    more = dict.fromkeys(note for _, notes in documents.values() for note in notes)
    return list(documents), (*chosen.loses(points), *more)


def _named(format_: str) -> Format:
    """Return a format by its name."""
    if format_ not in FORMATS:
        raise ValueError(f"{format_!r} is no format: name one of {', '.join(FORMATS)}")
    return FORMATS[format_]


def _document_of(format_: Format) -> Callable[[Points], tuple[Any, tuple[str, ...]]]:
    """Return the function that makes a document of points in a format."""
    if format_.document is None:
        raise ValueError(f"format {format_.name} is only read: name another one")
    return format_.document


def _folder_for(path: Path, format_: Format) -> Path:
    """Return the folder of several CTs' files: the name of the one file, without its suffix."""
    suffix = format_.suffixes[0]
    return path.with_name(path.name[: -len(suffix)]) if path.name.lower().endswith(suffix) else path


def _check_conventions(path: Path, format_: Format, conventions: Conventions) -> None:
    """Refuse options that a format has no use for."""
    if conventions.ras and (not format_.may_be_ras or conventions.voxel):
        frame = "voxels have no frame" if conventions.voxel else f"{format_.name} says or fixes its frame itself"
        raise ValueError(f"{path} with --ras: {frame}: leave --ras out")
    if conventions.voxel is not None:
        if conventions.voxel not in VOXEL_ORDERS:
            raise ValueError(f"--voxel {conventions.voxel}: name the axes' order, {' or '.join(VOXEL_ORDERS)}")
        if not format_.may_be_voxels:
            raise ValueError(f"{path} with --voxel: {format_.name} is in millimetres: leave --voxel out")
        if not conventions.scans.cts:
            raise ValueError(f"{path} with --voxel: voxels need their CT: name it with --ct")


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
