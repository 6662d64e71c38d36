"""What becomes of every mark, by the hit rule of ``tables.hits``.

Everything is plain arrays; a scan is a number from 0 to ``n_scans - 1``. The scores that read a `Match` are in
``froc.py``.

Rules: the evaluation script of LUNA16 (Setio et al. 2017, doi:10.1016/j.media.2017.06.015).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.tables.hits import Findings, Marks, pairs_inside

IntArray = NDArray[np.integer[Any]]

FloatArray = NDArray[np.float64]

MARKS_PER_SCAN = 100
"""The most marks of one scan that are scored."""


class MarkStatus(IntEnum):
    """What became of a mark."""

    FALSE_POSITIVE = 0
    HIT = 1  # the most probable mark on at least one nodule
    DOUBLE = 2  # on a nodule that has a more probable mark: counts neither way
    ON_EXCLUDED = 3  # on an excluded finding and on no nodule: counts neither way
    BEYOND_LIMIT = 4  # not among the scan's most probable marks: not scored


@dataclass(frozen=True, eq=False)
class Match:
    """What became of every mark and of every nodule; rows are those of the tables given to `match_marks`.

    Attributes:
        n_scans: scans by which false positives are divided, with and without nodules or marks.
        mark_scan: (m,) scan of each mark.
        mark_probability: (m,) its probability.
        mark_status: (m,) a `MarkStatus`.
        mark_nodule: (m,) the nodule that a scored mark hits, -1 if none; of several the one it counts for.
        nodule_scan: (n,) scan of each nodule.
        nodule_diameter_mm: (n,) the diameter that was scored.
        nodule_mark: (n,) its most probable scored mark, -1 where it was missed.
        nodule_marks: (n,) how many scored marks lie on it.
        nodule_reached: (n,) whether any mark lies on it, scored or beyond the limit.
        n_excluded: excluded findings that were respected; None if no list of them was given.
    """

    n_scans: int
    mark_scan: IntArray
    mark_probability: FloatArray
    mark_status: NDArray[np.int8]
    mark_nodule: IntArray
    nodule_scan: IntArray
    nodule_diameter_mm: FloatArray
    nodule_mark: IntArray
    nodule_marks: IntArray
    nodule_reached: NDArray[np.bool_]
    n_excluded: int | None


def match_marks(
    marks: Marks, nodules: Findings, excluded: Findings | None, n_scans: int, limit: int = MARKS_PER_SCAN
) -> Match:
    """Decide for every mark whether it hits a nodule, lies on an excluded finding or is a false positive.

    A mark hits a finding if it lies strictly inside its radius. Of more than `limit` marks in a scan those strictly
    above the probability of the next one are scored, which can be fewer than `limit` where probabilities tie. A mark
    counts for each nodule that it hits; of several marks on one nodule the most probable counts, the others count
    neither way. Nodules go before excluded findings.

    Args:
        marks: the submission.
        nodules: what has to be found.
        excluded: findings that count neither way; None to do without them, which LUNA16 does not.
        n_scans: number of scans that are evaluated.
        limit: the most marks scored in a scan.

    Raises:
        ValueError: no scan at all, or a scan number outside 0 to ``n_scans - 1``.
    """
    if n_scans < 1:
        raise ValueError(f"number of scans ({n_scans}) must be 1 or more: name the scans that are evaluated")
    _check_scans("mark", marks.scan, n_scans)
    _check_scans("nodule", nodules.scan, n_scans)
    if excluded is not None:
        _check_scans("excluded finding", excluded.scan, n_scans)
    within_limit = _within_limit(marks, limit)
    mark, nodule = pairs_inside(marks, nodules)
    reached = np.bincount(nodule, minlength=nodules.scan.size) > 0
    scored = within_limit[mark]
    mark, nodule = mark[scored], nodule[scored]

    hit_nodules, best_marks = _best_marks(mark, nodule, marks.probability)
    nodule_mark = np.full(nodules.scan.size, -1, dtype=np.int64)
    nodule_mark[hit_nodules] = best_marks
    mark_nodule = np.full(marks.scan.size, -1, dtype=np.int64)
    mark_nodule[mark] = nodule
    mark_nodule[best_marks] = hit_nodules

    # from the weakest claim to the strongest: each line overrules those before it.
    status = np.full(marks.scan.size, MarkStatus.FALSE_POSITIVE, dtype=np.int8)
    if excluded is not None:
        status[pairs_inside(marks, excluded)[0]] = MarkStatus.ON_EXCLUDED
    status[mark] = MarkStatus.DOUBLE
    status[best_marks] = MarkStatus.HIT
    status[~within_limit] = MarkStatus.BEYOND_LIMIT

    return Match(
        n_scans=n_scans,
        mark_scan=marks.scan,
        mark_probability=marks.probability,
        mark_status=status,
        mark_nodule=mark_nodule,
        nodule_scan=nodules.scan,
        nodule_diameter_mm=nodules.scored_diameter_mm,
        nodule_mark=nodule_mark,
        nodule_marks=np.bincount(nodule, minlength=nodules.scan.size),
        nodule_reached=reached,
        n_excluded=None if excluded is None else excluded.scan.size,
    )


def _best_marks(mark: IntArray, nodule: IntArray, probability: FloatArray) -> tuple[IntArray, IntArray]:
    """Return the nodules that are hit, and of each the most probable mark on it, the first of equals."""
    by_nodule_then_probability = np.lexsort((mark, -probability[mark], nodule))
    hit_nodules, first = np.unique(nodule[by_nodule_then_probability], return_index=True)
    return hit_nodules, mark[by_nodule_then_probability][first]


def _within_limit(marks: Marks, limit: int) -> NDArray[np.bool_]:
    """Return which marks are strictly above the probability of their scan's mark number ``limit + 1``, (m,)."""
    order = np.lexsort((-marks.probability, marks.scan))
    scan = marks.scan[order]
    rank = np.arange(scan.size) - np.searchsorted(scan, scan, "left")
    first_left_out = order[rank == limit]
    threshold = np.full(marks.scan.max(initial=0) + 1, -np.inf)
    threshold[marks.scan[first_left_out]] = marks.probability[first_left_out]
    return marks.probability > threshold[marks.scan]


def _check_scans(kind: str, scan: IntArray, n_scans: int) -> None:
    """Check that each row's scan is one of those that are evaluated; raises ValueError."""
    outside = np.flatnonzero((scan < 0) | (scan >= n_scans))
    if outside.size:
        raise ValueError(
            f"scan number ({scan[outside[0]]}) of {kind} {outside[0]} lies outside 0 to {n_scans - 1}:"
            " keep only rows of the scans that are evaluated"
        )
