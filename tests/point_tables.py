"""Tables made by hand."""

from __future__ import annotations

from pathlib import Path

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


HEADER = "seriesuid,coordX,coordY,coordZ,class"


# Two series, three rows; the second series stands first.
TABLE = f"{HEADER}\n1.3.9,-10.5,20,-300.25,0\n1.3.6,1,2,3,1\n1.3.9,4,5,6,1\n"


def write(folder: Path, content: str | bytes, name: str = "candidates_V2.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
