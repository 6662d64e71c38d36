"""Tables of points: read, join by series, write.

A table is kept as a handful of numpy columns instead of one Python object per row: the 754,975 rows of
candidates_V2 then take about 30 MB, and a loader's worker shares them with its parent.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna16_monai.geometry.grid import lps_from_ras
from luna16_monai.machine.files import write_csv
from luna16_monai.tables.text import is_series_uid, no_series_uid, open_table, require_columns


def from_ras(table: PointTable) -> PointTable:
    """Return a table whose points were RAS, as LPS: x and y change their signs."""
    flipped: Mapping[str, Any] = {**vars(table), "points_xyz": lps_from_ras(table.points_xyz)}
    return PointTable(**flipped)


COORDINATES = ("coordX", "coordY", "coordZ")
ROWS_AT_ONCE = 65_536
Key = tuple[str, str, str, str]
"""A series and the three coordinates of a point, as `point_key` writes them."""


@dataclass(frozen=True)
class PointTable:
    """Rows of one table, as columns.

    Attributes:
        source: where the rows were read, for messages.
        series_uids: the distinct series, sorted.
        series: (n,) int32, each row's index into ``series_uids``.
        points_xyz: (n, 3) float64, world LPS in mm.
        values: (n,) float64: the class, the diameter in mm or the probability.
        lines: (n,) int32, each row's line in the file, counted from 1.
        row_name: what ``lines`` count, where the file is no table: "point".
        files: where the rows of several tables were read, if they were joined; see `joined_tables`.
        file: (n,) of each row, its index into ``files``; None for one table.
    """

    source: str
    series_uids: tuple[str, ...]
    series: NDArray[np.int32]
    points_xyz: NDArray[np.float64]
    values: NDArray[np.float64]
    lines: NDArray[np.int32]
    row_name: str = "line"
    files: tuple[str, ...] = ()
    file: NDArray[np.int16] | None = None

    def __len__(self) -> int:
        return len(self.series)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.integer]) -> PointTable:
        """Return the same table with only these rows (a mask or indices); the list of series stays as it is."""
        return replace(
            self,
            series=self.series[rows],
            points_xyz=self.points_xyz[rows],
            values=self.values[rows],
            lines=self.lines[rows],
            file=None if self.file is None else self.file[rows],
        )

    def row_series(self) -> list[str]:
        """Return the series of each row, (n,)."""
        return [self.series_uids[code] for code in self.series]

    def place(self, row: int) -> str:
        """Return where a row was read, for messages: its file and line."""
        source = self.source if self.file is None else self.files[self.file[row]]
        return f"{source}, {self.row_name} {self.lines[row]}"

    def row_key(self, row: int) -> Key:
        """Return what the point of a row is known by, see `point_key`."""
        return point_key(self.series_uids[self.series[row]], self.points_xyz[row].tolist())

    def series_codes(self, series_uids: Sequence[str]) -> NDArray[np.int32]:
        """Return each row's index into another list of series, -1 where that list lacks the row's series.

        Args:
            series_uids: distinct series, in any order.

        Returns:
            (n,) int32.
        """
        position = {uid: i for i, uid in enumerate(series_uids)}
        recode = np.array([position.get(uid, -1) for uid in self.series_uids], dtype=np.int32)
        return recode[self.series] if len(recode) else np.zeros(0, np.int32)

    def require_series(self, series_uids: Iterable[str], where: str) -> None:
        """Check that every row's series is known.

        Raises:
            ValueError: names the first row whose series is not among ``series_uids``.
        """
        known = set(series_uids)
        unknown = set(self.series_uids) - known
        codes = [i for i, uid in enumerate(self.series_uids) if uid in unknown]
        rows = np.flatnonzero(np.isin(self.series, codes))
        if len(rows):
            uid = self.series_uids[self.series[rows[0]]]
            question = "does this table belong to these scans?"
            plain = unicodedata.normalize("NFC", uid)
            alike = [other for other in known if unicodedata.normalize("NFC", other) == plain]
            if alike:
                question = (
                    f"{alike[0]!a} there and {uid!a} here are one name in two forms of Unicode: rename the "
                    "CT, or write the table's name as the CT's"
                )
            raise ValueError(f"series {uid} ({self.place(rows[0])}) is not in {where}: {question}")


def read_points(path: Path | zipfile.Path, value_column: str | None) -> PointTable:
    """Read a table of points. A byte-order mark, CRLF, further columns and the columns' order do not matter.

    Args:
        path: a CSV file with a header line, or a member of a zip.
        value_column: ``class``, ``diameter_mm``, ``probability`` or ``calibrated_probability``; decides which values
            are allowed. None for bare points: the values are then 0.

    Raises:
        ValueError: names file, line and column of what is wrong.
    """
    columns = ("seriesuid", *COORDINATES, *([value_column] if value_column else []))
    codes: dict[str, int] = {}
    parts: list[tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int32]]] = []
    with open_table(path) as text:
        reader = csv.reader(text)
        try:
            header = [name.strip() for name in next(reader, [])]
            positions = require_columns(header, columns, path)
            before = reader.line_num
            while rows := list(itertools.islice(reader, ROWS_AT_ONCE)):
                _refuse_line_breaks(rows, before, reader.line_num, path)
                parts.append(_parse_rows(rows, before + 1, header, positions, codes, path))
                before = reader.line_num
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}: is this a CSV table?") from error
    series_uids = tuple(sorted(codes))
    sorted_codes = np.argsort(np.argsort(np.array(list(codes), dtype=object))) if codes else np.zeros(0, int)
    first_seen = np.concatenate([part[0] for part in parts]) if parts else np.zeros(0, np.int32)
    numbers = np.concatenate([part[1] for part in parts]) if parts else np.zeros((0, len(columns) - 1))
    lines = np.concatenate([part[2] for part in parts]) if parts else np.zeros(0, np.int32)
    table = PointTable(
        source=str(path),
        series_uids=series_uids,
        series=sorted_codes[first_seen].astype(np.int32),
        points_xyz=np.ascontiguousarray(numbers[:, :3]),
        values=np.ascontiguousarray(numbers[:, 3]) if value_column else np.zeros(len(numbers)),
        lines=lines,
    )
    if value_column:
        _check_values(table, value_column)
    return table


def joined_tables(tables: Sequence[PointTable]) -> PointTable:
    """Return the rows of all tables, one table after the other; one table alone as it is."""
    if len(tables) == 1:
        return tables[0]
    series_uids = tuple(sorted({uid for table in tables for uid in table.series_uids}))
    return PointTable(
        source=", ".join(table.source for table in tables),
        series_uids=series_uids,
        series=np.concatenate([table.series_codes(series_uids) for table in tables]),
        points_xyz=np.concatenate([table.points_xyz for table in tables]),
        values=np.concatenate([table.values for table in tables]),
        lines=np.concatenate([table.lines for table in tables]),
        files=tuple(table.source for table in tables),
        file=np.repeat(np.arange(len(tables), dtype=np.int16), [len(table) for table in tables]),
    )


def has_column(path: Path | zipfile.Path, column: str) -> bool:
    """Return whether the header of a table names this column."""
    with open_table(path) as lines:
        return column in [name.strip() for name in next(csv.reader(lines), [])]


def write_points(
    path: Path,
    series_uids: Sequence[str],
    points_xyz: ArrayLike,
    values: ArrayLike,
    value_column: str,
    /,
    **more: ArrayLike | Sequence[object],
) -> None:
    """Write a table in LUNA16's columns; the file is whole or absent.

    Args:
        path: the CSV file.
        series_uids: one series a row.
        points_xyz: (n, 3) world LPS in mm, written with 6 decimals.
        values: (n,) numbers.
        value_column: the last column's name.
        more: further columns, (n,) each, under any name; a list is written as it is.
    """
    points = np.asarray(points_xyz, float).reshape(-1, 3).tolist()
    columns = [c if isinstance(c, list | tuple) else np.asarray(c).tolist() for c in (values, *more.values())]
    rows = zip(series_uids, points, *columns, strict=True)
    write_csv(
        path,
        ["seriesuid", *COORDINATES, value_column, *more],
        ([uid, *map(written, point), *numbers] for uid, point, *numbers in rows),
    )


def written(coordinate: float) -> str:
    """Return a coordinate as tables have it, with 6 decimals."""
    return f"{coordinate:.6f}"


def point_key(series_uid: str, point_xyz: Iterable[float]) -> Key:
    """Return what a point is known by in every table: its series, and its coordinates with 6 decimals.

    A point that was written and read again has the same key; -0.0 counts as 0.0.
    """
    # rounded first: a small negative number would else be written as -0.000000
    x, y, z = (written(round(coordinate, 6) + 0.0) for coordinate in point_xyz)
    return series_uid, x, y, z


def duplicate_rows(table: PointTable) -> NDArray[np.intp]:
    """Return rows that repeat an earlier row's series and point exactly, as indices in the order of the file."""
    order, same = runs_of_equal_points(table)
    return np.sort(order[1:][same])


def runs_of_equal_points(table: PointTable) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the rows sorted by series and point, and whether each equals the one before it."""
    order = np.lexsort((*table.points_xyz.T, table.series))
    series, points = table.series[order], table.points_xyz[order]
    same = (series[1:] == series[:-1]) & (points[1:] == points[:-1]).all(axis=1)
    return order, same


def _refuse_line_breaks(rows: list[list[str]], before: int, last_line: int, path: Path | zipfile.Path) -> None:
    """A value with line breaks is a quote that was not closed; and every row has its line."""
    if last_line - before != len(rows):
        line = next(before + 1 + i for i, row in enumerate(rows) if any(c in value for value in row for c in "\r\n"))
        raise ValueError(f"{path}, line {line}: a quoted value runs over several lines: close the quote")


def _parse_rows(
    rows: list[list[str]],
    first_line: int,
    header: list[str],
    positions: list[int],
    codes: dict[str, int],
    path: Path | zipfile.Path,
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.int32]]:
    """Turn rows of text into (series code by first appearance, (n, 4) numbers, line numbers)."""
    lines: Sequence[int] = range(first_line, first_line + len(rows))
    if not all(rows):  # blank lines
        lines = [line for line, row in zip(lines, rows, strict=True) if row]
        rows = [row for row in rows if row]
    if not set(map(len, rows)) <= {len(header)}:
        line, row = next((line, row) for line, row in zip(lines, rows, strict=True) if len(row) != len(header))
        commas = len(row) > len(header) and all(part.strip().lstrip("+-").isdigit() for part in row[-2:])
        cure = "write the numbers with points where they have decimal commas" if commas else "mend it"
        raise ValueError(f"{path}, line {line}: {len(row)} values, but the header names {len(header)}: {cure}")
    uid_position, *number_positions = positions
    uids = [row[uid_position].strip() for row in rows]
    for uid in dict.fromkeys(uids):
        if not is_series_uid(uid):
            raise ValueError(no_series_uid(uid, f"{path}, line {lines[uids.index(uid)]}"))
        codes.setdefault(uid, len(codes))
    numbers = np.empty((len(rows), len(number_positions)))
    for target, position in enumerate(number_positions):
        texts = [row[position] for row in rows]
        try:
            numbers[:, target] = np.fromiter(map(float, texts), float, len(texts))
        except ValueError:
            numbers[:, target] = np.nan
        if not _is_plain("".join(texts)):
            numbers[:, target] = np.nan
        if not np.isfinite(numbers[:, target]).all():
            line, text = next((line, text) for line, text in zip(lines, texts, strict=True) if not _is_finite(text))
            comma = re.fullmatch(r"\s*[-+]?\d+,\d+\s*", text)
            cure = f"write {text.strip().replace(',', '.')}, with a point" if comma else "mend or remove the line"
            raise ValueError(f"{path}, line {line}: {header[position]} is {text[:40]!r}, not a finite number: {cure}")
    series = np.fromiter((codes[uid] for uid in uids), np.int32, len(uids))
    return series, numbers, np.array(lines, np.int32)


def _is_finite(text: str) -> bool:
    try:
        return _is_plain(text) and math.isfinite(float(text))
    except ValueError:
        return False


def _is_plain(text: str) -> bool:
    """Whether a number is written as others write it: Python's float also takes 1_0 and the digits of any script."""
    return text.isascii() and "_" not in text


def _check_values(table: PointTable, column: str) -> None:
    values = table.values
    allowed, what = {
        "class": ((values == 0) | (values == 1), "0 (no nodule) or 1 (nodule)"),
        "diameter_mm": (values != 0, "a diameter in mm, or -1 where it is unknown"),
        "probability": ((values >= 0) & (values <= 1), "a probability between 0 and 1"),
        "calibrated_probability": ((values >= 0) & (values <= 1), "a probability between 0 and 1"),
    }[column]
    bad = np.flatnonzero(~allowed)
    if len(bad):
        raise ValueError(f"{table.source}, line {table.lines[bad[0]]}: {column} is {values[bad[0]]:g}, expected {what}")
