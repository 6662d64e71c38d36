"""How often each scan is drawn, and the interval of what was computed on the draws."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.evaluation.bootstrap import drawn_weights, interval
from luna16_monai.machine import progress


def test_drawn_weights_counts_what_was_drawn():
    (weights,) = drawn_weights(groups=5, draws=4, seed=3, rows=10)
    drawn = np.random.default_rng(3).integers(5, size=(4, 5)).tolist()
    assert weights.tolist() == [[row.count(group) for group in range(5)] for row in drawn]
    assert weights.dtype == np.float64


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_drawn_weights_are_the_same_in_parts_of_any_size(rows):
    (whole,) = drawn_weights(groups=6, draws=7, seed=0, rows=7)
    parts = list(drawn_weights(groups=6, draws=7, seed=0, rows=rows))
    assert [len(part) for part in parts] == [min(rows, 7 - start) for start in range(0, 7, rows)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    # each draw takes as many scans as there are
    assert whole.sum(axis=1).tolist() == [6] * 7


def test_drawn_weights_of_no_draw_is_empty():
    assert list(drawn_weights(groups=6, draws=0, seed=0, rows=7)) == []


def test_drawn_weights_count_their_draws_on_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    with progress.showing(True):
        list(drawn_weights(groups=6, draws=7, seed=0, rows=3))
    assert "bootstrap: 100%" in capsys.readouterr().err


def test_interval_takes_number_25_and_975_of_1000_whatever_their_order():
    values = np.random.default_rng(0).permutation(1000).astype(float)
    assert interval(values).tolist() == [25, 975]


def test_interval_of_fewer_draws_scales_the_numbers():
    # of 40 draws: 40 * 25 // 1000 = 1 and 40 * 975 // 1000 = 39
    assert interval(np.arange(40.0)).tolist() == [1, 39]
    assert interval(np.array([5.0])).tolist() == [5, 5]


def test_interval_is_taken_of_each_column():
    values = np.stack([np.arange(1000.0), -np.arange(1000.0)], axis=1)
    # the second column sorted runs from -999 to 0: -999 + 25 and -999 + 975
    assert interval(values).tolist() == [[25, 975], [-974, -24]]
