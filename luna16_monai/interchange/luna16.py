"""Our own tables: LUNA16's columns, any of ``class``, ``probability`` and ``diameter_mm``, and further columns.

A diameter that is not known is -1, as in LUNA16's own tables; any other value that is not known is an empty cell.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luna16_monai.interchange.files import Format
from luna16_monai.interchange.points import DIAMETER, KNOWN, PROBABILITY, FloatArray, Points
from luna16_monai.interchange.scans import Scans
from luna16_monai.machine.files import write_csv
from luna16_monai.tables.points import COORDINATES, from_ras, read_points, written
from luna16_monai.tables.text import open_table

NAME = "name"
DETECTION = "detection_probability"
"""What the probability of a list is called behind another one."""
_OWN = ("seriesuid", *COORDINATES, NAME)


def read_table(path: Path) -> Points:
    """Read a table of points with all its columns; one that holds other things than numbers is left out.

    Raises:
        ValueError: a column of `KNOWN` holds what it cannot, or as `read_points`.
    """
    bare = read_points(path, None)
    header, rows = _cells(path)
    values: dict[str, FloatArray] = {}
    notes = []
    for column, name in enumerate(header):
        if name in _OWN:
            continue
        numbers, odd = _numbers([row[column] for row in rows])
        if odd is not None and name in KNOWN:
            line = bare.lines[odd]
            raise ValueError(f"{path}, line {line}: {name} is {rows[odd][column][:40]!r}, not a finite number: mend it")
        if odd is None:
            values[name] = numbers
        else:
            notes.append(f"column {name!r} left out: it holds other things than numbers")
    names = tuple(row[header.index(NAME)] for row in rows) if NAME in header else ()
    return Points(str(path), tuple(bare.row_series()), bare.points_xyz, values, names, bare.lines, "line", tuple(notes))


def read_cells(path: Path) -> dict[str, list[str]]:
    """Return the columns that a table of points has besides series and place, as they are written in it.

    A column whose name stands there twice is the second time called ``list_`` and its name.
    """
    header, rows = _cells(path)
    cells: dict[str, list[str]] = {}
    for column, name in enumerate(header):
        if name not in ("seriesuid", *COORDINATES):
            cells[_free(name, cells)] = [row[column] for row in rows]
    return cells


def header_of(path: Path) -> list[str]:
    """Return the names in the first line of a table, none where the file is no text."""
    try:
        with open_table(path) as lines:
            return [name.strip() for name in next(csv.reader(lines), [])]
    except ValueError:
        return []


def columns_behind(points: Points, own: Iterable[str]) -> dict[str, Sequence[object]]:
    """Return what is known of points, as columns to be written behind others.

    Args:
        points: a list of candidates, in any format.
        own: the names of the columns before them. A probability that the list had is called `DETECTION`, another name
            that is taken gets ``list_`` before it.
    """
    known: dict[str, Sequence[object]] = dict(points.cells)
    for name, value in points.values.items():
        known.setdefault(name, _as_cells(name, value))
    if any(points.names):
        known.setdefault(NAME, [" ".join(name.split()) for name in points.names])
    behind: dict[str, Sequence[object]] = {}
    taken = {"seriesuid", *COORDINATES, *own}
    for name, column in known.items():
        new = DETECTION if name == PROBABILITY and name in taken and DETECTION not in known else name
        behind[_free(new, taken | behind.keys())] = column
    return behind


def _free(name: str, taken: Iterable[str]) -> str:
    """The name, or one that is not taken."""
    while name in taken:
        name = f"list_{name}"
    return name


def write_table(path: Path, points: Points) -> None:
    """Write a table that `read_table` reads, whole or not at all; coordinates with 6 decimals."""
    columns = {name: _as_cells(name, value) for name, value in points.values.items()}
    if any(points.names):
        # a cell over several lines is refused when it is read
        columns[NAME] = [" ".join(name.split()) for name in points.names]
    places = zip(points.series, points.points_xyz.tolist(), strict=True)
    head = ([uid, *map(written, point)] for uid, point in places)
    cells = zip(*columns.values(), strict=True) if columns else iter([()] * len(points))
    rows = ([*place, *more] for place, more in zip(head, cells, strict=True))
    write_csv(path, ["seriesuid", *COORDINATES, *columns], rows)


def _cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table that `read_points` has read."""
    with open_table(path) as text:
        lines: Iterator[list[str]] = csv.reader(text)
        header = [name.strip() for name in next(lines)]
        return header, [row for row in lines if row]


def _numbers(texts: list[str]) -> tuple[FloatArray, int | None]:
    """Return a column as numbers, NaN where a cell is empty; and the first row that holds something else."""
    found = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        if not text.strip():
            continue
        try:
            found[row] = float(text)
        except ValueError:
            return found, row
        if not np.isfinite(found[row]) or "_" in text or not text.isascii():
            return found, row
    return found, None


def _as_cells(name: str, value: FloatArray) -> list[object]:
    unknown: object = -1 if name == DIAMETER else ""
    return [unknown if np.isnan(v) else int(v) if name == "class" else v for v in value.tolist()]


def _recognises(path: Path, document: Any) -> bool:
    if document is not None or not path.is_file():
        return False
    return path.name.lower().endswith(".csv") or "seriesuid" in header_of(path)


def _read(path: Path, _: Scans, ras: bool) -> Points:
    points = read_table(path)
    return replace(points, points_xyz=from_ras(points.table(None)).points_xyz + 0.0) if ras else points


FORMAT = Format(
    "luna16",
    recognises=_recognises,
    read=_read,
    document=lambda points: (points, ()),
    save=write_table,
    new_names=(".csv",),
    holds=None,
    may_be_ras=True,
    may_be_voxels=True,
)
