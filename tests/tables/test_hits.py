"""Which points lie on which findings."""

from __future__ import annotations

import numpy as np
import pytest
from point_tables import point_table

from luna16_monai.tables.hits import (
    UNKNOWN_DIAMETER_MM,
    Findings,
    Marks,
    best_point,
    lies_on,
    nearest_nodule,
    nearest_point,
    pairs_inside,
)


def test_lies_on_is_strictly_inside_the_radius_of_the_same_series():
    findings = point_table([("b", 10, 0, 0, 6), ("c", 0, 0, 0, -1), ("d", 0, 0, 0, 2)])
    points = point_table(
        [
            ("b", 12.9, 0, 0, 0),  # 2.9 of 3 mm
            ("b", 13, 0, 0, 0),  # on the surface
            ("b", 10, 1.8, 2.4, 0),  # 3 mm off: on the surface, 1.8² + 2.4² = 3²
            ("b", 10, 1.8, 2.3, 0),  # inside
            ("c", 4.9, 0, 0, 0),  # an unknown diameter counts as 10 mm
            ("c", 0, 5, 0, 0),
            ("a", 0, 0, 0, 0),  # a series without findings, which comes before the others
            ("c", 10, 0, 0, 0),  # where series b has its finding
            ("d", 0, 0, 0, 0),
        ]
    )
    assert lies_on(points, findings).tolist() == [True, False, False, True, True, False, False, False, True]


def test_lies_on_of_a_point_inside_two_findings():
    findings = point_table([("a", 0, 0, 0, 10), ("a", 1, 0, 0, 10)])
    assert lies_on(point_table([("a", 0.5, 0, 0, 0), ("a", 9, 0, 0, 0)]), findings).tolist() == [True, False]


def marks(*rows: tuple[int, float], probability: float = 0.5) -> Marks:
    """Marks from (scan, x)."""
    points = np.array([[x, 0, 0] for _, x in rows], float).reshape(-1, 3)
    return Marks(np.array([scan for scan, _ in rows], int), points, np.full(len(rows), probability))


def findings(*rows: tuple[int, float, float]) -> Findings:
    """Findings from (scan, x, diameter in mm)."""
    points = np.array([[x, 0, 0] for _, x, _ in rows], float).reshape(-1, 3)
    return Findings(np.array([row[0] for row in rows], int), points, np.array([row[2] for row in rows], float))


def test_pairs_inside_names_rows_of_the_tables_in_any_order_of_scans():
    # scan 7: mark 0 lies on both findings, mark 3 on the second alone; scan 2: mark 1 on finding 0; mark 2 on none
    mark, finding = pairs_inside(
        marks((7, 1.0), (2, 0.0), (2, 9.0), (7, 3.5)), findings((2, 1.0, 4.0), (7, 0.0, 4.0), (7, 2.0, 4.0))
    )
    assert sorted(zip(mark.tolist(), finding.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 0), (3, 2)]


def test_pairs_inside_without_marks_or_findings_is_empty():
    for one, other in ((marks(), findings((0, 0.0, 4.0))), (marks((0, 0.0)), findings()), (marks(), findings())):
        assert [column.tolist() for column in pairs_inside(one, other)] == [[], []]


def test_scored_diameter_is_10_mm_where_none_was_measured():
    assert UNKNOWN_DIAMETER_MM == 10
    assert findings((0, 0.0, -1.0), (0, 0.0, 0.0), (0, 0.0, 3.5)).scored_diameter_mm.tolist() == [10, 0, 3.5]


def test_nearest_nodule_of_several_is_the_one_with_the_nearest_middle():
    nodules = point_table([("a", 0, 0, 0, 10), ("a", 3, 0, 0, 20), ("b", 0, 0, 0, 4)])
    points = point_table(
        [("a", 1, 0, 0, 0), ("a", 2, 0, 0, 0), ("a", 12, 0, 0, 0), ("b", 1, 0, 0, 0), ("c", 0, 0, 0, 0)]
    )
    # 1 lies nearer to 0, 2 to 3; 12 is 9 mm off the second, inside its 10; c has no nodule
    assert nearest_nodule(points, nodules).tolist() == [0, 1, 1, 2, -1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: marks((0, 0.0), probability=1.5), r"probability \(1\.5\) of mark 0 lies outside 0 to 1"),
        (lambda: marks((0, 0.0), probability=np.nan), r"probability \(nan\) of mark 0"),
        (lambda: marks((0, 0.0), (0, np.inf)), r"position \[inf, 0\.0, 0\.0\] mm of mark 1 is not finite"),
        (lambda: findings((0, 0.0, np.nan)), r"diameter \(nan mm\) of finding 0 is not finite"),
        (
            lambda: Findings(np.zeros(2, int), np.zeros((2, 2)), np.ones(2)),
            r"findings have scans of shape \(2,\), positions \(2, 2\) and values \(2,\): pass",
        ),
    ],
)
def test_marks_and_findings_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# two nodules of 10 mm and one that nobody marked; the third point lies on neither, the fourth in another series
NODULES = point_table([("a", 0, 0, 0, 10), ("a", 30, 0, 0, 10), ("b", 0, 0, 0, 10)])


POINTS = point_table([("a", 3, 0, 0, 1), ("a", -1, 0, 0, 1), ("a", 6, 0, 0, 1), ("c", 0, 0, 0, 1), ("a", 31, 0, 0, 1)])


ALL = np.ones(5, bool)


def test_nearest_point_of_a_nodule_is_the_one_nearest_to_its_middle():
    assert nearest_point(POINTS, NODULES, ALL).tolist() == [1, 4, -1]
    assert nearest_point(POINTS, NODULES, np.array([True, False, True, True, False])).tolist() == [0, -1, -1]


def test_best_point_of_a_nodule_has_the_highest_score_and_of_equals_is_the_last():
    assert best_point(POINTS, NODULES, ALL, np.array([0.9, 0.2, 1.0, 1.0, 0.1])).tolist() == [0, 4, -1]
    assert best_point(POINTS, NODULES, ALL, np.array([0.5, 0.5, 1.0, 1.0, 0.1])).tolist() == [1, 4, -1]


def test_nearest_point_without_nodules_or_points_is_none():
    nothing = point_table([])
    assert nearest_point(POINTS, nothing, ALL).tolist() == []
    assert nearest_point(nothing, NODULES, np.zeros(0, bool)).tolist() == [-1, -1, -1]
