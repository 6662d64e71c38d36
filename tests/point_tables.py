"""Tables made by hand."""

from __future__ import annotations

import numpy as np

from luna16_monai.tables.points import PointTable


def point_table(rows: list[tuple[str, float, float, float, float]]) -> PointTable:
    """A table from (series, x, y, z, value)."""
    uids = tuple(sorted({row[0] for row in rows}))
    return PointTable(
        source="rows",
        series_uids=uids,
        series=np.array([uids.index(row[0]) for row in rows], np.int32),
        points_xyz=np.array([row[1:4] for row in rows], float).reshape(-1, 3),
        values=np.array([row[4] for row in rows], float),
        lines=np.arange(2, 2 + len(rows), dtype=np.int32),
    )
