"""Which points lie on which findings."""

from __future__ import annotations

from point_tables import point_table

from luna16_monai.tables.hits import lies_on


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
