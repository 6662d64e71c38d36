"""Fuzz the reader of LUNA16's tables with atheris; not a test of pytest, see README.md beside it.

An input is one file, offered as each kind of table, and as the rows below a good header. Whatever it holds, the reader
may only refuse it, in one line, or give finite numbers and plain series names, which survive being written and read
again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["luna16_monai", "csv"]):
    from luna16_monai.tables.luna16 import read_candidates, read_series_uids
    from luna16_monai.tables.points import PointTable, duplicate_rows, read_points, write_points

import numpy as np

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))
TABLE = FOLDER / "candidates_V2.csv"
COLUMNS = ("class", "diameter_mm", "probability")


def check(data: bytes) -> None:
    """Offer one input as each kind of table."""
    for column in COLUMNS:
        for content in (data, f"seriesuid,coordX,coordY,coordZ,{column}\n".encode() + data):
            TABLE.write_bytes(content)
            try:
                table = read_points(TABLE, column)
            except ValueError as error:
                refused(error)
                continue
            accepted(table, column)
    for read in (lambda: read_candidates(FOLDER), lambda: read_series_uids(TABLE)):
        try:
            read()
        except ValueError as error:
            refused(error)


def refused(error: ValueError) -> None:
    """In one line of a bearable length."""
    message = str(error)
    assert "\n" not in message and len(message) < 1000, message


def accepted(table: PointTable, column: str) -> None:
    """Plain names, finite numbers, lines in order; and the same after a round trip."""
    assert np.isfinite(table.points_xyz).all() and np.isfinite(table.values).all()
    assert (np.diff(table.lines) > 0).all() and (table.lines >= 2).all()
    assert all(Path(uid).name == uid for uid in table.series_uids)
    assert set(np.unique(table.series)) == set(range(len(table.series_uids)))
    duplicate_rows(table)
    path = FOLDER / "again.csv"
    write_points(path, [table.series_uids[code] for code in table.series], table.points_xyz, table.values, column)
    again = read_points(path, column)
    assert again.series_uids == table.series_uids and np.array_equal(again.series, table.series)
    assert np.array_equal(again.values, table.values)
    assert np.allclose(again.points_xyz, table.points_xyz, rtol=1e-15, atol=6e-7)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
