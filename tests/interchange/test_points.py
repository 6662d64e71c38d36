"""Points that cannot be are refused with their row; tables, parts and notes."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.interchange.points import CLASS, DIAMETER, PROBABILITY, Points, joined

XYZ = np.array([[1.0, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({PROBABILITY: [0.5, 1.5]}, "rows, point 2: probability is 1.5, expected a probability between 0 and 1"),
        ({CLASS: [2, 1]}, "rows, point 1: class is 2, expected 0"),
        ({DIAMETER: [0, 5]}, "rows, point 1: diameter_mm is 0, expected a diameter in mm"),
        ({DIAMETER: [5, np.inf]}, "rows, point 2: diameter_mm is inf"),
    ],
)
def test_points_refuse_values_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        Points("rows", ("a", "a"), XYZ, {name: np.array(value, float) for name, value in values.items()})


def test_points_refuse_positions_and_series_that_cannot_be():
    with pytest.raises(ValueError, match=r"rows, point 2: position \[1.0, nan, 3.0\] is not finite"):
        Points("rows", ("a", "a"), np.array([[1.0, 2, 3], [1, np.nan, 3]]))
    with pytest.raises(ValueError, match=r"'\.\./a' \(rows, point 2\) is no series identifier"):
        Points("rows", ("a", "../a"), XYZ)


def test_a_diameter_below_zero_is_unknown():
    assert np.isnan(Points("rows", ("a", "a"), XYZ, {DIAMETER: np.array([-1.0, 5])}).value(DIAMETER)[0])


def test_table_sorts_the_series_and_keeps_the_rows():
    points = Points("rows", ("b", "a"), XYZ, {PROBABILITY: np.array([0.25, 0.5])})
    table = points.table(PROBABILITY)
    assert (table.series_uids, table.row_series()) == (("a", "b"), ["b", "a"])
    assert (table.values.tolist(), table.place(1)) == ([0.25, 0.5], "rows, point 2")
    assert points.table(None).values.tolist() == [0, 0]
    with pytest.raises(ValueError, match="rows, point 1: it has no class"):
        points.table(CLASS)


def test_joined_fills_what_one_part_lacks():
    one = Points("one", ("a",), XYZ[:1], {PROBABILITY: np.array([0.5])}, ("first",), notes=("x left out",))
    other = Points("other", ("b",), XYZ[1:], {DIAMETER: np.array([5.0])})
    both = joined([one, other], "both")
    assert (both.series, both.names, both.notes) == (("a", "b"), ("first", ""), ("x left out",))
    assert both.value(PROBABILITY)[0] == 0.5
    assert np.isnan(both.value(PROBABILITY)[1])
    assert both.of_series("b").value(DIAMETER).tolist() == [5]
    assert not both.of_series("a").knows(DIAMETER)
