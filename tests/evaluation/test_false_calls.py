"""The threshold for a wanted number of false calls a scan, by hand and against the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.evaluation import false_calls
from luna16_monai.evaluation.false_calls import choose_threshold

PROBABILITY = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
LABEL = np.array([1, 0, 1, 0, 1, 0])
SCAN = np.array([0, 0, 1, 1, 2, 2])


def test_threshold_is_the_lowest_that_the_rate_allows():
    # three scans: a third of a call a scan is one in all, the one at .8; the next lies at .6, so .7 is the lowest
    told = choose_threshold(PROBABILITY, LABEL, SCAN, 3, 1 / 3, draws=0)
    assert told["threshold"] == 0.7
    assert told["false_positives_per_scan"] == pytest.approx(1 / 3)
    assert told["sensitivity"] == pytest.approx(2 / 3)
    assert told["threshold_ci95"] is None


def test_scans_without_candidates_and_missed_nodules_count():
    told = choose_threshold(PROBABILITY, LABEL, SCAN, 6, 1 / 3, draws=0, missed=np.array([0, 0, 0, 3, 0, 0]))
    # two calls in six scans: .8 and .6; found at .5 and above are all three of six nodules
    assert told["threshold"] == 0.5
    assert told["sensitivity"] == pytest.approx(0.5)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_intervals_are_those_of_scans_drawn_anew(rate):
    random = np.random.default_rng(0)
    scan = np.repeat(np.arange(20), 30)
    label = (random.random(600) < 0.1).astype(int)
    probability = np.clip(0.3 * label + random.random(600) * 0.7, 0, 1).round(2)
    told = choose_threshold(probability, label, scan, 20, rate, draws=200)
    low, high = told["threshold_ci95"]
    assert low < told["threshold"] < high
    low, high = told["false_positives_per_scan_ci95"]
    assert low <= told["false_positives_per_scan"] <= high
    # the threshold of a draw is that of the drawn scans put together, ties and all
    drawn = random.integers(20, size=20)
    rows = np.concatenate([np.flatnonzero(scan == one) for one in drawn])
    expected = choose_threshold(probability[rows], label[rows], np.repeat(np.arange(20), 30), 20, rate, draws=0)
    weights = np.bincount(drawn, minlength=20).astype(float)
    order = np.argsort(-probability[label == 0], kind="stable")
    others, of = probability[label == 0][order], scan[label == 0][order]
    known = np.unique(probability[rows])
    assert false_calls._threshold(known, others, weights[of], rate * 20) == expected["threshold"]


def test_one_scan_beyond_the_number_is_refused():
    with pytest.raises(ValueError, match="give each one from 0 to 1"):
        choose_threshold(PROBABILITY, LABEL, SCAN, 2, 1.0)
