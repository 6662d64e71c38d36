"""Which candidate stands for a nodule."""

from __future__ import annotations

import numpy as np
from point_tables import point_table

from luna16_monai.tables.hits import best_point, nearest_point

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
