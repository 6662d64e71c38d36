"""LUNA16's CSV tables: find them in a data folder and read them strictly."""

from __future__ import annotations

import csv
import logging
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from luna16_monai.tables.points import PointTable, read_points, runs_of_equal_points
from luna16_monai.tables.text import is_series_uid, named_errors, no_series_uid, open_table

logger = logging.getLogger(__name__)

SAME_NODULE_MM = 0.01
"""Two nodules are not so near each other."""
SERIES_COLUMNS = {"seriesuid", "seriesuids", "seriesinstanceuid", "seriesinstanceuids"}
"""What the header of a list of series calls them, letters alone."""
FILE_ENDS = (".mhd", ".mha", ".raw", ".zraw", ".nii", ".nii.gz", ".nrrd", ".dcm")
DICOM_UID = re.compile(r"\d+(\.\d+)+")


def find_table(data_dir: Path, name: str) -> Path | zipfile.Path | None:
    """Find one of LUNA16's tables as people have them: unpacked, in its zip, or with the evaluation script.

    Args:
        data_dir: the data folder.
        name: the table's name without ``.csv``.

    Returns:
        A path that can be opened, or None.

    Raises:
        ValueError: the zip is damaged.
    """
    file = f"{name}.csv"
    script = "evaluationScript"
    for path in (data_dir / file, data_dir / name / file, data_dir / script / "annotations" / file):
        if path.is_file():
            return path
    for archive, members in (
        (data_dir / f"{name}.zip", (file, f"{name}/{file}")),
        (data_dir / f"{script}.zip", (f"{script}/annotations/{file}", f"annotations/{file}")),
    ):
        if archive.is_file():
            with named_errors(archive):
                found = (zipfile.Path(archive, member) for member in members)
                if (path_in_zip := next((path for path in found if path.is_file()), None)) is not None:
                    return path_in_zip
    return None


def read_candidates(data_dir: Path) -> PointTable:
    """Read ``candidates_V2`` of a data folder, or with a warning the first version; values are the classes 0 and 1.

    Raises:
        FileNotFoundError: neither version is there.
        ValueError: a row is malformed, or the same point is listed with both classes.
    """
    path = find_table(data_dir, "candidates_V2")
    if path is None and (path := find_table(data_dir, "candidates")) is not None:
        logger.warning("candidates_V2 not found, reading candidates.csv: the first version, which lacks more nodules")
    if path is None:
        raise FileNotFoundError(
            f"no candidates_V2.csv (or .zip) and no candidates.csv in {data_dir}: put LUNA16's candidate list there"
        )
    table = read_points(path, "class")
    _refuse_contradictions(table)
    return table


def read_annotations(data_dir: Path) -> PointTable:
    """Read the nodules of a data folder; values are diameters in mm.

    Raises:
        FileNotFoundError: ``annotations.csv`` is missing.
        ValueError: a row is malformed, or a nodule is listed twice.
    """
    return read_nodules(_require_table(data_dir, "annotations"))


def read_nodules(path: Path | zipfile.Path) -> PointTable:
    """Read a table of nodules; values are diameters in mm.

    Raises:
        ValueError: a row is malformed, or two rows of a series are a hundredth of a millimetre or less apart: such a
            nodule would count twice.
    """
    table = read_points(path, "diameter_mm")
    from scipy.spatial import KDTree

    # series a metre apart are never near each other
    apart = np.column_stack([table.points_xyz, 1e3 * table.series])
    pairs = KDTree(apart).query_pairs(SAME_NODULE_MM) if len(table) else set()
    if pairs:
        one, other = min(sorted(table.lines[row] for row in pair) for pair in pairs)
        uid = table.series_uids[table.series[table.lines == one][0]]
        raise ValueError(
            f"{table.source}, lines {one} and {other}: a nodule of series {uid} is listed twice, and would count twice "
            f"({len(pairs)} such pairs of rows): keep one of the lines"
        )
    return table


def read_excluded(data_dir: Path) -> PointTable:
    """Read the findings that count neither way; values are diameters in mm, negative where unknown.

    Raises:
        FileNotFoundError: ``annotations_excluded.csv`` is missing.
        ValueError: a row is malformed.
    """
    return read_points(_require_table(data_dir, "annotations_excluded"), "diameter_mm")


def read_series_uids(path: Path | zipfile.Path) -> tuple[str, ...]:
    """Read a list of series, one a line; sorted.

    A header line that names a column seriesuid is left out, with a line in the log; of several columns that one is
    taken. Quotes, a byte-order mark, and commas or semicolons at the end of a line do not matter.

    Raises:
        ValueError: a line is no identifier, has several columns without a header, or names a file; the first line
            looks like a header of another name; or a series is listed twice.
    """
    with open_table(path) as lines:
        texts = [line for line in lines if line.strip(' \t\r\n,;"')]
    delimiter = ";" if any(";" in text for text in texts[:1]) else ","
    rows = [[field.strip() for field in row] for row in csv.reader(texts, delimiter=delimiter)]
    # letters alone
    names = ["".join(filter(str.isalpha, field.lower())) for field in rows[0]] if rows else []
    column = next((place for place, name in enumerate(names) if name in SERIES_COLUMNS), None)
    if column is not None:
        logger.info("%s: line 1 is a header (%s), no scan", path, rows[0][column])
        rows, uids = rows[1:], [row[column] if column < len(row) else "" for row in rows[1:]]
    else:
        filled = [[field for field in row if field] for row in rows]
        if wide := [number for number, row in enumerate(filled, start=1) if len(row) > 1]:
            raise ValueError(
                f"{path}, line {wide[0]}: several columns: one series a line was expected, or a header line that names "
                "the column seriesuid"
            )
        uids = [row[0] for row in filled]
    _check_series_uids(uids, path)
    return tuple(sorted(uids))


def _check_series_uids(uids: Sequence[str], path: Path | zipfile.Path) -> None:
    """Raise ValueError where a text of a list of series is no identifier, or stands there twice."""
    for uid in uids:
        if not is_series_uid(uid):
            raise ValueError(no_series_uid(uid, str(path)))
        if uid.lower().endswith(FILE_ENDS):
            raise ValueError(f"{uid} ({path}) names a file: list the series alone, as the other tables do")
    if len(uids) > 1 and not DICOM_UID.fullmatch(uids[0]) and all(DICOM_UID.fullmatch(uid) for uid in uids[1:]):
        raise ValueError(
            f"{path}, line 1: {uids[0]!r} is no identifier as the others are: remove the line if it is a header; if it "
            "is a scan, put it further down"
        )
    repeated = [uid for uid, times in Counter(uids).items() if times > 1]
    if repeated:
        raise ValueError(f"series {repeated[0]} is listed twice in {path}: keep one line for each scan")


def read_series_list(data_dir: Path) -> tuple[str, ...] | None:
    """Return the series that a data folder's ``seriesuids.csv`` lists, sorted; None without that table."""
    path = find_table(data_dir, "seriesuids")
    return None if path is None else read_series_uids(path)


def _refuse_contradictions(table: PointTable) -> None:
    order, same = runs_of_equal_points(table)
    values = table.values[order]
    clash = np.flatnonzero(same & (values[1:] != values[:-1]))
    if len(clash):
        one, other = sorted(table.lines[order[clash[0] : clash[0] + 2]].tolist())
        raise ValueError(
            f"{table.source}, lines {one} and {other}: the same point of series "
            f"{table.series_uids[table.series[order[clash[0]]]]} has class 0 and class 1: keep the right one"
        )


def _require_table(data_dir: Path, name: str) -> Path | zipfile.Path:
    if (path := find_table(data_dir, name)) is None:
        raise FileNotFoundError(f"no {name}.csv in {data_dir} nor in its evaluationScript: put LUNA16's table there")
    return path
