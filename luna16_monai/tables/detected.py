"""Tables of a detector's candidates as material of a training: found, read, and given classes by LUNA16's rule."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from luna16_monai.tables.data_sets import DataSets
from luna16_monai.tables.hits import lies_on
from luna16_monai.tables.points import PointTable, joined_tables, read_points


def detected_tables(candidates: Path | str | None, data: DataSets) -> list[Path]:
    """Return the tables that the setting ``candidates`` names, sorted.

    Args:
        candidates: a table's path, or a pattern of several (``runs/detector/fold_*/test/submission.csv``), from the
            current folder, else from a data folder; None names none.
        data: the data folders.

    Raises:
        FileNotFoundError: there is no such table.
    """
    if candidates is None:
        return []
    for place in (Path(candidates), *(folder / candidates for folder in data.folders)):
        # a name that holds a bracket is first of all a name
        if place.is_file():
            return [place]
        if found := sorted(path for path in map(Path, glob.glob(str(place))) if path.is_file()):
            return found
    raise FileNotFoundError(
        f"candidates {candidates}: no such table here nor in {data}: name one that luna16 detect wrote, a pattern "
        "of several, or null"
    )


def read_detected(tables: Sequence[Path], data: DataSets) -> PointTable:
    """Return the candidates of all tables with their classes: 1 where a nodule of ``annotations.csv`` is hit, else 0.

    Those on an excluded finding are left out, since they count neither way. A point that is listed twice counts once.

    Args:
        tables: with the columns ``seriesuid``, ``coordX``, ``coordY``, ``coordZ``; further ones do not matter.
        data: the data folders, for their nodules and excluded findings.

    Raises:
        FileNotFoundError: ``annotations.csv`` is missing.
        ValueError: a row is malformed.
    """
    points = joined_tables([read_points(path, None) for path in tables])
    positive = lies_on(points, data.annotations())
    excluded = data.excluded()
    left_out = np.zeros(len(points), bool)
    if excluded is not None:
        left_out = ~positive & lies_on(points, excluded)
    keys = np.column_stack([points.points_xyz, points.series])
    first = np.zeros(len(points), bool)
    first[np.unique(keys, axis=0, return_index=True)[1]] = True
    return replace(points, values=positive.astype(np.float64)).select(first & ~left_out)


def with_detected(candidates: PointTable, detected: PointTable, series_uids: Iterable[str]) -> PointTable:
    """Return a list of candidates in which some series have a detector's negatives instead of their own.

    Args:
        candidates: the list; values are the classes 0 and 1.
        detected: a detector's candidates, from `read_detected`. Its positives join those of the list.
        series_uids: whose candidates may change; those of them without a row in ``detected`` stay as they are.

    Returns:
        The rows of the list that stay, then those of the detector.

    Raises:
        ValueError: ``detected`` has no row of these series.
    """
    wanted = set(series_uids)
    taken = detected.select(detected.series_codes(sorted(wanted)) >= 0)
    if not len(taken):
        raise ValueError(
            f"candidates {detected.source}: no row is of one of the {len(wanted)} training series: give what luna16 "
            "detect found in these CTs"
        )
    changed = sorted({taken.series_uids[code] for code in np.unique(taken.series)})
    stay = (candidates.series_codes(changed) < 0) | (candidates.values > 0)
    return joined_tables([candidates.select(stay), taken])
