"""Sensitivity of a candidate list by rank: how many nodules are among the first so many candidates of their scan.

All candidates count, before LUNA16's limit of 100 marks a scan, and those on excluded findings or on a nodule that was
hit already keep their rank: it is what somebody sees who reads a list from its top.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.evaluation.bootstrap import drawn_weights, interval
from luna16_monai.evaluation.froc import DIAMETER_BINS_MM
from luna16_monai.tables.hits import Findings, Marks, pairs_inside

FloatArray = NDArray[np.float64]
NUMBERS = (10, 25, 50, 100, 200)
_ELEMENTS_AT_ONCE = 2_000_000
MISSED = np.iinfo(np.int64).max


def ranks_in_scan(marks: Marks) -> NDArray[np.int64]:
    """Return each mark's rank in its scan, from 0 by falling probability; equal ones in their order, (n,)."""
    order = np.lexsort((-marks.probability, marks.scan))
    scan = marks.scan[order]
    first = np.searchsorted(scan, scan, "left")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - first
    return ranks


def nodule_ranks(marks: Marks, nodules: Findings) -> NDArray[np.int64]:
    """Return the rank of the first mark on each nodule, (n,); `MISSED` where there is none."""
    best = np.full(nodules.scan.size, MISSED)
    mark, nodule = pairs_inside(marks, nodules)
    np.minimum.at(best, nodule, ranks_in_scan(marks)[mark])
    return best


def sensitivity_by_rank(
    marks: Marks, nodules: Findings, n_scans: int, draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the sensitivity at 10 to 200 candidates a scan.

    Args:
        marks: the candidates.
        nodules: what they should find; at least one.
        n_scans: scans that are drawn from for the intervals.
        draws: of the bootstrap; 0 leaves the intervals None.
        seed: of the draws.

    Returns:
        ``sensitivity_at_candidates`` and its ``_ci95``, keyed by the number of candidates, and
        ``sensitivity_at_candidates_by_diameter_mm`` and its ``_ci95``, keyed by the range; None where a range has no
        nodule.

    Raises:
        ValueError: there is no nodule.
    """
    if not nodules.scan.size:
        raise ValueError("no nodule to find: name scans that have some")
    found = nodule_ranks(marks, nodules)[:, None] < np.array(NUMBERS)
    diameter = nodules.scored_diameter_mm
    ranges = {name: (diameter >= low) & (diameter < high) for name, (low, high) in DIAMETER_BINS_MM.items()}
    every = np.ones(len(diameter), bool)
    drawn = {name: _interval(found, nodules.scan, one, n_scans, draws, seed) for name, one in ranges.items()}
    return {
        "sensitivity_at_candidates": _keyed(found.mean(0)),
        "sensitivity_at_candidates_ci95": _interval(found, nodules.scan, every, n_scans, draws, seed),
        "sensitivity_at_candidates_by_diameter_mm": {
            name: _keyed(found[one].mean(0)) if one.any() else None for name, one in ranges.items()
        },
        "sensitivity_at_candidates_by_diameter_mm_ci95": drawn if draws else None,
    }


def _interval(
    found: NDArray[np.bool_],
    scan: NDArray[np.integer[Any]],
    rows: NDArray[np.bool_],
    n_scans: int,
    draws: int,
    seed: int,
) -> dict[str, Any] | None:
    """Return the 95 % intervals over draws of scans, of some nodules; None without draws or nodules."""
    if not draws or not rows.any():
        return None
    hits = np.stack([np.bincount(scan[rows], found[rows, k], n_scans) for k in range(len(NUMBERS))], 1)
    nodules_of = np.bincount(scan[rows], minlength=n_scans).astype(float)
    drawn = [w @ hits / (w @ nodules_of)[:, None] for w in _with_nodules(nodules_of, n_scans, draws, seed)]
    return _keyed(interval(np.concatenate(drawn)))


def diameter_error(marks: Marks, nodules: Findings, diameter_mm: FloatArray) -> dict[str, float | int] | None:
    """Return how far the listed diameters are off, over the nodules found; None where none is.

    Args:
        marks: the candidates.
        nodules: the annotations; those without a diameter are left out.
        diameter_mm: (n,) the list's diameter of each mark; marks without one (NaN) are left out.

    Returns:
        ``median`` and ``p90`` of the absolute error of the most probable mark on each nodule, mm; ``nodules``.
    """
    mark, nodule = pairs_inside(marks, nodules)
    known = (nodules.diameter_mm[nodule] > 0) & np.isfinite(diameter_mm[mark])
    mark, nodule = mark[known], nodule[known]
    if not len(mark):
        return None
    order = np.lexsort((ranks_in_scan(marks)[mark], nodule))
    _, first = np.unique(nodule[order], return_index=True)
    rows = order[first]
    error = np.abs(diameter_mm[mark[rows]] - nodules.diameter_mm[nodule[rows]])
    return {"median": float(np.median(error)), "p90": float(np.quantile(error, 0.9)), "nodules": len(rows)}


def _with_nodules(nodules_of: FloatArray, n_scans: int, draws: int, seed: int) -> Iterator[FloatArray]:
    """Yield the draws, (n, n_scans) each, that hold a nodule; without any there is no sensitivity."""
    for weights in drawn_weights(n_scans, draws, seed, max(1, _ELEMENTS_AT_ONCE // n_scans)):
        yield weights[weights @ nodules_of > 0]


def _keyed(values: FloatArray) -> dict[str, Any]:
    """Return values by the number of candidates; (5,) or (5, 2)."""
    return {str(number): value for number, value in zip(NUMBERS, values.tolist(), strict=True)}
