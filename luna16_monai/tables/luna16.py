"""LUNA16's CSV tables: find them in a data folder and read them strictly."""

from __future__ import annotations

import logging
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from luna16_monai.tables.points import PointTable, _runs_of_equal_points, read_points
from luna16_monai.tables.text import _is_series_uid, _named_errors, _no_series_uid, open_table

logger = logging.getLogger(__name__)


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
            with _named_errors(archive):
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
        ValueError: a row is malformed.
    """
    return read_points(_require_table(data_dir, "annotations"), "diameter_mm")


def read_excluded(data_dir: Path) -> PointTable:
    """Read the findings that count neither way; values are diameters in mm, negative where unknown.

    Raises:
        FileNotFoundError: ``annotations_excluded.csv`` is missing.
        ValueError: a row is malformed.
    """
    return read_points(_require_table(data_dir, "annotations_excluded"), "diameter_mm")


def read_series_uids(path: Path | zipfile.Path) -> tuple[str, ...]:
    """Read a list of series, one a line, without a header; sorted.

    Raises:
        ValueError: a line is no identifier, or one is listed twice.
    """
    with open_table(path) as lines:
        uids = [line.strip().strip(",") for line in lines]
    uids = [uid for uid in uids if uid]
    for uid in uids:
        if not _is_series_uid(uid):
            raise ValueError(_no_series_uid(uid, str(path)))
    repeated = [uid for uid, times in Counter(uids).items() if times > 1]
    if repeated:
        raise ValueError(f"series {repeated[0]} is listed twice in {path}: keep one line for each scan")
    return tuple(sorted(uids))


def read_series_list(data_dir: Path) -> tuple[str, ...] | None:
    """The series that a data folder's ``seriesuids.csv`` lists, sorted; None without that table."""
    path = find_table(data_dir, "seriesuids")
    return None if path is None else read_series_uids(path)


def _refuse_contradictions(table: PointTable) -> None:
    order, same = _runs_of_equal_points(table)
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
