"""Marks and findings along one axis, made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luna16_monai.evaluation import match as hits
from luna16_monai.evaluation.match import Match
from luna16_monai.tables.hits import Findings, Marks

Row = tuple[int, float, float]


def columns(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    points_xyz = np.zeros((len(table), 3))
    points_xyz[:, 0] = table[:, 1]
    return table[:, 0].astype(np.int32), points_xyz, table[:, 2]


def match(
    marks: Sequence[Row],
    nodules: Sequence[Row],
    excluded: Sequence[Row] = (),
    n_scans: int = 1,
    limit: int = hits.MARKS_PER_SCAN,
) -> Match:
    return hits.match_marks(
        Marks(*columns(marks)), Findings(*columns(nodules)), Findings(*columns(excluded)), n_scans, limit
    )
