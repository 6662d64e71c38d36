"""Scores of each of several data sets, with the numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from point_tables import point_table

from luna16_monai.evaluation.by_data_set import scores_by_data_set
from luna16_monai.evaluation.submission import ReferenceStandard


def test_each_data_set_is_scored_on_its_own_scans():
    # a: the nodule above the other; b: below it; c: no candidate at all
    marks = point_table([("a", 0, 0, 0, 0.9), ("a", 50, 0, 0, 0.1), ("b", 0, 0, 0, 0.2), ("b", 50, 0, 0, 0.8)])
    truth = ReferenceStandard(
        ("a", "b", "c"), point_table([("a", 0, 0, 0, 6.0), ("b", 0, 0, 0, 6.0)]), point_table([("a", 99, 99, 99, 3.0)])
    )
    label = np.array([1, 0, 1, 0])
    told = scores_by_data_set({"first": ("a",), "second": ("b",), "third": ("c",)}, marks, label, truth, draws=0)
    assert (told["first"]["roc_auc"], told["second"]["roc_auc"]) == (1.0, 0.0)
    assert told["first"]["average_precision"] == pytest.approx(1.0)
    assert told["second"]["average_precision"] == pytest.approx(0.5)
    # first: found before any false positive. Second: found at 1 a scan, so at 1, 2, 4 and 8; between 0 and 1 a scan
    # the curve is a line from (1, 0) straight up: nothing below
    assert told["first"]["cpm"] == pytest.approx(1.0)
    assert told["second"]["sensitivity_at"]["2"] == pytest.approx(1.0)
    assert told["second"]["sensitivity_at"]["0.5"] == pytest.approx(0.0)
    assert told["third"] == {
        "series": 1, "candidates": 0, "positives": 0, "roc_auc": None, "average_precision": None, "nodules": 0,
        "cpm": None, "cpm_ci95": None, "sensitivity_at": None, "sensitivity_at_candidates": None,
    }  # fmt: skip


def test_without_a_truth_the_ranking_alone_is_told():
    marks = point_table([("a", 0, 0, 0, 0.9), ("a", 50, 0, 0, 0.1)])
    told = scores_by_data_set({"first": ("a",)}, marks, np.array([1, 1]), None)
    assert told == {"first": {"series": 1, "candidates": 2, "positives": 2, "roc_auc": None, "average_precision": None}}
