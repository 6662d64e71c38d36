"""LUNA16's hit rule: a point lies on a nodule of its scan if it is closer to the middle than the nodule's radius.

Everything is plain arrays; a scan is a number from 0 to ``n_scans - 1``.

Rules: the evaluation script of LUNA16 (Setio et al. 2017, doi:10.1016/j.media.2017.06.015).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna16_monai.tables.points import PointTable

FloatArray = NDArray[np.float64]

IntArray = NDArray[np.integer[Any]]

UNKNOWN_DIAMETER_MM = 10.0
"""What a finding without a diameter (below 0 in the table) counts as."""


@dataclass(frozen=True, eq=False)
class Marks:
    """Points of a submission, one row each: ``scan`` (n,), ``points_xyz`` (n, 3) world LPS in mm, ``probability`` (n,).

    Raises:
        ValueError: shapes that do not fit, a position that is not finite, a probability outside 0 to 1.
    """

    scan: IntArray
    points_xyz: FloatArray
    probability: FloatArray

    def __post_init__(self) -> None:
        _check_points("mark", self.scan, self.points_xyz, self.probability)
        outside = np.flatnonzero(~((self.probability >= 0) & (self.probability <= 1)))  # NaN is outside
        if outside.size:
            raise ValueError(
                f"probability ({self.probability[outside[0]]}) of mark {outside[0]} lies outside 0 to 1:"
                " pass probabilities, not logits or percentages"
            )


@dataclass(frozen=True, eq=False)
class Findings:
    """Annotated points, one row each: ``scan`` (n,), ``points_xyz`` (n, 3) world LPS in mm, ``diameter_mm`` (n,).

    A diameter below 0 means that none was measured.

    Raises:
        ValueError: shapes that do not fit, a position or a diameter that is not finite.
    """

    scan: IntArray
    points_xyz: FloatArray
    diameter_mm: FloatArray

    def __post_init__(self) -> None:
        _check_points("finding", self.scan, self.points_xyz, self.diameter_mm)
        bad = np.flatnonzero(~np.isfinite(self.diameter_mm))
        if bad.size:
            raise ValueError(
                f"diameter ({self.diameter_mm[bad[0]]} mm) of finding {bad[0]} is not finite:"
                " give it in mm, or -1 where it is unknown"
            )

    @property
    def scored_diameter_mm(self) -> FloatArray:
        """The diameter that the hit rule uses, (n,): as measured, else `UNKNOWN_DIAMETER_MM`."""
        return np.where(self.diameter_mm < 0, UNKNOWN_DIAMETER_MM, self.diameter_mm)


def pairs_inside(marks: Marks, findings: Findings) -> tuple[IntArray, IntArray]:
    """Return all pairs (mark, finding) of one scan with the mark strictly inside the finding's radius, (p,) each."""
    squared_radius = (findings.scored_diameter_mm / 2) ** 2
    scans = np.intersect1d(marks.scan, findings.scan)
    pairs = [np.empty((2, 0), dtype=np.int64)]
    rows = zip(_rows_by_scan(marks.scan, scans), _rows_by_scan(findings.scan, scans), strict=True)
    for in_marks, in_findings in rows:
        dx, dy, dz = marks.points_xyz[in_marks].T[:, :, None] - findings.points_xyz[in_findings].T[:, None, :]
        mark, finding = np.nonzero(dx * dx + dy * dy + dz * dz < squared_radius[in_findings])
        pairs.append(np.stack((in_marks[mark], in_findings[finding])))
    all_marks, all_findings = np.concatenate(pairs, axis=1)
    return all_marks, all_findings


def _rows_by_scan(scan: IntArray, scans: IntArray) -> Iterator[IntArray]:
    """Yield the rows of each of the wanted scans in turn."""
    order = np.argsort(scan, kind="stable")
    starts, stops = (np.searchsorted(scan[order], scans, side) for side in ("left", "right"))
    return (order[start:stop] for start, stop in zip(starts, stops, strict=True))


def _check_points(kind: str, scan: IntArray, points_xyz: FloatArray, value: FloatArray) -> None:
    """Check, raising ValueError, that there is one scan number, one finite position and one value a row."""
    n = scan.size
    if scan.shape != (n,) or points_xyz.shape != (n, 3) or value.shape != (n,):
        raise ValueError(
            f"{kind}s have scans of shape {scan.shape}, positions {points_xyz.shape} and values {value.shape}:"
            " pass (n,), (n, 3) and (n,)"
        )
    bad = np.flatnonzero(~np.isfinite(points_xyz).all(axis=1))
    if bad.size:
        raise ValueError(f"position {points_xyz[bad[0]].tolist()} mm of {kind} {bad[0]} is not finite: mend that row")


def nearest_nodule(points: PointTable, nodules: PointTable) -> NDArray[np.int64]:
    """Return the nodule that each point lies on, by LUNA16's hit rule; of several the one whose middle is nearest.

    Args:
        points: candidates.
        nodules: values are diameters in mm.

    Returns:
        (n,) row in ``nodules``, -1 where a point lies on none.
    """
    marks = Marks(points.series_codes(nodules.series_uids), points.points_xyz, np.zeros(len(points)))
    mark, nodule = pairs_inside(marks, Findings(nodules.series, nodules.points_xyz, nodules.values))
    distance = np.linalg.norm(points.points_xyz[mark] - nodules.points_xyz[nodule], axis=1)
    farthest_first = np.argsort(-distance, kind="stable")
    nearest = np.full(len(points), -1, np.int64)
    nearest[mark[farthest_first]] = nodule[farthest_first]
    return nearest


def nearest_point(points: PointTable, nodules: PointTable, among: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return of each nodule the point that lies on it nearest to its middle.

    Args:
        points: candidates; one that lies on several nodules belongs to the one whose middle is nearest.
        nodules: values are diameters in mm.
        among: (n,) which points count.

    Returns:
        (k,) row in ``points`` for each nodule, -1 where none lies on it; of equally near ones the last.
    """
    nodule = nearest_nodule(points, nodules)
    distance = np.linalg.norm(points.points_xyz - nodules.points_xyz[nodule], axis=1) if len(nodules) else nodule
    return _best_of_each(nodule, among, -distance, len(nodules))


def best_point(
    points: PointTable, nodules: PointTable, among: NDArray[np.bool_], score: FloatArray
) -> NDArray[np.int64]:
    """Return of each nodule the point with the highest score that lies on it.

    Arguments and result as `nearest_point`, with ``score`` (n,); of equal scores the last one.
    """
    return _best_of_each(nearest_nodule(points, nodules), among, score, len(nodules))


def _best_of_each(
    nodule: NDArray[np.int64], among: NDArray[np.bool_], score: NDArray[Any], nodules: int
) -> NDArray[np.int64]:
    on = np.flatnonzero((nodule >= 0) & among)
    worst_first = on[np.argsort(score[on], kind="stable")]
    best = np.full(nodules, -1, np.int64)
    best[nodule[worst_first]] = worst_first
    return best


def lies_on(points: PointTable, findings: PointTable) -> NDArray[np.bool_]:
    """Return which points lie on a finding, by the hit rule of LUNA16's evaluation (see ``hits.pairs_inside``).

    Args:
        points: candidates or marks.
        findings: nodules or excluded findings; their values are diameters in mm.

    Returns:
        (n,) bool, one for each point.
    """
    scans = points.series_codes(findings.series_uids)
    marks = Marks(scans, points.points_xyz, np.zeros(len(points)))
    hits, _ = pairs_inside(marks, Findings(findings.series, findings.points_xyz, findings.values))
    on = np.zeros(len(points), bool)
    on[hits] = True
    return on
