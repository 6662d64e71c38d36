"""Sensitivity by rank, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.evaluation.ranks import MISSED, diameter_error, nodule_ranks, ranks_in_scan, sensitivity_by_rank
from luna16_monai.tables.hits import Findings, Marks


def line(scan, x):
    return np.array(scan), np.array([[v, 0.0, 0.0] for v in x])


def test_ranks_in_scan_fall_with_probability_and_keep_the_order_of_ties():
    marks = Marks(*line([1, 0, 1, 0, 1], range(5)), np.array([0.2, 0.9, 0.8, 0.9, 0.2]))
    assert ranks_in_scan(marks).tolist() == [1, 0, 0, 1, 2]


def test_nodule_rank_is_that_of_its_first_mark():
    # scan 0: nodule of 4 mm at 0; marks at 50 (rank 0), 1.9 (rank 1), 0 (rank 2). Scan 1: a mark at 2.0 is no hit
    marks = Marks(*line([0, 0, 0, 1], [0, 50, 1.9, 2.0]), np.array([0.1, 0.9, 0.5, 1.0]))
    nodules = Findings(*line([0, 1], [0, 0]), np.array([4.0, 4.0]))
    assert nodule_ranks(marks, nodules).tolist() == [1, MISSED]


def twelve():
    """Scan 0: 30 marks, 10 mm apart, probability falling; nodules on ranks 9, 10 and 24. Scan 1: a nodule, no mark."""
    marks = Marks(*line([0] * 30, np.arange(30) * 10.0), np.linspace(0.9, 0.1, 30))
    return marks, Findings(*line([0, 0, 0, 1], [90, 100, 240, 0]), np.array([4.0, 5.0, 20.0, 4.0]))


def test_sensitivity_by_rank_counts_the_first_so_many():
    scores = sensitivity_by_rank(*twelve(), n_scans=3, draws=0)
    told = {"10": 0.25, "25": 0.75, "50": 0.75, "100": 0.75, "200": 0.75}
    assert scores["sensitivity_at_candidates"] == told
    assert scores["sensitivity_at_candidates_ci95"] is None
    by_diameter = scores["sensitivity_at_candidates_by_diameter_mm"]
    assert by_diameter["<5"] == {"10": 0.5, "25": 0.5, "50": 0.5, "100": 0.5, "200": 0.5}
    assert by_diameter["5-6"]["10"] == 0
    assert by_diameter[">=15"]["25"] == 1
    assert by_diameter["6-8"] is None


def test_sensitivity_by_rank_has_no_limit_of_100_marks():
    marks = Marks(*line([0] * 150, np.arange(150) * 10.0), np.linspace(0.9, 0.1, 150))
    nodules = Findings(*line([0], [1490]), np.array([4.0]))
    scores = sensitivity_by_rank(marks, nodules, 1, draws=0)["sensitivity_at_candidates"]
    assert (scores["100"], scores["200"]) == (0, 1)


def test_intervals_leave_draws_without_nodules_out():
    # scan 0 has 3 nodules (1 in ten), scan 1 has 1 (0), scan 2 none: a draw gives 1/3 (scan 0 alone), 0, or in between
    low, high = sensitivity_by_rank(*twelve(), n_scans=3, draws=500)["sensitivity_at_candidates_ci95"]["10"]
    assert low == 0
    assert high == pytest.approx(1 / 3)


def test_sensitivity_without_nodules_is_refused():
    marks, _ = twelve()
    with pytest.raises(ValueError, match="no nodule to find"):
        sensitivity_by_rank(marks, Findings(np.zeros(0, int), np.zeros((0, 3)), np.zeros(0)), 3)


def test_diameter_error_is_of_the_first_mark_on_each_nodule():
    marks = Marks(*line([0, 0, 0, 1], [0, 1, 100, 0]), np.array([0.5, 0.9, 0.3, 0.9]))
    nodules = Findings(*line([0, 0, 1], [0, 100, 0]), np.array([6.0, 8.0, -1.0]))
    # 7.5 for 6 by the mark at 1; 8.5 for 8; the third has no diameter
    error = diameter_error(marks, nodules, np.array([20.0, 7.5, 8.5, 3.0]))
    assert error == {"median": pytest.approx(1.0), "p90": pytest.approx(1.4), "nodules": 2}
    assert diameter_error(marks, Findings(*line([0], [500]), np.array([6.0])), np.zeros(4)) is None
