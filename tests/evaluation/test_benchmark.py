"""AUC, the share found at few false calls, by size, and paired differences, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from luna16_monai.evaluation.benchmark import benchmark, found_at

NEGATIVES = np.arange(20) / 100
"""0 to 0.19: at 5 % one of the 20 may be called, so the threshold is 0.18; at 1 % none, so it is 0.19."""
POSITIVES = np.array([0.5, 0.185, 0.1, 0.19])
LABEL = np.r_[np.zeros(20, int), np.ones(4, int)]


def test_found_at_counts_positives_strictly_above_the_threshold():
    found = found_at(np.r_[NEGATIVES, POSITIVES], LABEL)
    # 1 %: only 0.5 is above 0.19; 5 %: 0.5, 0.185 and 0.19 are above 0.18
    np.testing.assert_allclose(found, [[0.25, 0.75]])


def test_found_at_lets_exactly_the_share_be_called_despite_rounding():
    # 0.05 x 60 = 3 negatives may be called: the threshold is the fourth highest
    values = np.r_[np.arange(60) / 100, 0.565, 0.555]
    label = np.r_[np.zeros(60, int), 1, 1]
    np.testing.assert_allclose(found_at(values, label, [0.05]), [[0.5]])


def test_found_at_with_weights_equals_repeated_candidates():
    weights = np.ones((2, 24))
    weights[1, 19], weights[1, 20], weights[1, 22] = 0, 3, 0  # the negative 0.19 left out, the positive 0.5 thrice
    # 1 %: threshold 0.18, 0.5 three times, 0.185 and 0.19 of 5; 5 %: 0.05 x 19 is below 1, so the same
    np.testing.assert_allclose(found_at(np.r_[NEGATIVES, POSITIVES], LABEL, weights=weights), [[0.25, 0.75], [1, 1]])


def test_found_at_is_nan_where_a_draw_holds_one_class():
    weights = np.stack([np.r_[np.zeros(20), np.ones(4)], np.r_[np.ones(20), np.zeros(4)]])
    assert np.isnan(found_at(np.r_[NEGATIVES, POSITIVES], LABEL, weights=weights)).all()


def test_found_at_refuses_a_rate_of_one():
    with pytest.raises(ValueError, match="below 1"):
        found_at(NEGATIVES, np.zeros(20), [1.0])


def scored(draws: int = 200) -> dict:
    better = np.r_[NEGATIVES, POSITIVES + 1]
    patient = [f"p{row % 12}" for row in range(24)]
    diameter = np.r_[np.full(20, np.nan), 7.9, 8.0, 15.0, np.nan]
    return benchmark({"one": np.r_[NEGATIVES, POSITIVES], "two": better}, LABEL, patient, diameter, draws)


def test_benchmark_scores_each_size_against_all_negatives():
    one, two = scored()["weights"]
    # pairs won of 80: 0.5 wins 20, 0.185 19, 0.1 10.5 (a tie), 0.19 19.5 (a tie)
    assert one["roc_auc"] == pytest.approx(69 / 80)
    assert two["roc_auc"] == 1.0
    assert one["found_at"] == {"0.01": 0.25, "0.05": 0.75}
    sizes = one["by_diameter_mm"]
    assert {name: part["nodules"] for name, part in sizes.items()} == {"<8": 1, "8-15": 1, ">=15": 1}
    assert [sizes[name]["found_at"]["0.05"] for name in sizes] == [1.0, 1.0, 0.0]


def test_benchmark_differences_are_paired_with_the_first():
    result = scored()
    (difference,) = result["differences"]
    assert (difference["name"], difference["from"]) == ("two", "one")
    assert difference["roc_auc"] == pytest.approx(11 / 80)
    low, high = difference["roc_auc_ci95"]
    assert 0 <= low <= 11 / 80 <= high
    assert difference["found_at"] == {"0.01": 0.75, "0.05": 0.25}


def test_benchmark_of_equal_weights_has_a_difference_of_exactly_zero():
    values = np.r_[NEGATIVES, POSITIVES]
    result = benchmark({"a": values, "b": values.copy()}, LABEL, list(map(str, range(24))), np.full(24, np.nan), 50)
    assert result["differences"][0]["roc_auc_ci95"] == [0, 0]


def test_benchmark_without_draws_gives_no_intervals():
    one = scored(0)["weights"][0]
    assert one["roc_auc_ci95"] is None
    assert one["found_at_ci95"] is None


def test_benchmark_says_where_few_patients_give_the_negatives():
    patient = ["a"] * 20 + ["b", "c", "d", "e"]
    result = benchmark({"one": np.r_[NEGATIVES, POSITIVES]}, LABEL, patient, np.full(24, np.nan), 20)
    assert "from 1 patient:" in result["warnings"][0]
    assert scored()["warnings"] == []


def test_benchmark_refuses_one_class():
    with pytest.raises(ValueError, match=r"label \[0\] alone"):
        benchmark({"one": NEGATIVES}, np.zeros(20, int), ["p"] * 20, np.full(20, np.nan))
